"""tmp/ on a disk that fails, after crashes at any moment, and with strange things in it."""

from __future__ import annotations

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor.errors import HostError
from supervisor.state import record_file, store
from supervisor.state.record import EventKind
from supervisor.state.store import Store
from tests.support.small_store import ONE, OTHER, created, listing, new, news, on_disk, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def full(room: int) -> Iterator[None]:
    """No file can grow beyond so many bytes; what still fits is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- writing --------------------------------------------------------------------------------


def test_what_is_written_is_found(tmp_path: Path) -> None:
    made = created(tmp_path)
    changed = write(made, 2, 3)
    assert listing(tmp_path / ONE) == {"vm.json", "events.jsonl", "computation", "secret"}
    found = Store(tmp_path).load()
    assert (found.records, found.sequence) == ([changed], 3)
    assert on_disk(tmp_path) == [1, 2, 3]


def test_reader_of_a_record_sees_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """It is another file: one that was opened before stays whole."""
    made = created(tmp_path)
    file = tmp_path / ONE / "vm.json"
    with file.open("rb") as opened:
        changed = write(made, 2)
        assert record_file.parse(opened.read())[0] == new()
    assert record_file.parse(file.read_bytes())[0] == changed


def test_vm_that_cannot_be_put_on_record_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ONE).mkdir()
    (tmp_path / ONE / "in the way").touch()
    with pytest.raises(OSError, match="not empty"):
        created(tmp_path)
    assert listing(tmp_path) == {ONE}


def test_events_that_could_not_be_written_are_with_the_next(tmp_path: Path) -> None:
    made = created(tmp_path)
    events = tmp_path / ONE / "events.jsonl"
    kept = events.read_bytes()
    events.unlink()
    events.mkdir()
    for number in (2, 3):
        with pytest.raises(IsADirectoryError):
            write(made, number)
    # The record is ahead of the events, and has the last.
    assert record_file.parse((tmp_path / ONE / "vm.json").read_bytes())[0].sequence == 3
    events.rmdir()
    events.write_bytes(kept)
    write(made, 4)
    write(made, 5)
    assert on_disk(tmp_path) == [1, 2, 3, 4, 5]


def test_record_that_could_not_be_written_is_with_the_next(tmp_path: Path) -> None:
    made = created(tmp_path)
    in_the_way = tmp_path / ONE / "vm.json.new"
    in_the_way.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
        write(made, 2)
    assert on_disk(tmp_path) == [1]
    in_the_way.rmdir()
    changed = write(made, 3)
    assert on_disk(tmp_path) == [1, 2, 3]
    assert Store(tmp_path).load().records == [changed]


@pytest.mark.parametrize("fits", [1, 60, 150])
def test_full_disk_leaves_no_half_of_a_line(tmp_path: Path, fits: int) -> None:
    """Also where the half that is cut off makes room for the other."""
    made = Store(tmp_path)
    made.note(news(1, None))
    file = tmp_path / "events.jsonl"
    before = file.read_bytes()
    with full(len(before) + fits), pytest.raises(OSError, match="too large"):
        made.note(attrs.evolve(news(2, None), data={"why": "x" * 200}))
    assert file.read_bytes() == before
    made.note(news(3, None))
    assert [event.sequence for event in made.events_after(0, [], 1000)] == [1, 2, 3]


def test_many_at_a_time(tmp_path: Path) -> None:
    """Worker threads note events of several VMs at once, each one time."""
    made = Store(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: made.note(news(number, None)), range(1, 201)))
    assert [event.sequence for event in made.events_after(0, [], 1000)] == list(range(1, 201))


# --- removing -------------------------------------------------------------------------------


def test_removed_vm_is_an_event(tmp_path: Path) -> None:
    made = created(tmp_path)
    made.remove(ONE, news(2, kind=EventKind.DELETED))
    assert listing(tmp_path) == {"events.jsonl"}
    assert [event.kind for event in made.events_after(0, [], 1000)] == ["deleted"]
    found = Store(tmp_path).load()
    assert (found.records, found.gone, found.sequence) == ([], {}, 2)


def test_removal_frees_its_room_where_nothing_can_be_written(tmp_path: Path) -> None:
    made = created(tmp_path)
    with full(0), pytest.raises(OSError, match="too large"):
        made.remove(ONE, news(2, kind=EventKind.DELETED))
    assert listing(tmp_path) <= {"events.jsonl"}
    made.note(news(3, None))
    assert [event.sequence for event in made.events_after(0, [], 1000)] == [2, 3]


@pytest.mark.parametrize("told", [False, True])
def test_removal_that_was_cut_short(tmp_path: Path, told: bool) -> None:
    made = created(tmp_path)
    (tmp_path / ONE).rename(tmp_path / f"{ONE}.gone")
    if told:
        made.note(news(2, kind=EventKind.DELETED))
    again = Store(tmp_path)
    found = again.load()
    assert (found.records, found.gone) == ([], {} if told else {ONE: ""})
    assert found.sequence >= 1 + told
    for vm_id in found.gone:
        again.finish_removal(vm_id)
    assert listing(tmp_path) <= {"events.jsonl"}


# --- reading --------------------------------------------------------------------------------


def test_events_are_in_their_order_whosever_they_are(tmp_path: Path) -> None:
    made = created(tmp_path)
    created(tmp_path, OTHER, 2)
    write(made, 3)
    made.note(news(4, None))
    write(made, 5)
    ask = [(0, [ONE, OTHER]), (0, [OTHER]), (3, [ONE, OTHER]), (5, [ONE]), (0, ["no-such"])]
    told = [[event.sequence for event in made.events_after(*one, 1000)] for one in ask]
    assert told == [[1, 2, 3, 4, 5], [2, 4], [4, 5], [], [4]]


def test_old_events_make_room_and_are_counted(tmp_path: Path) -> None:
    created(tmp_path)
    made = Store(tmp_path, events_bytes=10_000)
    for number in range(2, 1001):
        write(made, number)
    assert (tmp_path / ONE / "events.jsonl").stat().st_size < 10_000
    kept = made.events_after(0, [ONE], 10_000)
    numbers = [event.sequence for event in kept]
    assert numbers == sorted(set(numbers))
    assert numbers[:32] == list(range(1, 33))
    (gap,) = [event for event in kept if event.kind is EventKind.DROPPED]
    assert numbers[33:] == list(range(gap.sequence + 1, 1001))
    assert gap.data == {"count": gap.sequence - 32}
    assert made.events_of(ONE) == kept
    assert Store(tmp_path).load().sequence == 1000


def test_reader_has_as_many_events_as_it_asks_for(tmp_path: Path) -> None:
    """However many there are, and in however many files."""
    made = created(tmp_path)
    created(tmp_path, OTHER, 2)
    for number in range(3, 100, 2):
        write(made, number)
        made.note(news(number + 1, None))
    seen: list[int] = []
    while page := made.events_after(seen[-1] if seen else 0, [ONE, OTHER], 7):
        assert len(page) <= 7
        seen += [event.sequence for event in page]
    assert seen == list(range(1, 101))


def test_numbers_that_were_reserved_are_not_given_again(tmp_path: Path) -> None:
    made = Store(tmp_path)
    most = made.reserve(7)
    assert most > 7
    assert Store(tmp_path).load().sequence == most
    # Also where not a byte more can be written than there is.
    with full((tmp_path / "sequence").stat().st_size):
        assert Store(tmp_path).reserve(10**17) > 10**17
    assert Store(tmp_path).load().sequence > 10**17


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 20, b"many\n"])
def test_reserve_that_cannot_be_read(tmp_path: Path, garbage: bytes) -> None:
    created(tmp_path, sequence=9)
    (tmp_path / "sequence").write_bytes(garbage)
    assert Store(tmp_path).load().sequence == 9


# --- the lock -------------------------------------------------------------------------------


def test_one_supervisor_at_a_time(tmp_path: Path) -> None:
    with store.locked(tmp_path), pytest.raises(HostError, match=f"pid {os.getpid()}"):
        store.locked(tmp_path).__enter__()
    with store.locked(tmp_path):
        pass


def test_a_vm_whose_directory_cannot_be_synced_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(store, "sync", fail)
    with pytest.raises(OSError, match="Too many open files"):
        created(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
