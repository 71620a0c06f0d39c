"""A log that others write: kept from growing without end, and read from a time on."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path


@attrs.frozen
class LogFile:
    """A log, the part before it that was cut off, and of both how long they were when.

    All methods block, for no longer than a few MiB are read.
    """

    path: Path

    @property
    def files(self) -> list[Path]:
        """All of its files, there or not."""
        return [one for part in (self._before, self.path) for one in (part, _marks_of(part))]

    @property
    def _before(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def look(self, limit: int, now: float) -> None:
        """Note how long the log is now, and cut it if it is too long.

        The end of a log over the limit is copied to ``<name>.1``, which replaces the earlier copy,
        and the log is emptied. What is written between the two steps is lost.

        :param limit: in bytes
        :param now: seconds since 1970
        :raises OSError: if it cannot be
        """
        with suppress(FileNotFoundError):
            size = self.path.stat().st_size
            marks = _marks(self.path)
            if not marks or marks[-1][1] != size:
                with _marks_of(self.path).open("a") as file:
                    file.write(_mark(now, size))
            if size > limit:
                self._cut(size, limit, [*marks, (now, size)])

    def _cut(self, size: int, limit: int, marks: list[tuple[float, int]]) -> None:
        with self.path.open("rb") as old:
            old.seek(size - limit)
            self._before.write_bytes(old.read(limit))
        shorter = (_mark(time, max(0, at - (size - limit))) for time, at in marks)
        _marks_of(self._before).write_text("".join(shorter))
        os.truncate(self.path, 0)
        _marks_of(self.path).unlink(missing_ok=True)

    def read(self, since: float | None) -> tuple[bytes, int]:
        """The content, with the part before, and where the present file ends.

        :param since: leave out what was printed before, as far as that is known; seconds since 1970
        """
        before = _content(self._before, _begin(self._before, since))
        begin = _begin(self.path, since)
        now = _content(self.path, begin)
        return before + now, begin + len(now)

    def read_on(self, position: int) -> tuple[bytes, int]:
        """What has come since then, and where that ends."""
        try:
            size = self.path.stat().st_size
        except OSError:
            return b"", position
        position = position if size >= position else 0  # it was cut
        piece = _content(self.path, position)
        return piece, position + len(piece)


def _content(file: Path, begin: int) -> bytes:
    """Empty if there is none."""
    try:
        with file.open("rb") as opened:
            opened.seek(begin)
            return opened.read()
    except OSError:
        return b""


def _begin(file: Path, since: float | None) -> int:
    """Where in the file begins what has come since then, and perhaps a little before."""
    if since is None:
        return 0
    with suppress(OSError):
        found = file.stat()
        if found.st_mtime < since:
            return found.st_size
    return max((size for time, size in _marks(file) if time <= since), default=0)


def _marks_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.times")


def _mark(time: float, size: int) -> str:
    return f"{time:.3f} {size}\n"


def _marks(file: Path) -> list[tuple[float, int]]:
    """The times and sizes that were noted. A line that a crash has cut off is none."""
    found = []
    with suppress(OSError):
        for line in _marks_of(file).read_text(errors="replace").splitlines():
            with suppress(ValueError):
                time, size = line.split()
                found.append((float(time), int(size)))
    return found
