"""What a VM's guest has printed on its console, what its algorithms have, and what QEMU has."""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING

import trio

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

    A log that is cut while it is followed goes on at its new beginning.

    :param tail: so many last lines; None for all
    :param since: leave out what was printed before, as far as that is known; seconds since 1970
    :param follow: go on until the VM has ended
    """
    log = _log(vm, source)
    kept, position = await trio.to_thread.run_sync(log.read, since)
    yield kept if tail is None else _last(kept, tail)
    while follow:
        ended = vm.ended  # first: what is printed until then is read below
        piece, position = await trio.to_thread.run_sync(partial(log.read_on, position))
        yield piece
        if ended and not piece:
            return
        if not piece:
            with trio.move_on_after(vm.config.timing.log_look_s):
                await vm.until(lambda: vm.ended)


def _log(vm: Vm, source: Source) -> LogFile:
    by_source = {Source.SERIAL: vm.dir.serial_log, Source.QEMU: vm.dir.qemu_log}
    return LogFile(by_source.get(source, vm.dir.results.printed))


def _last(content: bytes, lines: int) -> bytes:
    """The last lines; one that is not complete counts."""
    found = content.splitlines(keepends=True)
    return b"".join(found[len(found) - lines :] if lines < len(found) else found)
