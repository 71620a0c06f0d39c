"""A server as the agent has it, and its clients: grpcio's, and one that no library would be."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from h2.settings import SettingCodes

from supervisor.agent.reference.access import Access
from supervisor.agent.reference.call import Method, StreamMethod
from supervisor.agent.reference.refusal import Refusal, StatusCode
from supervisor.agent.reference.rpc import Server

if TYPE_CHECKING:
    from supervisor.agent.reference.algorithm import OnEnd

PATIENCE_S = 60


class Joined:
    """Takes words, and refuses ``no``."""

    def __init__(self) -> None:
        self._words: list[bytes] = []

    def take(self, message: bytes) -> None:
        if message == b"no":
            raise Refusal(StatusCode.ABORTED, "not this word")
        self._words.append(message)

    def finish(self) -> bytes:
        return b" ".join(self._words)


class World:
    """A server whose slow calls end when they are told to, or when their caller leaves."""

    def __init__(self, access: Access | None = None) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.kept = b""
        self.server = Server(
            {
                "/s/Echo": Method(self.echo),
                "/s/Public": Method(self.echo, public=True),
                "/s/Set": Method(self.set),
                "/s/Get": Method(lambda *_: self.kept),
                "/s/Wait": Method(self.wait, slow=True),
                "/s/Refuse": Method(self.refuse),
                "/s/Fail": Method(self.fail),
                "/s/Split": Method(
                    lambda message, _: (message[i : i + 1] for i in range(len(message)))
                ),
                "/s/Join": StreamMethod(lambda _: Joined()),
            },
            access or Access(),
            "127.0.0.1",
            0,
        )

    def echo(self, message: bytes, _: OnEnd) -> bytes:
        return message

    def set(self, message: bytes, _: OnEnd) -> bytes:
        self.kept = message
        return b""

    def wait(self, message: bytes, on_end: OnEnd) -> bytes:
        assert on_end(self.may_end.set)
        self.begun.release()
        assert self.may_end.wait(PATIENCE_S)
        return message

    def refuse(self, message: bytes, _: OnEnd) -> bytes:
        raise Refusal(StatusCode.ABORTED, message.decode())

    def fail(self, _: bytes, __: OnEnd) -> bytes:
        raise ZeroDivisionError


class Client:
    """grpcio's."""

    def __init__(self, world: World) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{world.server.port}", options)

    def begin(self, method: str, message: bytes) -> grpc.Future[bytes]:
        call = self.channel.unary_unary(
            f"/s/{method}", request_serializer=bytes, response_deserializer=bytes
        )
        return call.future(message, timeout=PATIENCE_S)

    def ask(self, method: str, message: bytes = b"") -> bytes:
        return self.begin(method, message).result()

    def failure(self, method: str, message: bytes = b"") -> tuple[grpc.StatusCode, str | None]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, message)
        return caught.value.code(), caught.value.details()


def prefixed(message: bytes, compressed: int = 0) -> bytes:
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


class Raw:
    """HTTP/2 without gRPC's manners. *window*: bytes of each answer that are taken unasked."""

    def __init__(self, world: World, window: int = 65535) -> None:
        self.socket = socket.create_connection(("127.0.0.1", world.server.port), PATIENCE_S)
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.send()

    def send(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def request(
        self, method: str, body: bytes, kind: str = "application/grpc", end: bool = True
    ) -> int:
        """Put it where `send` finds it; the number of its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        headers = {":method": "POST", ":scheme": "http", ":authority": "agent", ":path": method}
        headers |= {"te": "trailers", "content-type": kind}
        self.h2.send_headers(stream_id, list(headers.items()))
        self.h2.send_data(stream_id, body, end_stream=end)
        return stream_id

    def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Headers and trailers together, and the body."""
        fields: dict[str, str] = {}
        body = b""
        while True:
            for event in self.h2.receive_data(self.receive()):
                if getattr(event, "stream_id", None) != stream_id:
                    continue
                if isinstance(event, ResponseReceived | TrailersReceived):
                    fields |= {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    body += event.data
                elif isinstance(event, StreamEnded):
                    return fields, body
            self.send()

    def bodies(self, wanted: list[int]) -> dict[int, bytes]:
        """Of all these answers; the windows are wide enough."""
        found: dict[int, list[bytes]] = {stream_id: [] for stream_id in wanted}
        left = set(wanted)
        while left:
            for event in self.h2.receive_data(self.receive()):
                if isinstance(event, DataReceived):
                    found[event.stream_id].append(event.data)
                elif isinstance(event, StreamEnded):
                    left.discard(event.stream_id)
        return {stream_id: b"".join(parts) for stream_id, parts in found.items()}

    def data(self, stream_id: int, at_least: int) -> bytes:
        """The first of an answer's body."""
        body = b""
        while len(body) < at_least:
            for event in self.h2.receive_data(self.receive()):
                if isinstance(event, DataReceived) and event.stream_id == stream_id:
                    body += event.data
        return body

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the server has closed the connection"
        return data
