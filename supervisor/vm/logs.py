"""What a VM's guest has printed on its console, and what QEMU has printed."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from supervisor.vm.vm import Vm


class Source(enum.StrEnum):
    """Who has printed it."""

    SERIAL = "serial"
    QEMU = "qemu"


async def read(
    vm: Vm, source: Source, tail: int | None, *, follow: bool
) -> AsyncGenerator[bytes, None]:
    """The log, with the part before that was cut off; empty pieces while nothing new comes.

    A log that is cut while it is followed goes on at its new beginning.

    :param tail: so many last lines; None for all
    :param follow: go on until the VM has ended
    """
    log = vm.dir.serial_log if source is Source.SERIAL else vm.dir.qemu_log
    kept, position = await trio.to_thread.run_sync(_all, log)
    yield kept if tail is None else _last(kept, tail)
    while follow:
        ended = vm.ended  # first: what is printed until then is read below
        piece, position = await trio.to_thread.run_sync(_new, log, position)
        yield piece
        if ended and not piece:
            return
        if not piece:
            with trio.move_on_after(vm.config.timing.log_look_s):
                await vm.until(lambda: vm.ended)


def _all(log: Path) -> tuple[bytes, int]:
    """The content, and where the present file ends."""
    before = _content(log.with_name(f"{log.name}.1"), 0)
    now = _content(log, 0)
    return before + now, len(now)


def _new(log: Path, position: int) -> tuple[bytes, int]:
    """What has come since then, and where that ends."""
    try:
        size = log.stat().st_size
    except OSError:
        return b"", position
    position = position if size >= position else 0  # it was cut
    piece = _content(log, position)
    return piece, position + len(piece)


def _content(file: Path, begin: int) -> bytes:
    """Empty if there is none. A log is never longer than twice `LifeConfig.log_size`."""
    try:
        with file.open("rb") as opened:
            opened.seek(begin)
            return opened.read()
    except OSError:
        return b""


def _last(content: bytes, lines: int) -> bytes:
    """The last lines; one that is not complete counts."""
    found = content.splitlines(keepends=True)
    return b"".join(found[len(found) - lines :] if lines < len(found) else found)
