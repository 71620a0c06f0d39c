"""What a VM's guest has printed on its console, what its algorithms have, and what QEMU has."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import trio

from supervisor.config.qemu import size_in_bytes
from supervisor.state.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from supervisor.vm.vm import Vm


class Source(enum.StrEnum):
    """Who has printed it."""

    SERIAL = "serial"
    ALGORITHM = "algorithm"
    QEMU = "qemu"


async def read(
    vm: Vm, source: Source, tail: int | None, since: float | None, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    """The log, with the part before that was cut off; empty pieces while nothing new comes.

    A log that is cut while it is followed goes on at what of it is left.

    :param tail: so many last lines; None for all
    :param since: leave out what was printed before, as far as that is known; seconds since 1970
    :param follow: go on until the VM has ended
    """
    log = _log(vm, source)
    position, end = await trio.to_thread.run_sync(log.span, since, tail)
    while follow or position < end:
        ended = vm.ended  # first: what is printed until then is read below
        piece, position = await trio.to_thread.run_sync(log.read, position)
        yield piece
        if piece:
            continue
        if ended or not follow:
            return
        with trio.move_on_after(vm.config.timing.log_look_s):
            await vm.until(lambda: vm.ended)


def _log(vm: Vm, source: Source) -> LogFile:
    by_source = {Source.SERIAL: vm.dir.serial_log, Source.QEMU: vm.dir.qemu_log}
    path = by_source.get(source, vm.dir.results.printed)
    return LogFile(path, size_in_bytes(vm.config.life.log_size))
