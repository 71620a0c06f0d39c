"""A log that others write: kept from growing without end, and read from a time or a line on.

Positions count the bytes that were ever printed. Beside a log, ``….times`` says at which position
its present file begins, and how far it had come when. ``….1`` has what was cut off last.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path

#: Read at a time.
PIECE = 64 * 1024
#: A line of ``….times`` has some 25 bytes. Of a longer file every second line is left out.
_MOST_TIMES = 100_000
_LONGEST_LINE = 64
_BASE = "base"


@attrs.frozen
class LogFile:
    """:param limit: in bytes; a longer log is cut, and no more than twice as much is ever read

    All methods block, for no longer than so much is read.
    """

    path: Path
    limit: int

    @property
    def files(self) -> list[Path]:
        """All that it may have left."""
        return [self.path, self._before, self._times, *self._drafts]

    @property
    def _before(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    @property
    def _times(self) -> Path:
        return self.path.with_name(f"{self.path.name}.times")

    @property
    def _drafts(self) -> list[Path]:
        return [one.with_name(f"{one.name}.new") for one in (self._before, self._times)]

    # --- written ----------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Note how long the log is, and cut it if it is too long.

        What is printed between the copy of its end and the cut is lost.

        :param now: seconds since 1970
        :raises OSError: if it cannot be cut
        """
        base, size, noted = self._state()
        with suppress(OSError):  # without a note `since` begins earlier
            if noted > base + size:  # a crash in a cut
                base = noted
                self._write_times(base, self._notes())
            if base + size != max(noted, 0):
                self._note(now, base, base + size)
        if size > self.limit:
            self._cut(base, size)

    def _note(self, now: float, base: int, position: int) -> None:
        if not self._times.exists() or self._times.stat().st_size > _MOST_TIMES:
            self._write_times(base, self._notes()[::2])
        with self._times.open("a") as file:
            file.write(_line(now, position))

    def _cut(self, base: int, size: int) -> None:
        """A crash between the steps is noticed: the last note is then beyond the log's end."""
        before, _ = self._drafts
        with self.path.open("rb") as old:
            old.seek(size - self.limit)
            before.write_bytes(old.read(self.limit))
        before.replace(self._before)
        os.truncate(self.path, 0)
        kept = [one for one in self._notes() if one[1] > base + size - self.limit]
        try:
            self._write_times(base + size, kept)
        except OSError:
            self._times.unlink(missing_ok=True)  # else it would be taken for the present one's

    def _write_times(self, base: int, notes: list[tuple[float, int]]) -> None:
        _, draft = self._drafts
        draft.write_text(f"{_BASE} {base}\n" + "".join(_line(*one) for one in notes))
        draft.replace(self._times)

    # --- read -------------------------------------------------------------------------------

    def span(self, since: float | None, tail: int | None) -> tuple[int, int]:
        """Where to begin to read, and where the log ends now.

        :param since: leave out what was printed before, as far as that is known; seconds since 1970
        :param tail: so many last lines, of which one that is not complete is one
        """
        base, size = self._where()
        end = base + size
        begin = max(base - _size(self._before), end - 2 * self.limit)
        if since is not None:
            begin = max(begin, self._since(since, begin, end))
        return begin if tail is None else self._lines(begin, end, tail), end

    def read(self, position: int) -> tuple[bytes, int]:
        """A piece of what was printed from there on, and where it ends. Of what was cut off
        meanwhile as much as there is.
        """
        while True:
            base, size = self._where()
            if position > base + size:  # somebody else has cut it
                position = base
            piece, after = self._read(position, base)
            if self._where()[0] == base:  # not cut meanwhile
                return piece, after

    def _read(self, position: int, base: int) -> tuple[bytes, int]:
        if position < base:
            begin = base - _size(self._before)
            position = max(position, begin)
            if piece := _content(self._before, position - begin):
                return piece, position + len(piece)
            position = base  # it is shorter than it was said to be
        piece = _content(self.path, position - base)
        return piece, position + len(piece)

    def _since(self, since: float, begin: int, end: int) -> int:
        with suppress(OSError):
            if self.path.stat().st_mtime < since:
                return end
        return max((position for time, position in self._notes() if time <= since), default=begin)

    def _lines(self, begin: int, end: int, count: int) -> int:
        """Where the last lines begin."""
        if not count:
            return end
        at, wanted = end, count
        while at > begin:
            start = max(begin, at - PIECE)
            piece = self._between(start, at)
            if at == end and piece.endswith(b"\n"):
                wanted += 1
            found = len(piece)
            while (found := piece.rfind(b"\n", 0, found)) >= 0:
                wanted -= 1
                if not wanted:
                    return start + found + 1
            at = start
        return begin

    def _between(self, start: int, end: int) -> bytes:
        """What of it is there still: a piece ends where a file does."""
        found, position = b"", start
        while position < end:
            piece, position = self.read(position)
            if not piece and position < end:
                break
            found += piece
        return found[: end - start]

    # --- notes ------------------------------------------------------------------------------

    def _state(self) -> tuple[int, int, int]:
        """The position at which the present file begins, by what is noted; its size; and the last
        position that was noted, -1 if none was.
        """
        base, noted = 0, -1
        with suppress(OSError, ValueError), self._times.open("rb") as file:
            word, number = file.readline(_LONGEST_LINE).split()
            base = int(number) if word == _BASE.encode() else 0
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
            last = file.read(_LONGEST_LINE).rpartition(b"\n")[0].rpartition(b"\n")[2].split()
            noted = int(last[1]) if last[0] != _BASE.encode() else -1
        # Last: what is noted meanwhile is of a longer file.
        return base, _size(self.path), noted

    def _where(self) -> tuple[int, int]:
        """The position at which the present file begins, and its size."""
        base, size, noted = self._state()
        return (noted if noted > base + size else base), size

    def _notes(self) -> list[tuple[float, int]]:
        """Times and positions. A line that a crash has cut off is none."""
        found = []
        with suppress(OSError), self._times.open("rb") as file:
            for line in file.read(2 * _MOST_TIMES).splitlines():
                with suppress(ValueError):
                    time, position = line.split()
                    found.append((float(time), int(position)))
        return found


def _line(time: float, position: int) -> str:
    return f"{time:.3f} {position}\n"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _content(file: Path, begin: int) -> bytes:
    """A piece of it; empty if there is none."""
    try:
        with file.open("rb") as opened:
            opened.seek(begin)
            return opened.read(PIECE)
    except OSError:
        return b""
