"""Logs that are cut, and read from a time on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisor.state.log_file import LogFile

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 10


def add(log: LogFile, text: str, time: float) -> None:
    """It is printed at this time, and looked at a second later."""
    with log.path.open("a") as file:
        file.write(text)
    os.utime(log.path, (time, time))
    log.look(LIMIT, time + 1)


def test_since(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    assert log.read(None) == log.read(5) == (b"", 0)
    add(log, "ab", 100)
    add(log, "cd", 200)
    log.look(LIMIT, 250)  # nothing new: nothing is noted
    assert (tmp_path / "log.times").read_text() == "101.000 2\n201.000 4\n"
    for since, content in {None: b"abcd", 100: b"abcd", 101: b"cd", 199: b"cd", 201: b""}.items():
        assert log.read(since) == (content, 4), since


def test_since_a_time_before_a_cut(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    add(log, "12345678", 100)
    add(log, "abcdef", 200)  # 14 bytes: the last ten are the part before
    assert log.read(None) == (b"5678abcdef", 0)
    add(log, "gh", 300)
    for since, content in {50: b"5678abcdefgh", 150: b"abcdefgh", 250: b"gh", 350: b""}.items():
        assert log.read(since) == (content, 2), since
    assert {one.name for one in log.files} >= {one.name for one in tmp_path.iterdir()}
    assert log.read_on(1) == (b"h", 2)
    assert log.read_on(9) == (b"gh", 2)  # it was cut since


def test_notes_that_a_crash_cut_off(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    add(log, "abcd", 100)
    (tmp_path / "log.times").write_text("101.000 2\n102.0")
    assert log.read(100) == (b"abcd", 4)
    assert log.read(None) == (b"abcd", 4)
