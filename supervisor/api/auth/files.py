"""Files that are read again when they change, and the lock for changing them."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog

from supervisor.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = structlog.stdlib.get_logger()

T = TypeVar("T")


class Watched(Generic[T]):
    """A value that is read from files.

    `get` looks at each file's time, size and inode, which takes a microsecond, and reads the files
    again if one differs. So a change counts for the next caller, without a task that waits for it.

    :param read: reads the files. Raises HostError, or what the reading of files raises, if they are
        not what they should be
    :param broken: the value while the files are not what they should be; None: the last good one
    :raises HostError: or the other, if they are not what they should be from the beginning
    """

    def __init__(
        self, files: Sequence[Path], read: Callable[[], T], *, broken: T | None = None
    ) -> None:
        self._files = files
        self._read = read
        self._broken = broken
        # Before the files are read: what changes meanwhile is read again.
        self._seen: object = self._look()
        self._value = read()

    def get(self) -> T:
        now = self._look()
        if now != self._seen:
            self._seen = now
            self._read_again()
        return self._value

    def reload(self) -> None:
        """Read the files again, even if they look the same."""
        self._seen = None
        self.get()

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_stamp(file) for file in self._files]

    def _read_again(self) -> None:
        names = ", ".join(map(str, self._files))
        try:
            self._value = self._read()
        # Of a certificate and its key one may be there, or half of one: ssl's errors are OSErrors.
        except (HostError, OSError, ValueError) as error:
            if self._broken is not None:
                self._value = self._broken
            log.error("files cannot be read again", files=names, problem=str(error))
        else:
            log.info("files read again", files=names)


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


@contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Hold the lock on a directory while one of its files is replaced. Blocking, shortly."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
