"""A WebSocket to another member. Source: RFC 6455."""

from __future__ import annotations

import base64
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpcore
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)

from supervisor.errors import MemberBroke

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

#: Bytes of a message, and pieces that it comes in; a member sends half as many bytes at most.
_LONGEST_MESSAGE, _MOST_PIECES = 1 << 17, 4096
_READ_BYTES = 1 << 16
#: The longest time for saying that this is the end.
_CLOSE_S = 1.0
_BROKE = (httpcore.NetworkError, httpcore.TimeoutException)


def upgrade() -> dict[str, str]:
    """What a request for one has beside its target."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }


class MemberSocket:
    """:param stream: httpx's, of an answer 101
    :param silence_s: a member that says nothing for so long, not even a ping, is gone
    :ivar closed: code and reason, once the member has closed it
    """

    def __init__(self, name: str, stream: Any, silence_s: float) -> None:
        self.closed: tuple[int, str] | None = None
        self._name = name
        self._stream = stream
        self._silence_s = silence_s
        self._protocol = Connection(ConnectionType.CLIENT)
        self._writing = trio.Lock()

    async def messages(self) -> AsyncGenerator[bytes | str]:
        """Each message; ends when the member closes it.

        :raises MemberBroke: if the member is gone, or sends what it should not
        """
        parts, size = list[Any](), 0
        while True:
            for event in self._protocol.events():
                if isinstance(event, Ping):
                    await self._write(event.response())
                elif isinstance(event, CloseConnection):
                    self.closed = int(event.code), event.reason or ""
                    return
                elif isinstance(event, Message):
                    parts.append(event.data)
                    size += len(event.data)
                    if size > _LONGEST_MESSAGE or len(parts) > _MOST_PIECES:
                        raise MemberBroke(f"the member {self._name} sends a message without an end")
                    if event.message_finished:
                        is_text = isinstance(event, TextMessage)
                        yield "".join(parts) if is_text else b"".join(parts)
                        parts, size = [], 0
            try:
                received = await self._stream.read(_READ_BYTES, self._silence_s)
            except _BROKE as error:
                raise self._gone() from error
            if not received:
                raise self._gone()
            self._protocol.receive_data(received)

    async def send(self, message: bytes | str) -> None:
        """:raises MemberBroke: if the member is gone"""
        if self.closed is not None:
            return
        if isinstance(message, str):
            await self._write(TextMessage(message))
        else:
            await self._write(BytesMessage(message))

    async def _write(self, event: Event) -> None:
        async with self._writing:
            try:
                await self._stream.write(self._protocol.send(event), self._silence_s)
            except _BROKE as error:
                raise self._gone() from error

    def _gone(self) -> MemberBroke:
        return MemberBroke(f"the member {self._name} is gone")

    async def close(self) -> None:
        """Say so, if the other side has not."""
        if self._protocol.state is ConnectionState.OPEN:
            with suppress(MemberBroke):
                await self._write(CloseConnection(code=1000))


@asynccontextmanager
async def opened(name: str, stream: Any, silence_s: float) -> AsyncIterator[MemberSocket]:
    """Closed with the body. Whoever has asked closes the answer itself."""
    socket = MemberSocket(name, stream, silence_s)
    try:
        yield socket
    finally:
        with trio.move_on_after(_CLOSE_S, shield=True):
            await socket.close()
