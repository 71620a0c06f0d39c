"""A WebSocket to a member that does not behave."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import httpcore
import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage

from supervisor.api.http.member_socket import MemberSocket, opened
from supervisor.errors import MemberBroke

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Stream:
    """What the other side sends, and what it got."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.got = b""
        self.taken = 0

    async def read(self, _: int, timeout_s: float) -> bytes:
        assert timeout_s == 1
        self.taken += 1
        try:
            return next(self._pieces)
        except StopIteration:
            raise httpcore.ReadTimeout from None

    async def write(self, data: bytes, timeout_s: float) -> None:
        assert timeout_s == 1
        self.got += data


def said(*events: Event) -> list[bytes]:
    server = Connection(ConnectionType.SERVER)
    return [bytes(server.send(event)) for event in events]


async def all_of(socket: MemberSocket) -> list[bytes | str]:
    async with aclosing(socket.messages()) as messages:
        return [one async for one in messages]


async def test_a_message_comes_whole() -> None:
    parts = BytesMessage(b"a", message_finished=False), BytesMessage(b"b")
    end = CloseConnection(code=1013, reason="slow")
    stream = Stream([b"".join(said(*parts, TextMessage("c"), Ping(b"p"), end))])
    async with opened("b", stream, 1) as socket:
        assert await all_of(socket) == [b"ab", "c"]
        assert socket.closed == (1013, "slow")
        await socket.send(b"late")
    assert stream.got  # the pong
    assert b"late" not in stream.got


def unfinished(content: bytes) -> Iterator[bytes]:
    server = Connection(ConnectionType.SERVER)
    while True:
        yield bytes(server.send(BytesMessage(content, message_finished=False)))


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], "is gone"),
        ([b""], "is gone"),
        (unfinished(b"x" * 1000), "without an end"),
        (unfinished(b""), "without an end"),
    ],
)
async def test_a_member_that_is_slow_or_does_not_end(pieces: Iterable[bytes], words: str) -> None:
    stream = Stream(pieces)
    async with opened("b", stream, 1) as socket:
        with pytest.raises(MemberBroke, match=words):
            await all_of(socket)
    assert stream.taken < 5000


async def test_what_is_no_frame() -> None:
    async with opened("b", Stream([b"\xff" * 1000]), 1) as socket:
        assert await all_of(socket) == []
        assert socket.closed is not None
        assert socket.closed[0] == 1002
