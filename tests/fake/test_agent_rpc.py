"""The agent's gRPC server, asked by grpcio and by clients that no library would be."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from h2.events import ConnectionTerminated
from h2.settings import SettingCodes

from supervisor.agent.reference import rpc
from supervisor.agent.reference.access import Access
from supervisor.agent.reference.call import (
    MAX_DETAIL_BYTES,
    MAX_PUBLIC_BYTES,
    MAX_STREAMED_BYTES,
)
from supervisor.agent.reference.refusal import StatusCode
from supervisor.agent.reference.rpc import MAX_SLOW_CALLS, Connection
from supervisor.agent.reference.wire import MAX_MESSAGE_BYTES
from tests.support.agent_clients import PATIENCE_S, Client, Raw, World, prefixed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.server.stop()
    assert not [one for one in threading.enumerate() if one.name == "grpc"]


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    client = Client(world)
    yield client
    client.channel.close()


def status_of(world: World, method: str, body: bytes) -> str:
    raw = Raw(world)
    stream_id = raw.request(method, body)
    raw.send()
    fields, _ = raw.answer(stream_id)
    assert fields[":status"] == "200"
    raw.socket.close()
    return fields["grpc-status"]


def test_each_call_has_its_own_answer(world: World) -> None:
    clients = [Client(world) for _ in range(4)]
    words = [f"{number}".encode() * number for number in range(100)]
    calls = [clients[number % 4].begin("Echo", word) for number, word in enumerate(words)]
    assert [call.result() for call in calls] == words
    for client in clients:
        client.channel.close()


def test_strangers_call_ends_at_its_headers(tmp_path: Path) -> None:
    """Before a byte of its message has come; and a public method asks nobody."""
    given = tmp_path / "hash"
    given.write_text(hashlib.sha256(b"ours").hexdigest())
    opened = os.open(tmp_path / "open", os.O_RDWR | os.O_CREAT)
    world = World(Access(os.open(given, os.O_RDONLY), opened))
    raw = Raw(world)
    for method in ("/s/Echo", "/s/Wait", "/s/Join", "/s/None"):
        stream_id = raw.request(method, b"", end=False)
        raw.send()
        fields, body = raw.answer(stream_id)
        assert (fields["grpc-status"], body) == (str(StatusCode.UNAUTHENTICATED.value), b""), method
    raw.socket.close()
    assert status_of(world, "/s/Public", prefixed(b"")) == "0"
    world.server.stop()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MAX_MESSAGE_BYTES])
def test_messages_of_every_size(client: Client, size: int) -> None:
    assert client.ask("Echo", bytes(size)) == bytes(size)


def test_message_that_is_too_long(client: Client) -> None:
    code, detail = client.failure("Echo", bytes(MAX_MESSAGE_BYTES + 1))
    assert (code, client.ask("Echo", b"x")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, b"x")
    assert str(MAX_MESSAGE_BYTES) in (detail or "")


def test_what_everybody_may_send_is_short(client: Client) -> None:
    assert client.ask("Public", bytes(MAX_PUBLIC_BYTES)) == bytes(MAX_PUBLIC_BYTES)
    code, detail = client.failure("Public", bytes(MAX_PUBLIC_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_PUBLIC_BYTES) in (detail or "")


def test_messages_together_have_a_limit(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls they are of; and what is over leaves its room."""
    monkeypatch.setattr(rpc, "MAX_UNANSWERED_BYTES", 100_000)
    held = client.begin("Wait", bytes(60_000))
    assert world.begun.acquire(timeout=PATIENCE_S)
    code, detail = client.failure("Echo", bytes(60_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again later" in (detail or "")
    assert client.ask("Echo", b"x") == b"x"
    world.may_end.set()
    assert held.result() == bytes(60_000)
    for _ in range(5):
        assert client.ask("Echo", bytes(60_000)) == bytes(60_000)
        assert client.ask("Join", bytes(60_000)) == bytes(60_000)


@pytest.mark.parametrize("detail", ["plain", "100 % grün: 数\n\0~", "tab\tand\nline"])
def test_sentence_arrives_as_it_was_said(client: Client, detail: str) -> None:
    assert client.failure("Refuse", detail.encode()) == (grpc.StatusCode.ABORTED, detail)


def test_bug_is_told_and_ends_one_call_only(client: Client) -> None:
    code, detail = client.failure("Fail")
    assert code is grpc.StatusCode.UNKNOWN
    assert "ZeroDivisionError" in (detail or "")
    assert client.ask("Echo", b"x") == b"x"


def test_no_such_method(client: Client) -> None:
    assert client.failure("Else")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_slow_calls_keep_nobody_waiting(world: World, client: Client) -> None:
    slow = [client.begin("Wait", b"%d" % number) for number in range(MAX_SLOW_CALLS)]
    for _ in slow:
        assert world.begun.acquire(timeout=PATIENCE_S)
    assert client.ask("Echo", b"x") == b"x"
    world.may_end.set()
    assert [call.result() for call in slow] == [b"%d" % number for number in range(len(slow))]


def test_caller_who_leaves_ends_its_call(world: World, client: Client) -> None:
    call = client.begin("Wait", b"")
    assert world.begun.acquire(timeout=PATIENCE_S)
    call.cancel()
    assert world.may_end.wait(PATIENCE_S)
    assert client.ask("Echo", b"x") == b"x"


def test_connection_that_breaks_ends_its_calls(world: World, client: Client) -> None:
    raw = Raw(world)
    raw.request("/s/Wait", prefixed(b""))
    raw.send()
    assert world.begun.acquire(timeout=PATIENCE_S)
    raw.socket.close()
    assert world.may_end.wait(PATIENCE_S)
    assert client.ask("Echo", b"x") == b"x"


def test_stop_ends_what_is_under_way(world: World, client: Client) -> None:
    call = client.begin("Wait", b"")
    assert world.begun.acquire(timeout=PATIENCE_S)
    world.server.stop()
    assert call.exception() is not None
    with socket.create_server(("127.0.0.1", world.server.port)):
        pass  # the port is free
    world.server = World().server  # for the fixture to stop


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("/s/Echo", prefixed(b"x", compressed=1), StatusCode.UNIMPLEMENTED),
        ("/s/Echo", b"", StatusCode.INTERNAL),
        ("/s/Echo", b"\0\0\0", StatusCode.INTERNAL),
        ("/s/Echo", prefixed(b"long")[:-1], StatusCode.INTERNAL),
        ("/s/Echo", prefixed(b"one") + prefixed(b"two"), StatusCode.INTERNAL),
        ("/s/\xff", prefixed(b""), StatusCode.UNIMPLEMENTED),
        ("/s/Join", prefixed(b"x", compressed=1), StatusCode.UNIMPLEMENTED),
        ("/s/Join", prefixed(b"one") + prefixed(b"long")[:-1], StatusCode.INTERNAL),
        ("/s/Join", prefixed(b"one") + prefixed(b"no") + prefixed(b"two"), StatusCode.ABORTED),
        ("/s/Join", b"\0" + (2 << 20).to_bytes(4, "big"), StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_what_is_no_call(world: World, method: str, body: bytes, status: StatusCode) -> None:
    assert status_of(world, method, body) == str(status.value)


@pytest.mark.parametrize("piece", [1, 4, 5, 7, 1000])
def test_messages_of_a_stream_may_come_in_any_pieces(world: World, piece: int) -> None:
    body = prefixed(b"one") + prefixed(b"") + prefixed(b"three")
    raw = Raw(world)
    stream_id = raw.request("/s/Join", b"", end=False)
    for at in range(0, len(body), piece):
        raw.h2.send_data(stream_id, body[at : at + piece])
    raw.h2.end_stream(stream_id)
    raw.send()
    fields, answer = raw.answer(stream_id)
    assert (fields["grpc-status"], answer) == ("0", prefixed(b"one  three"))
    raw.socket.close()


def test_longest_message_of_a_stream_is_followed_by_others(world: World) -> None:
    longest = bytes(MAX_STREAMED_BYTES)
    with Client(world).channel as channel:
        join = channel.stream_unary("/s/Join", bytes, bytes)
        words = [longest, b"x", longest]
        assert join(iter(words), timeout=PATIENCE_S) == b" ".join(words)


@pytest.mark.parametrize("words", [b"", b"x", b"several"])
def test_answer_may_be_a_stream(client: Client, words: bytes) -> None:
    split = client.channel.unary_stream("/s/Split", bytes, bytes)
    assert b"".join(split(words, timeout=PATIENCE_S)) == words


def test_long_detail_is_cut_between_characters(client: Client) -> None:
    code, detail = client.failure("Refuse", b"x" + "é".encode() * 5000)
    assert (code, detail) == (grpc.StatusCode.ABORTED, "x" + "é" * ((MAX_DETAIL_BYTES - 1) // 2))


def test_what_is_no_grpc(world: World) -> None:
    raw = Raw(world)
    stream_id = raw.request("/s/Echo", b"{}", kind="application/json")
    raw.send()
    assert raw.answer(stream_id)[0] == {":status": "415"}
    raw.socket.close()


def test_call_that_is_taken_back_at_once_disturbs_no_other(world: World) -> None:
    raw = Raw(world)
    for _ in range(3):
        taken_back = raw.request("/s/Echo", prefixed(b"x"))
        raw.h2.reset_stream(taken_back)
    kept = raw.request("/s/Echo", prefixed(b"y"))
    raw.send()
    fields, body = raw.answer(kept)
    assert (fields["grpc-status"], body) == ("0", prefixed(b"y"))
    raw.socket.close()


def test_client_that_takes_nothing_holds_up_nobody(world: World, client: Client) -> None:
    raw = Raw(world, window=0)
    stream_id = raw.request("/s/Echo", prefixed(bytes(1000)))
    raw.send()
    assert client.ask("Echo", b"x") == b"x"
    raw.h2.increment_flow_control_window(2000, stream_id)
    raw.send()
    assert raw.answer(stream_id)[1] == prefixed(bytes(1000))
    raw.socket.close()


def test_client_that_reads_nothing_for_long_holds_up_nobody(world: World, client: Client) -> None:
    megabyte = bytes(1 << 20)
    assert client.ask("Set", megabyte) == b""
    raw = Raw(world, window=1 << 30)
    raw.h2.increment_flow_control_window(1 << 30)
    wanted = [raw.request("/s/Get", prefixed(b"")) for _ in range(40)]
    raw.send()
    assert client.ask("Echo", b"x") == b"x"  # the sockets' buffers cannot hold all that
    assert raw.bodies(wanted) == {stream_id: prefixed(megabyte) for stream_id in wanted}
    assert client.ask("Echo", b"y") == b"y"
    raw.socket.close()


def test_window_that_becomes_smaller_than_what_is_under_way(world: World, client: Client) -> None:
    assert client.ask("Set", bytes(100_000)) == b""
    raw = Raw(world)
    stream_id = raw.request("/s/Get", prefixed(b""))
    raw.send()
    received = raw.data(stream_id, at_least=65_535)
    raw.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    raw.send()
    assert client.ask("Echo", b"x") == b"x"
    raw.h2.increment_flow_control_window(200_000, stream_id)
    raw.h2.increment_flow_control_window(200_000)
    raw.send()
    assert received + raw.answer(stream_id)[1] == prefixed(bytes(100_000))
    raw.socket.close()


def test_calls_that_are_taken_back_leave_their_room_to_others(client: Client) -> None:
    for _ in range(300):
        client.begin("Echo", bytes(30_000)).cancel()
    assert client.ask("Echo", b"x") == b"x"


def test_goodbye_while_a_call_is_under_way(world: World, client: Client) -> None:
    raw = Raw(world)
    raw.request("/s/Wait", prefixed(b""))
    raw.send()
    assert world.begun.acquire(timeout=PATIENCE_S)
    raw.h2.close_connection()
    raw.send()
    assert world.may_end.wait(PATIENCE_S)  # the call has ended
    assert client.ask("Echo", b"x") == b"x"
    raw.socket.close()


class Full:
    """A listening socket of a process that has no descriptor left, until *is_full* is false."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.is_full = True
        self.refused = threading.Semaphore(0)
        self.fileno, self.close = real.fileno, real.close

    def accept(self) -> tuple[socket.socket, object]:
        if self.is_full:
            self.refused.release()
            raise OSError(errno.EMFILE, "too many")
        return self._real.accept()


def test_client_too_many_waits_until_one_leaves(world: World, client: Client) -> None:
    assert client.ask("Echo", b"x") == b"x"
    listener = Full(world.server._listener)
    world.server._listener = listener  # type: ignore[assignment]
    other = Raw(world)
    stream_id = other.request("/s/Echo", prefixed(b"y"))
    other.send()
    assert listener.refused.acquire(timeout=PATIENCE_S)
    assert client.ask("Echo", b"x") == b"x"
    assert not listener.refused.acquire(blocking=False), "it was tried again and again"
    listener.is_full = False
    client.channel.close()
    assert other.answer(stream_id)[1] == prefixed(b"y")
    other.socket.close()


def test_bug_in_the_server_ends_one_connection_only(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Raw(world)
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "_begin", None)
        raw.request("/s/Echo", prefixed(b"x"))
        raw.send()
        while raw.socket.recv(65536):
            pass
    assert client.ask("Echo", b"x") == b"x"
    raw.socket.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\1\0\0\0\0\0\0x",
    ],
)
def test_what_is_no_http2_is_shown_the_door(world: World, client: Client, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", world.server.port), PATIENCE_S) as other:
        other.sendall(garbage)
        while other.recv(65536):
            pass
    assert client.ask("Echo", b"x") == b"x"


def test_goodbye_is_said(world: World) -> None:
    raw = Raw(world)
    stream_id = raw.request("/s/Echo", prefixed(b"x"))
    raw.send()
    raw.answer(stream_id)
    world.server.stop()
    events = raw.h2.receive_data(raw.receive())
    assert any(isinstance(event, ConnectionTerminated) for event in events)
    raw.socket.close()
    world.server = World().server
