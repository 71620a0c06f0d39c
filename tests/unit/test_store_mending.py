"""tmp/ after a crash at any moment, and with strange things in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from supervisor.state import record_file, store
from supervisor.state.store import Store
from tests.support.small_store import ONE, OTHER, created, listing, new, news, on_disk, write

if TYPE_CHECKING:
    from pathlib import Path


def test_drafts_are_nothing(tmp_path: Path) -> None:
    created(tmp_path)
    (tmp_path / ONE / "vm.json.new").write_text('{"versi')
    draft = tmp_path / f"{OTHER}.new"
    draft.mkdir()
    (draft / "vm.json").write_bytes(record_file.dump(new(5, OTHER), [news(5, OTHER)]))
    found = Store(tmp_path).load()
    assert (found.records, found.damaged) == ([new()], {})
    assert listing(tmp_path) == {ONE}
    assert "vm.json.new" not in listing(tmp_path / ONE)


def test_line_that_was_not_written_to_its_end(tmp_path: Path) -> None:
    """Wherever it was cut off: vm.json, which was written before, has the event."""
    made = created(tmp_path)
    file = tmp_path / ONE / "events.jsonl"
    begin = file.stat().st_size
    changed = write(made, 2, 3)
    whole = file.read_bytes()
    for length in range(begin, len(whole)):
        file.write_bytes(whole[:length])
        assert Store(tmp_path).load().records == [changed]
        assert file.read_bytes() == whole


def test_events_that_are_gone(tmp_path: Path) -> None:
    changed = write(created(tmp_path), 2, 3)
    (tmp_path / ONE / "events.jsonl").unlink()
    found = Store(tmp_path).load()
    assert (found.records, found.sequence) == ([changed], 3)
    assert on_disk(tmp_path) == [2, 3]


def test_unreadable_line_is_passed_over(tmp_path: Path) -> None:
    made = created(tmp_path)
    with (tmp_path / ONE / "events.jsonl").open("ab") as file:
        file.write(b"\x00garbage\n")
    write(made, 2)
    assert [event.sequence for event in made.events_after(0, [ONE], 1000)] == [1, 2]
    assert Store(tmp_path).load().sequence == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[" * 100_000,
        b'{"version": 2, "vm": [], "events": []}',
        record_file.dump(new(), [news(1)])[:-30],
        record_file.dump(new(), [news(1)]).replace(b'"version": 5', b'"version": 99'),
        record_file.dump(new(1, OTHER), [news(1, OTHER)]),
    ],
    ids=["empty", "garbage", "deep", "kinds", "truncated", "version", "other"],
)
def test_damaged_record_is_set_aside(tmp_path: Path, content: bytes) -> None:
    write(created(tmp_path), 2, 3)
    created(tmp_path, OTHER, 4)
    (tmp_path / ONE / "vm.json").write_bytes(content)
    found = Store(tmp_path).load()
    assert [one.id for one in found.records] == [OTHER]
    assert found.damaged.keys() == {ONE}
    aside = found.damaged[ONE]
    assert aside.name.startswith("vm.json.bad-")
    assert aside.read_bytes() == content
    assert found.sequence == 4
    assert on_disk(tmp_path) == [1, 2, 3]


def test_what_is_no_vms_directory_is_left_alone(tmp_path: Path) -> None:
    created(tmp_path)
    strangers = ["notes", f"{OTHER}.bak", f"{OTHER} (copy)", OTHER.upper(), f"x{OTHER}"]
    for name in strangers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vm.json").write_text("mine")
    (tmp_path / OTHER).mkdir()
    (tmp_path / "lost").write_text("a file")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    found = Store(tmp_path).load()
    assert [one.id for one in found.records] == [ONE]
    assert not found.damaged
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_only_the_last_events_of_the_supervisor_are_kept(tmp_path: Path) -> None:
    lines = [record_file.event_line(news(number, None)) for number in range(1, 1501)]
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines))
    again = Store(tmp_path)
    assert again.load().sequence == 1500
    left = [event.sequence for event in again.events_after(0, [], 1000)]
    assert left == list(range(1501 - store._KEPT_EVENTS, 1501))
