"""Who looks at one console, and who types there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.stdlib.get_logger()

#: Bytes that a reader may be behind. A guest prints in pieces of any size.
BEHIND = 1 << 20
#: Of a message.
_PIECE = 1 << 16


@attrs.define(eq=False)
class Reader:
    """One who looks at a console.

    :param name: of the caller
    :ivar lagged: whether the reader was too slow
    :ivar written: tells when somebody else writes from now on
    """

    name: str
    lagged: bool = False
    written: Signal = attrs.field(factory=Signal)
    _printed: Signal = attrs.field(factory=Signal)
    _waiting: bytearray = attrs.field(factory=bytearray)
    _ended: bool = False

    def give(self, piece: bytes) -> None:
        """More is printed. After what a reader cannot take in there is nothing."""
        if self._ended:
            return
        if len(self._waiting) + len(piece) > BEHIND:
            self.lagged = True
            self._waiting.clear()
            self.end()
        else:
            self._waiting += piece
            self._printed.notify()

    async def take(self) -> bytes:
        """A piece of what was printed and not taken; empty at the end, and if it lagged."""
        await self._printed.until(lambda: bool(self._waiting) or self._ended)
        taken = bytes(self._waiting[:_PIECE])
        del self._waiting[:_PIECE]
        return taken

    async def wait_lagged(self) -> None:
        """Return when the reader was too slow."""
        await self._printed.until(lambda: self.lagged)

    def end(self) -> None:
        self._ended = True
        self._printed.notify()


class Console:
    """One VM's. `supervisor.vm.console` has the task that reads.

    :ivar writer: the one reader who may write; None if nobody does
    :ivar stream: the connection to QEMU; None while there is none
    :ivar runs: whether the task runs
    """

    def __init__(self) -> None:
        self.writer: Reader | None = None
        self.stream: trio.SocketStream | None = None
        self.runs = False
        self._readers: set[Reader] = set()

    @property
    def has_readers(self) -> bool:
        return bool(self._readers)

    @contextmanager
    def reading(self, name: str, before: bytes) -> Iterator[Reader]:
        """One more reader, who gets this first."""
        reader = Reader(name)
        reader.give(before)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.end()
            if self.writer is reader:
                self.hand_over(None)

    def give(self, piece: bytes) -> None:
        """Nobody is waited for."""
        for reader in tuple(self._readers):
            reader.give(piece)

    def end(self) -> None:
        for reader in tuple(self._readers):
            reader.end()

    def hand_over(self, reader: Reader | None) -> None:
        self.writer = reader
        for one in tuple(self._readers):
            one.written.notify()

    async def write(self, reader: Reader, keys: bytes) -> None:
        """Type into the guest; nothing happens if somebody else writes, or QEMU is not reached."""
        if self.writer is not reader or self.stream is None:
            return
        try:
            await self.stream.send_all(keys)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            log.info("console did not take what was typed")
