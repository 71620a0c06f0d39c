"""Which version's files are in tmp/."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.errors import HostError
from supervisor.state.format import check
from supervisor.state.record_file import VERSION
from supervisor.state.store import locked
from supervisor.state.tmp_dir import FORMAT

if TYPE_CHECKING:
    from pathlib import Path


def note(tmp: Path, number: object, by: str = "9.1.0") -> None:
    (tmp / FORMAT).write_text(json.dumps({"format": number, "written_by": by}))


def noted(tmp: Path) -> int:
    return int(json.loads((tmp / FORMAT).read_text())["format"])


def test_first(tmp_path: Path) -> None:
    check(tmp_path)
    assert noted(tmp_path) == VERSION
    check(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FORMAT]


def test_upgrade(tmp_path: Path) -> None:
    note(tmp_path, VERSION - 1)
    check(tmp_path)
    assert noted(tmp_path) == VERSION


def test_downgrade(tmp_path: Path) -> None:
    note(tmp_path, VERSION + 1)
    told = r"last used by qmp-supervisor 9\.1\.0"
    with pytest.raises(HostError, match=told) as caught, locked(tmp_path):
        pytest.fail("it starts")
    assert "install that version again" in str(caught.value)
    assert noted(tmp_path) == VERSION + 1
    note(tmp_path, VERSION)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": null}',
        b"\xff",
        b'{"format": Infinity, "written_by": ""}',
        b"[" * 9999,
    ],
)
def test_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FORMAT).write_bytes(content)
    with pytest.raises(HostError, match="cannot be read"):
        check(tmp_path)
    assert (tmp_path / FORMAT).read_bytes() == content


def test_something_else_in_its_place(tmp_path: Path) -> None:
    """What is waited for, or has no end, would keep a supervisor from starting without a word."""
    os.mkfifo(tmp_path / FORMAT)
    with pytest.raises(HostError, match="no regular file"):
        check(tmp_path)
    (tmp_path / FORMAT).unlink()
    (tmp_path / FORMAT).symlink_to("/dev/zero")
    with pytest.raises(HostError, match="cannot be read"):
        check(tmp_path)


def test_link_in_the_place_of_the_draft(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / FORMAT).with_suffix(".new").symlink_to(other)
    check(tmp_path)
    assert (other.read_text(), noted(tmp_path)) == ("mine", VERSION)


def test_no_room_for_it(tmp_path: Path) -> None:
    """VMs are taken up all the same."""
    (tmp_path / FORMAT).with_suffix(".new").mkdir()
    check(tmp_path)
    assert not (tmp_path / FORMAT).exists()
