"""The reference agent as a process of its own on loopback, asked over real gRPC and HTTP."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING, NamedTuple

import grpc

from supervisor.agent.reference.wire import decode_fields, encode_message

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.ssl_target_name_override", "agent"),
]
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
    grpc_port: int
    #: What the agent shows, in PEM; None without TLS.
    certificate: str | None = None

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
        connection = self.connection()
        headers = {"Content-Type": content_type} if content_type else {}
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        answer = response.status, response.headers.get_content_type(), response.read()
        connection.close()
        return answer

    def connection(self) -> HTTPConnection:
        if self.certificate is None:
            return HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        trusting = ssl.create_default_context(cadata=self.certificate)
        trusting.check_hostname = False
        return HTTPSConnection("127.0.0.1", self.http_port, timeout=30, context=trusting)


def open_channel(address: tuple[str, int], certificate: str | None) -> grpc.Channel:
    """:param certificate: of the agent, in PEM; None without TLS"""
    target = f"{address[0]}:{address[1]}"
    if certificate is None:
        return grpc.insecure_channel(target, OPTIONS)
    credentials = grpc.ssl_channel_credentials(certificate.encode())
    return grpc.secure_channel(target, credentials, OPTIONS)


@contextmanager
def running_agent(*, tls: bool = False) -> Iterator[Running]:
    ports = ["--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    command = [*AGENT, *ports, "--algorithm-timeout-s", "60", *(["--tls"] if tls else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            bound = json.loads(process.stdout.readline())
            address = "127.0.0.1", bound["grpc_port"]
            certificate = ssl.get_server_certificate(address) if tls else None
            with open_channel(address, certificate) as channel:
                yield Running(process, channel, bound["http_port"], address[1], certificate)
        finally:
            process.terminate()
    assert process.returncode == 0
