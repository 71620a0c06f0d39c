"""Who looks at one console, and who types there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.stdlib.get_logger()

#: Pieces that a reader may be behind: of 16 KiB each, 1 MiB.
BEHIND = 64


@attrs.define(eq=False)
class Reader:
    """One who looks at a console.

    :param name: of the caller
    :ivar pieces: what is printed; ends with the VM, and when the reader is too slow
    :ivar lagged: whether the reader was too slow
    :ivar changed: is set when somebody else writes from now on, and then replaced
    """

    name: str
    pieces: trio.MemoryReceiveChannel[bytes]
    _sender: trio.MemorySendChannel[bytes]
    lagged: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)

    def give(self, piece: bytes) -> None:
        try:
            self._sender.send_nowait(piece)
        except trio.WouldBlock:
            self.lagged = True
            self._sender.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def end(self) -> None:
        self._sender.close()

    def tell(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


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
        sender, pieces = trio.open_memory_channel[bytes](BEHIND)
        reader = Reader(name, pieces, sender)
        reader.give(before)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.end()
            pieces.close()
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
            one.tell()

    async def write(self, reader: Reader, keys: bytes) -> None:
        """Type into the guest; nothing happens if somebody else writes, or QEMU is not reached."""
        if self.writer is not reader or self.stream is None:
            return
        try:
            await self.stream.send_all(keys)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            log.info("console did not take what was typed")
