"""The reference agent as a process of its own on loopback, asked over real gRPC and HTTP."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import grpc

from supervisor.agent.reference.wire import decode_fields, encode_message

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT = (sys.executable, "-m", "supervisor.agent.reference")
#: An algorithm that writes what the expression in it says.
WRITE = b"""
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[2])
    connection.sendall(%b)
"""


class Running(NamedTuple):
    process: subprocess.Popen[str]
    channel: grpc.Channel
    http_port: int

    def call(self, method: str, payload: bytes = b"", timeout_s: float = 30) -> bytes:
        answer = self.raw(method, encode_message(payload), timeout_s)
        return decode_fields(answer).payloads.get(1, b"")

    def raw(
        self,
        method: str,
        message: bytes,
        timeout_s: float = 30,
        service: str = "agent.AgentService",
    ) -> bytes:
        call = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        return call(message, timeout=timeout_s)

    def http(
        self, method: str, path: str, body: bytes = b"", content_type: str | None = None
    ) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        headers = {"Content-Type": content_type} if content_type else {}
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        answer = response.status, response.headers.get_content_type(), response.read()
        connection.close()
        return answer


@contextmanager
def running_agent() -> Iterator[Running]:
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    command = [*AGENT, *ports, "--algorithm-timeout-s", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            bound = json.loads(process.stdout.readline())
            options = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ]
            with grpc.insecure_channel(f"127.0.0.1:{bound['grpc_port']}", options) as channel:
                yield Running(process, channel, bound["http_port"])
        finally:
            process.terminate()
    assert process.returncode == 0
