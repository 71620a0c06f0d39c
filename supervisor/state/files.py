"""Files that survive a crash, and their removal."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.state import file_errors

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.stdlib.get_logger()


def write_synced(file: Path, content: bytes) -> None:
    """Write it so that it is there after a crash of the host. Blocking.

    :raises OSError: if it cannot be written
    """
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def sync(path: Path) -> None:
    """Have a file's content, or a directory's names, there after a crash of the host. Blocking.

    :raises OSError: if it cannot be written
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def remove(file: Path) -> None:
    """Remove it, if it is there, in a worker thread. A failure is logged: nobody needs the file."""
    try:
        await trio.to_thread.run_sync(partial(file.unlink, missing_ok=True))
    except OSError as error:
        problem, _ = file_errors.describe(error, file.parent)
        log.warning("file cannot be removed", problem=problem)
