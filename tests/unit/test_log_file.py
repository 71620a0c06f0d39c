"""Logs that are cut, and read from a time or a line on."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.state import log_file
from supervisor.state.log_file import LogFile

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 10


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "log", LIMIT)


def add(log: LogFile, text: str, time: float) -> None:
    """It is printed at this time, and looked at a second later."""
    with log.path.open("a") as file:
        file.write(text)
    os.utime(log.path, (time, time))
    log.look(time + 1)


def content(log: LogFile, since: float | None = None, tail: int | None = None) -> bytes:
    position, end = log.span(since, tail)
    found = b""
    while position < end:
        piece, position = log.read(position)
        found += piece
    return found


def test_since(log: LogFile) -> None:
    assert content(log) == content(log, 5) == b""
    add(log, "ab", 100)
    add(log, "cd", 200)
    log.look(250)  # nothing new: nothing is noted
    assert log.path.with_name("log.times").read_text() == "base 0\n101.000 2\n201.000 4\n"
    for since, found in {None: b"abcd", 100: b"abcd", 101: b"cd", 199: b"cd", 201: b""}.items():
        assert content(log, since) == found, since


def test_since_a_time_before_a_cut(log: LogFile) -> None:
    add(log, "12345678", 100)
    add(log, "abcdef", 200)  # 14 bytes: the last ten are the part before
    assert content(log) == b"5678abcdef"
    add(log, "gh", 300)
    for since, found in {50: b"5678abcdefgh", 150: b"abcdefgh", 250: b"gh", 350: b""}.items():
        assert content(log, since) == found, since
    assert set(log.files) >= set(log.path.parent.iterdir())


@pytest.mark.parametrize("at", ["rename", "truncate", "times"])
def test_crash_in_a_cut(log: LogFile, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Nothing that is printed later is taken for older than it is."""

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    add(log, "12345678", 100)
    with monkeypatch.context() as patch:
        if at == "rename":
            patch.setattr(type(log.path), "replace", kill)
        elif at == "truncate":
            patch.setattr(os, "truncate", kill)
        else:
            patch.setattr(LogFile, "_write_times", kill)
        with pytest.raises(Killed):
            add(log, "abcdef", 200)
    add(log, "ghi", 300)
    assert content(log).endswith(b"abcdefghi")
    assert content(log, 250) == b"ghi"
    add(log, "jk", 400)
    assert content(log, 350) == b"jk"
    assert content(log, 150).endswith(b"abcdefghijk")


def test_full_disk(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are missed; the log is cut all the same, for that makes room."""
    add(log, "12345678", 100)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(LogFile, "_note", full)
        patch.setattr(LogFile, "_write_times", full)
        add(log, "abcdef", 200)
    assert log.path.stat().st_size == 0
    assert content(log) == b"5678abcdef"
    add(log, "ghi", 300)
    assert content(log, 50) == b"5678abcdefghi"


def test_who_reads_while_it_is_cut(log: LogFile) -> None:
    """He goes on in what was cut off."""
    add(log, "1234", 100)
    position, _ = log.span(None, None)
    piece, position = log.read(position)
    assert piece == b"1234"
    add(log, "56789abcdef", 200)
    add(log, "gh", 300)
    found = b""
    while piece := log.read(position)[0]:
        found, position = found + piece, log.read(position)[1]
    assert found == b"6789abcdefgh"  # ten bytes are kept of what was cut off


@pytest.mark.parametrize("piece", [1, 3, 64])
@pytest.mark.parametrize(
    ("tail", "found"),
    [(0, b""), (1, b"cc"), (2, b"bb\ncc"), (3, b"aa\nbb\ncc"), (9, b"aa\nbb\ncc")],
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_tail(
    log: LogFile, monkeypatch: pytest.MonkeyPatch, piece: int, tail: int, found: bytes, end: bytes
) -> None:
    monkeypatch.setattr(log_file, "PIECE", piece)
    log.path.write_bytes(b"aa\nbb\ncc" + end)
    assert content(log, tail=tail) == (found + end if tail else b"")


def test_file_that_is_longer_than_any_log(log: LogFile) -> None:
    """A QEMU that was taken over can make it a hole of any size."""
    log.path.write_bytes(b"")
    os.truncate(log.path, 1 << 40)
    assert content(log) == bytes(2 * LIMIT)
    assert content(log, tail=1) == bytes(2 * LIMIT)
    log.look(100)
    assert log.path.stat().st_size == 0


def test_many_notes(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_MOST_TIMES", 200)
    big = LogFile(log.path, 10_000)
    for second in range(100):
        add(big, "x", second)
    assert log.path.with_name("log.times").stat().st_size < 250
    assert 0 <= len(content(big, 90)) - 9 < 30  # rather more than less
    assert content(big, 100) == b""


def test_notes_that_a_crash_cut_off(log: LogFile) -> None:
    add(log, "abcd", 100)
    log.path.with_name("log.times").write_text("base 0\n101.000 2\n102.0")
    assert content(log, 100) == content(log) == b"abcd"
