"""A VM's serial console: who reads it, and the one who writes to it.

QEMU writes the console to a file from the start. When somebody opens the console, QEMU is told to
listen on a socket beside that; it goes on to write the file. So a VM that nobody looks at has no
socket, and the same QEMU serves the next supervisor, which finds the socket.

Source: QEMU's QAPI, ``char.json``: ``chardev-change``, ``ChardevSocket``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import Busy, SupervisorError
from supervisor.state.record import EventKind, Purpose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.vm.console_readers import Reader
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: Bytes that are read from QEMU at a time.
_PIECE = 16 * 1024

#: What a new reader gets of what was printed before.
_BEFORE = 16 * 1024

#: After QEMU has broken off, as it does when the VM is booted again.
_AGAIN_S = 0.2


@contextmanager
def reading(vm: Vm, name: str) -> Iterator[Reader]:
    """A reader, who gets what was printed last at first.

    :raises Busy: if the VM has ended, or waits for a run, which must find it as it was made
    """
    if vm.record.purpose in (Purpose.POOL, Purpose.HELD):
        raise Busy(f"VM {vm.id} waits for a run, and has no console until a run has it")
    if vm.ended:
        raise Busy(f"VM {vm.id} has ended", advice="GET …/logs has what it printed")
    # No checkpoint between: nothing is missed. What QEMU has just printed may come twice.
    with vm.console.reading(name, vm.dir.printed(_BEFORE)) as reader:
        yield reader


async def run(vm: Vm) -> None:
    """Read while there are readers, and the VM has not ended. Returns at once if another does."""
    console = vm.console
    if console.runs:
        return
    console.runs = True
    try:
        while console.has_readers and not vm.ended:
            try:
                await _read(vm)
            except (SupervisorError, OSError, trio.BrokenResourceError) as error:
                log.info("console cannot be reached", vm=vm.id, problem=str(error))
            with trio.move_on_after(_AGAIN_S):
                await vm.until(lambda: vm.ended)
    finally:
        console.runs = False
        console.end()


async def _read(vm: Vm) -> None:
    console = vm.console
    async with await _connect(vm) as stream:
        console.stream = stream
        try:
            while console.has_readers:
                with trio.move_on_after(vm.config.timing.console_look_s):
                    piece = await stream.receive_some(_PIECE)
                    if not piece:
                        return
                    console.give(bytes(piece))
        finally:
            console.stream = None


async def take(vm: Vm, reader: Reader) -> None:
    """Have this reader be the one who writes. It goes on record."""
    if vm.console.writer is not reader:
        vm.console.hand_over(reader)
        await vm.commit_unless_ended(EventKind.CONSOLE, {"by": reader.name})


async def _connect(vm: Vm) -> trio.SocketStream:
    """:raises MonitorError: if QEMU does not listen, and cannot be told to
    :raises Busy: if there is no QEMU
    """
    try:
        return await trio.open_unix_socket(vm.dir.console_socket)
    except OSError:
        pass  # this QEMU has not been told yet
    with await trio.to_thread.run_sync(vm.dir.listen_console) as listener:
        try:
            await vm.monitor().serve_serial(listener, vm.dir.serial_log)
        except BaseException:
            # Nobody serves it; and the files of a VM that ends just now may be removed already.
            vm.dir.console_socket.unlink(missing_ok=True)
            raise
    return await trio.open_unix_socket(vm.dir.console_socket)
