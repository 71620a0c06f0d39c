"""What arrives of a request's body, no faster than its handler takes it.

Quart collects a body before anybody asks for it. Here a client whose handler does not read cannot
send: the handler has made room for the body before its first byte is read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from werkzeug.exceptions import RequestEntityTooLarge

from supervisor.errors import TooSlow

if TYPE_CHECKING:
    from supervisor.config import CallersConfig


class Incoming:
    """An asynchronous iterator of the body's parts, for one reader.

    :param announced: bytes, from Content-Length; None if the client does not say
    :param most: bytes
    :ivar complete: set when all of it has come, whoever took it
    :raises RequestEntityTooLarge: while it is read, also if the body says so in advance
    :raises TooSlow: if the client is slower than the settings allow
    """

    def __init__(self, announced: int | None, most: int, limits: CallersConfig) -> None:
        self.announced = announced
        self.complete = trio.Event()
        self._most = most
        self._limits = limits
        self._sender, self._parts = trio.open_memory_channel[bytes](0)
        self._first: bytes | None = None
        self._taken = 0
        self._waited_s = 0.0

    def allow(self, most: int) -> None:
        """Let it be longer than others: none of it is kept. To be called before it is read."""
        self._most = most

    async def is_empty(self) -> bool:
        """Whether there is no body at all. Waits for its first bytes if the client does not say."""
        if self.announced is not None:
            return self.announced == 0
        while self._first is None:
            self._first = await self._next()
        return not self._first

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> bytes:
        part, self._first = self._first, None
        if part is None:
            part = await self._next()
        if not part:
            raise StopAsyncIteration
        return part

    async def _next(self) -> bytes:
        """Empty at the end. Only the time that the client lets us wait counts."""
        if max(self._taken, self.announced or 0) > self._most:
            raise RequestEntityTooLarge
        allowed_s = self._limits.body_timeout_s + self._taken / self._limits.body_bytes_per_s
        begun = trio.current_time()
        with trio.move_on_after(allowed_s - self._waited_s):
            try:
                part = await self._parts.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                return b""
            self._waited_s += trio.current_time() - begun
            self._taken += len(part)
            return part
        raise TooSlow(
            "the body did not arrive in time",
            advice=f"send it within {self._limits.body_timeout_s:g} s, or at"
            f" {self._limits.body_bytes_per_s} bytes a second",
        )

    # --- the connection's side --------------------------------------------------------------

    async def arrived(self, part: bytes, *, more: bool) -> None:
        """Return once the handler has taken the part, or will take none."""
        if part:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._sender.send(part)
        if not more:
            self.complete.set()
            self._sender.close()

    def discard(self) -> None:
        """Take no more; what still comes is thrown away."""
        self._parts.close()
        self._sender.close()
