"""A VM's serial console: who reads it, and the one who writes to it.

QEMU writes the console to a file from the start. When somebody opens the console, QEMU is told to
listen on a socket beside that; it goes on to write the file. So a VM that nobody looks at has no
socket, and the same QEMU serves the next supervisor, which finds the socket.

Source: QEMU's QAPI, ``char.json``: ``chardev-change``, ``ChardevSocket``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.errors import Busy, SupervisorError
from supervisor.state.record import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: Bytes that are read from QEMU at a time, and pieces that a reader may be behind: 1 MiB.
_PIECE, _BEHIND = 16 * 1024, 64

#: What a new reader gets of what was printed before.
_BEFORE = 16 * 1024

#: After QEMU has broken off, as it does when the VM is booted again.
_AGAIN_S = 0.2


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
    """One VM's. `run` is the task that reads; whoever opens the console begins it.

    :ivar writer: the one reader who may write; None if nobody does
    """

    def __init__(self) -> None:
        self.writer: Reader | None = None
        self._readers: set[Reader] = set()
        self._stream: trio.SocketStream | None = None
        self._runs = False

    @contextmanager
    def reading(self, vm: Vm, name: str) -> Iterator[Reader]:
        """A reader, who has got what was printed last.

        :raises Busy: if the VM has ended
        """
        if vm.ended:
            raise Busy(f"VM {vm.id} has ended", advice="GET …/logs has what it printed")
        sender, pieces = trio.open_memory_channel[bytes](_BEHIND)
        reader = Reader(name, pieces, sender)
        # No checkpoint between: nothing is missed. What QEMU has just printed may come twice.
        reader.give(vm.dir.printed(_BEFORE))
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            reader.end()
            pieces.close()
            if self.writer is reader:
                self._hand_over(None)

    @property
    def begins(self) -> bool:
        """Whether nobody runs it yet; from now on somebody does."""
        begins, self._runs = not self._runs, True
        return begins

    async def run(self, vm: Vm) -> None:
        """Read while there are readers, and the VM has not ended."""
        try:
            while self._readers and not vm.ended:
                try:
                    await self._read(vm)
                except (SupervisorError, OSError, trio.BrokenResourceError) as error:
                    log.info("console cannot be reached", vm=vm.id, problem=str(error))
                with trio.move_on_after(_AGAIN_S):
                    await vm.until(lambda: vm.ended)
        finally:
            self._runs = False
            for reader in tuple(self._readers):
                reader.end()

    async def _read(self, vm: Vm) -> None:
        async with await _connect(vm) as stream:
            self._stream = stream
            try:
                while self._readers:
                    with trio.move_on_after(vm.config.timing.console_look_s):
                        piece = await stream.receive_some(_PIECE)
                        if not piece:
                            return
                        for reader in tuple(self._readers):
                            reader.give(piece)
            finally:
                self._stream = None

    async def take(self, vm: Vm, reader: Reader) -> None:
        """Have this reader be the one who writes. It goes on record."""
        if self.writer is not reader:
            self._hand_over(reader)
            await vm.commit_unless_ended(EventKind.CONSOLE, {"by": reader.name})

    def _hand_over(self, reader: Reader | None) -> None:
        self.writer = reader
        for one in tuple(self._readers):
            one.tell()

    async def write(self, reader: Reader, keys: bytes) -> None:
        """Type into the guest; nothing happens if somebody else writes, or QEMU is not reached."""
        if self.writer is not reader or self._stream is None:
            return
        try:
            await self._stream.send_all(keys)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            log.info("console did not take what was typed")


async def _connect(vm: Vm) -> trio.SocketStream:
    """:raises MonitorError: if QEMU does not listen, and cannot be told to
    :raises Busy: if there is no QEMU
    """
    try:
        return await trio.open_unix_socket(vm.dir.console_socket)
    except OSError:
        pass  # this QEMU has not been told yet
    with await trio.to_thread.run_sync(vm.dir.listen_console) as listener:
        await vm.monitor().serve_serial(listener, vm.dir.serial_log)
    return await trio.open_unix_socket(vm.dir.console_socket)
