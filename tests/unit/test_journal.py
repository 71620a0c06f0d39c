"""Events: each with its own number, told in the order of these, and after it is written."""

from __future__ import annotations

import errno
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio
import trio.testing

from supervisor.state.journal import Journal
from supervisor.state.record import (
    Event,
    EventKind,
    Record,
    RunOptions,
)
from supervisor.state.secret import Secret
from supervisor.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from supervisor.state.shares import Shares

PATIENCE_S = 60


def vm_id(number: int) -> str:
    return f"7f0c5f3e-0000-4000-8000-{number:012}"


def new(number: int = 1) -> Record:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    return Record(id=vm_id(number), created_at=at, options=RunOptions(), memory_bytes=1, vcpus=1)


def numbers(events: Iterable[Event]) -> list[int]:
    return [event.sequence for event in events]


def opened(tmp: Path, *, reader_buffer: int = 1024) -> Journal:
    """As a supervisor that starts has it."""
    store = Store(tmp)
    return Journal(store, store.load().sequence, reader_buffer)


async def take(news: trio.MemoryReceiveChannel[Event], count: int) -> list[Event]:
    with trio.fail_after(PATIENCE_S):
        return [await news.receive() for _ in range(count)]


class SlowStore(Store):
    """Writes each number when it is told to, in a thread; it fails where that is wanted."""

    def __init__(self, tmp: Path, fails: Callable[[int], bool] = lambda _: False) -> None:
        super().__init__(tmp)
        self._fails = fails
        self._gates: dict[int, threading.Event] = {}

    def gate(self, number: int) -> threading.Event:
        return self._gates.setdefault(number, threading.Event())

    def create(
        self,
        new: Record,
        events: Sequence[Event],
        computation: bytes | None,
        secret: Secret,
        shares: Shares | None = None,
    ) -> None:
        self._pass(events[-1])

    def write(self, changed: Record, events: Sequence[Event]) -> None:
        self._pass(events[-1])

    def note(self, event: Event) -> None:
        self._pass(event)

    def _pass(self, event: Event) -> None:
        assert self.gate(event.sequence).wait(PATIENCE_S)
        if self._fails(event.sequence):
            raise OSError(errno.ENOSPC, "No space left on device")


class SlowDisk(Store):
    """Reserves numbers only once others could go on."""

    def __init__(self, tmp: Path) -> None:
        super().__init__(tmp)
        self.asked = 0
        self.others_went_on = threading.Event()

    def reserve(self, sequence: int) -> int:
        self.asked += 1
        assert self.others_went_on.wait(PATIENCE_S)
        return super().reserve(sequence)


# --- numbers --------------------------------------------------------------------------------


async def test_nobody_waits_for_the_disk_but_those_who_need_numbers(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path)
    told = Journal(disk, 0, 1024)
    with told.events.subscribe() as news:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(told.create, new(number), b"x", Secret.new())
            await trio.testing.wait_all_tasks_blocked()
            disk.others_went_on.set()
        assert numbers(await take(news, 3)) == [1, 2, 3]
    assert disk.asked == 1


async def test_numbers_and_records(tmp_path: Path) -> None:
    told = opened(tmp_path)
    with told.events.subscribe() as news:
        record = await told.create(new(), b"computation", Secret.new())
        assert record.sequence == 1
        record = await told.commit(record, (EventKind.RESET, {"x": 1}), (EventKind.AGENT, {}))
        assert record.sequence == 3
        await told.note(EventKind.ADOPTED, None, y=2)
        events = await take(news, 4)
    assert [(event.sequence, event.kind) for event in events] == [
        (1, "state"),
        (2, "reset"),
        (3, "agent"),
        (4, "adopted"),
    ]
    assert [event.vm_id for event in events] == [record.id] * 3 + [None]
    # With all that a damaged record could be rebuilt from.
    assert events[0].data == {
        "state": "prelaunch",
        "reason": "prelaunch",
        "purpose": "run",
        "ttl_s": record.options.ttl_s,
        "restart": record.options.restart,
        "keep_disk": record.options.keep_disk,
        "forwards": record.options.forwards,
    }
    assert told.sequence == 4


@pytest.mark.parametrize("what", ["nothing", "delete", "lose"])
async def test_no_number_is_given_again_by_the_next_supervisor(tmp_path: Path, what: str) -> None:
    before = opened(tmp_path)
    record = await before.create(new(), b"x", Secret.new())
    await before.commit(record, (EventKind.RESET, {}))
    if what == "delete":
        await before.remove(record.id, record.owner)
    elif what == "lose":
        for file in (tmp_path / record.id).iterdir():
            file.unlink()
        (tmp_path / record.id).rmdir()
    after = opened(tmp_path)
    with after.events.subscribe() as news:
        await after.note(EventKind.AGENT, None)
        (event,) = await take(news, 1)
    assert event.sequence > before.sequence


async def test_number_of_what_could_not_be_written_is_not_given_again(tmp_path: Path) -> None:
    before = opened(tmp_path)
    record = await before.create(new(), b"x", Secret.new())
    for name in ("vm.json.new", "events.jsonl"):
        (tmp_path / record.id / name).unlink(missing_ok=True)
        (tmp_path / record.id / name).mkdir()
    with before.events.subscribe() as news:
        record = await before.commit(record, (EventKind.RESET, {}))
        (lost,) = await take(news, 1)
    (tmp_path / record.id / "events.jsonl").rmdir()
    assert opened(tmp_path).sequence >= lost.sequence


async def test_vm_that_cannot_be_put_on_record_is_told_of_to_nobody(tmp_path: Path) -> None:
    told = opened(tmp_path)
    (tmp_path / vm_id(1)).mkdir()
    (tmp_path / vm_id(1) / "in the way").touch()
    with told.events.subscribe() as news:
        with pytest.raises(OSError, match="not empty"):
            await told.create(new(1), b"x", Secret.new())
        await told.create(new(2), b"x", Secret.new())
        (event,) = await take(news, 1)
    assert event.vm_id == vm_id(2)


# --- the order in which they are told -------------------------------------------------------


async def test_told_in_order_though_written_out_of_order(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    told = Journal(store, 0, 1024)
    committed = {number: trio.Event() for number in (1, 2, 3)}

    async def commit(number: int) -> None:
        await told.commit(new(number), (EventKind.RESET, {}))
        committed[number].set()

    with told.events.subscribe() as news:
        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(commit, number)
                await trio.testing.wait_all_tasks_blocked()
            for number, then in ((3, 0), (2, 0), (1, 3)):
                store.gate(number).set()
                # A later one is written, and waits to be told: who waits for it goes on.
                await committed[number].wait()
                assert told.sequence == then
        assert numbers(await take(news, 3)) == [1, 2, 3]


async def test_what_fails_holds_nobody_up(tmp_path: Path) -> None:
    store = SlowStore(tmp_path, fails=lambda number: number in (1, 2))
    told = Journal(store, 0, 1024)
    with told.events.subscribe() as news:
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                with pytest.raises(OSError, match="No space"):
                    await told.create(new(1), b"x", Secret.new())

            nursery.start_soon(create)
            await trio.testing.wait_all_tasks_blocked()
            for number in (2, 3):
                nursery.start_soon(told.commit, new(number), (EventKind.RESET, {}))
                await trio.testing.wait_all_tasks_blocked()
            for number in (3, 2, 1):
                store.gate(number).set()
        # Nothing came of the first; the second happened, written or not.
        assert numbers(await take(news, 2)) == [2, 3]
    assert told.sequence == 3


async def test_change_whose_file_cannot_be_written_is_not_made(tmp_path: Path) -> None:
    told = opened(tmp_path)

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    record = await told.create(new(), b"x", Secret.new())
    with told.events.subscribe() as news:
        with pytest.raises(OSError, match="No space"):
            await told.commit(record, (EventKind.RELAY, {}), before=fail)
        record = await told.commit(record, (EventKind.RESET, {}), before=lambda: None)
        (event,) = await take(news, 1)
    assert (event.kind, event.sequence) == (EventKind.RESET, record.sequence)
    on_disk = [event.kind for event in Store(tmp_path).events_of(record.id)]
    assert on_disk == [EventKind.STATE, EventKind.RESET]


async def test_cancelled_commit_is_made_and_told(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    told = Journal(store, 0, 1024)
    with told.events.subscribe() as news:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.commit, new(), (EventKind.RESET, {}))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            store.gate(1).set()
        assert numbers(await take(news, 1)) == [1]


@pytest.mark.parametrize("took_s", [1, 30])
async def test_slow_disk_is_told_in_the_log(
    tmp_path: Path, mock_clock: trio.testing.MockClock, took_s: int
) -> None:
    """A change that is late for that reason is not taken for one that QEMU did not make."""
    store = SlowStore(tmp_path)
    told = Journal(store, 0, 1024)
    store.gate(1).set()
    await told.commit(new(), (EventKind.RESET, {}))
    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.commit, new(), (EventKind.RESET, {}))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(took_s)
            store.gate(2).set()
    assert [line["took_s"] for line in lines] == ([30] if took_s == 30 else [])


# --- readers --------------------------------------------------------------------------------

WRITERS, COMMITS = 4, 12


async def write_much(told: Journal, number: int) -> None:
    record = await told.create(new(number), b"x", Secret.new())
    for turn in range(COMMITS):
        if turn == COMMITS // 2:
            await told.note(EventKind.ADOPTED, None)
        record = await told.commit(record, (EventKind.RESET, {"turn": turn}))


async def test_reader_misses_nothing_and_hears_nothing_twice(tmp_path: Path) -> None:
    """Whenever it comes, and wherever it begins, while others write."""
    told = opened(tmp_path)
    last = WRITERS * (COMMITS + 2)
    ids = [vm_id(number) for number in range(WRITERS)]
    heard: list[list[int]] = []

    async def read(after: int) -> None:
        async with told.follow(after, lambda: ids) as (old, news):
            got = [event.sequence async for event in old]
            while not got or got[-1] < last:
                got.append((await news.receive()).sequence)
        heard.append(got)

    with trio.fail_after(PATIENCE_S), told.events.subscribe() as all_news:
        async with trio.open_nursery() as nursery:
            for number in range(WRITERS):
                nursery.start_soon(write_much, told, number)
            for _ in range(last - 1):
                event = await all_news.receive()
                for after in {0, event.sequence // 2, event.sequence}:
                    nursery.start_soon(read, after)
    assert len(heard) > last
    for got in heard:
        assert got == list(range(got[0], last + 1))
    assert {got[0] for got in heard} >= {1, last // 2}


async def test_reader_without_a_number_hears_only_what_comes(tmp_path: Path) -> None:
    told = opened(tmp_path)
    record = await told.create(new(), b"x", Secret.new())
    async with told.follow(None, lambda: [record.id]) as (old, news):
        assert not [event async for event in old]
        await told.commit(record, (EventKind.RESET, {}))
        assert numbers(await take(news, 1)) == [2]


async def test_reader_that_is_ahead(tmp_path: Path) -> None:
    """Of another directory, perhaps; it hears what comes all the same."""
    told = opened(tmp_path)
    record = await told.create(new(), b"x", Secret.new())
    async with told.follow(10**15, lambda: [record.id]) as (old, news):
        assert not [event async for event in old]
        await told.commit(record, (EventKind.RESET, {}))
        assert numbers(await take(news, 1)) == [2]


async def test_reader_that_falls_behind_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = opened(tmp_path, reader_buffer=3)
    async with told.follow(None, list) as (_, news):
        for _ in range(5):
            await told.note(EventKind.RESET, None)
        got = [event.sequence async for event in news]
    assert got == [1, 2, 3]
    async with told.follow(got[-1], list) as (old, _):
        assert [event.sequence async for event in old] == [4, 5]
