"""A host that is asked whether it takes a run at once, without the queue."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import Needs
from supervisor.fleet.keys import Keys
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.taking import REFUSED
from tests.support.memory_engine import Broker, MemoryEngine
from tests.support.simulated_fleet import SimulatedFleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.simulated_fleet import SimulatedHost


_numbers = itertools.count()


def posted() -> Run:
    """A run of host "a"."""
    return Run(id=f"{next(_numbers):036x}", entry="a", needs=Needs())


def of_b() -> Run:
    """One as "b" is to put it on record."""
    return posted().claimed("b", 0)


@asynccontextmanager
async def fleet_of(room: int) -> AsyncIterator[tuple[SimulatedFleet, SimulatedHost]]:
    """With a host "a", which callers ask and which has no room itself, and with "b"."""
    async with trio.open_nursery() as nursery:
        fleet = SimulatedFleet(Broker(nursery, seed=1))
        await fleet.add("a", room=0)
        b = await fleet.add("b", room=room)
        await trio.sleep(5)
        yield fleet, b
        nursery.cancel_scope.cancel()


async def test_it_takes_what_nobody_waits_before(autojump_clock: trio.testing.MockClock) -> None:
    async with fleet_of(room=1) as (fleet, _):
        outcome = await fleet.call("run", "a", Needs())
        assert outcome.told == "answer of run"
        assert fleet.broker.messages["queue"] == fleet.broker.messages["kinds told"] == 0
        assert fleet.check(1) == []


async def test_what_waits_comes_before_what_is_posted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A host with room again does not know of it before it has asked the queue."""
    async with fleet_of(room=1) as (fleet, b):
        async with trio.open_nursery() as callers:
            callers.start_soon(fleet.call, "first", "a", Needs())
            await trio.sleep(0.1)
            callers.start_soon(fleet.call, "waits", "a", Needs())
            await trio.sleep(0.1)
            while "waits" not in fleet.claims:
                assert await b.taking.take_next(of_b().encode()) == REFUSED
                await trio.sleep(0.001)
        assert fleet.check(2) == []


async def test_it_keeps_room_for_those_that_are_on_their_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(room=2) as (fleet, b):
        said = [await b.taking.take_next(of_b().encode()) for _ in range(3)]
        assert [one == REFUSED for one in said] == [False, False, True]
        assert not b.taking.takes_now(of_b())
        await trio.sleep(11)
        assert b.taking.takes_now(of_b())
        assert not b.taking.busy
        # Nobody has sent them: they are given up, and the host that was asked may have them anew.
        kept = [Run.decode(one.value) for one in fleet.broker.tables["runs"].values()]
        assert [(run.state, run.entry) for run in kept] == [(RunState.GIVEN_UP, "a")] * 2
        assert not b.records._known


@pytest.mark.parametrize("scarce", ["memory_free_bytes", "vcpus_free", "tee"])
async def test_it_keeps_what_is_scarce_for_those_that_are_on_their_way(
    scarce: str, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they come to a host that has no room, and wait there while others have."""
    async with fleet_of(room=1) as (_, b):
        one = attrs.evolve(b.look(), tee={"snp": 1})
        many = attrs.evolve(
            one, vms_free=9, memory_free_bytes=9 * one.vm_memory_bytes, vcpus_free=9, tee={"snp": 9}
        )
        facts = attrs.evolve(many, **{scarce: getattr(one, scarce)})
        monkeypatch.setattr(b.taking, "_look", lambda: facts)
        asked = attrs.evolve(of_b(), needs=Needs(tee="snp"))
        assert await b.taking.take_next(asked.encode()) != REFUSED
        asked = attrs.evolve(of_b(), needs=Needs(tee="snp"))
        assert await b.taking.take_next(asked.encode()) == REFUSED


async def test_it_keeps_room_until_a_run_that_has_come_has_taken_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Such as while it finds out whether it starts a confidential guest."""
    async with fleet_of(room=1) as (_, b):
        run = of_b()
        assert await b.taking.take_next(run.encode()) != REFUSED
        async with b.taking.accepted(run.id, run.epoch):
            assert await b.taking.take_next(of_b().encode()) == REFUSED
        await trio.sleep(0.1)
        assert await b.taking.take_next(of_b().encode()) != REFUSED


async def test_what_does_not_come_leaves_its_room_to_what_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(room=1) as (fleet, b):
        assert await b.taking.take_next(of_b().encode()) != REFUSED
        outcome = await fleet.call("waits", "a", Needs())
        assert outcome.told == "answer of waits"
        assert 10 < outcome.waited_s < 60


async def test_a_caller_that_leaves_keeps_no_room(autojump_clock: trio.testing.MockClock) -> None:
    async with fleet_of(room=1) as (fleet, b):
        for leaves_after_s in (0.001, 0.003, 0.006, 0.01, 0.02):
            run = posted()
            with trio.move_on_after(leaves_after_s):
                async with fleet.hosts["a"].entry.post(run, "mallory"):
                    await trio.sleep_forever()
            await trio.sleep(0.1)
            assert not b.taking.busy
            kept = fleet.broker.tables["runs"].get(run.id)
            assert kept is None or Run.decode(kept.value).state is RunState.GIVEN_UP
        assert (await fleet.call("run", "a", Needs())).waited_s < 20


async def test_a_host_that_does_not_answer_leaves_it_to_the_queue(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(room=1) as (fleet, b):
        b.engine.runs = trio.Event()  # as by SIGSTOP
        await fleet.add("c", room=1)
        await trio.sleep(0.1)
        for name in ("one", "other"):
            assert (await fleet.call(name, "a", Needs())).told == f"answer of {name}"
        b.engine.runs.set()
        await trio.sleep(30)
        assert fleet.check(2) == []


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"\xff",
        b"[]",
        of_b().encode().replace(b'"b"', b'"a"'),
        attrs.evolve(of_b(), epoch=2).encode(),
        posted().encode(),
        Run(id="runs.>", entry="a", needs=Needs()).claimed("b", 0).encode(),
        b"[" * 100_000,
        attrs.evolve(of_b(), entry="a" * 1_000_000).encode(),
    ],
    ids=["empty", "bytes", "list", "another's", "epoch", "queued", "id", "deep", "long"],
)
async def test_what_is_no_run_of_this_host_is_refused(
    asked: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Any member can ask."""
    async with fleet_of(room=1) as (fleet, b):
        said = await MemoryEngine(fleet.broker).call("b", "takes", asked, 1)
        assert said == REFUSED
        assert not b.taking.busy
        assert not fleet.broker.tables["runs"]


async def test_an_epoch_of_thousands_of_digits_is_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(room=1) as (fleet, _):
        entry = fleet.hosts["a"].entry
        assert entry.answer("claimed", ["run", "b", "9" * 5000]) is None
        assert entry.answer("claimed", ["run", "b", "9" * 9]) == b"gone"


async def test_a_run_that_is_on_record_already_is_not_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(room=1) as (fleet, b):
        queued = posted()
        run = queued.claimed("b", 0)
        await fleet.hosts["a"].records.create(queued)
        assert await b.taking.take_next(run.encode()) == b""
        b.taking.left(run.id, run.epoch)
        await trio.sleep(0.1)
        assert not b.taking.busy
        assert not b.records._known
        assert await fleet.hosts["a"].records.read(run.id) == queued


async def test_a_run_that_this_host_has_is_not_asked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Any member could have it given up so, while its VM boots."""
    async with fleet_of(room=2) as (fleet, _):
        async with trio.open_nursery() as callers:
            fleet.boot_s = 30
            callers.start_soon(fleet.call, "run", "a", Needs())
            await trio.sleep(0.1)
            (kept,) = fleet.broker.tables["runs"].values()
            assert Run.decode(kept.value).state is RunState.OWNED
            assert await MemoryEngine(fleet.broker).call("b", "takes", kept.value, 1) == REFUSED
        assert fleet.check(1) == []
        assert len(fleet.claims["run"]) == 1


async def test_a_caller_that_leaves_leaves_no_key(autojump_clock: trio.testing.MockClock) -> None:
    """Whichever of the two hosts is the first to give its run up."""
    async with fleet_of(room=1) as (fleet, b):
        a = fleet.hosts["a"]
        for number in range(10):
            run = await Keys(a.engine, a.records).claim(posted(), "mallory", f"{number}", "hash")
            with trio.move_on_after(1):
                async with a.entry.post(run, "mallory"):
                    await trio.sleep_forever()
            await trio.sleep(1)
            assert not b.taking.busy
            assert not fleet.broker.tables["keys"]


async def test_who_comes_while_a_run_is_placed_does_not_wait_for_a_reminder(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its key, just after its record is made and before this host knows."""
    async with fleet_of(room=1) as (fleet, _):
        a, run = fleet.hosts["a"], posted()
        fleet.runs["run"] = run.id
        call = a.engine.call

        async def slow(*asked: Any) -> bytes | None:
            said = await call(*asked)
            await trio.sleep(0.1)
            return said

        monkeypatch.setattr(a.engine, "call", slow)
        answers: list[tuple[str, float]] = []

        async def wait(way: Callable[..., Any]) -> None:
            async with way(run, "alice") as posting:
                here, there = partial(a._here, "run"), partial(a._there, "run")
                _, answer = await posting.land(here, there)
                answers.append((answer, trio.current_time()))

        async with trio.open_nursery() as callers:
            callers.start_soon(wait, a.entry.post)
            await trio.sleep(0.05)
            assert (await a.records.read(run.id)).owner == "b"
            callers.start_soon(wait, a.entry.join)
        (one, other) = answers
        assert one == other


async def test_nobody_else_says_whose_a_run_is_that_is_being_placed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A member that was taken over, and is asked, knows its id before it is on record."""
    async with fleet_of(room=1) as (fleet, b):
        rogue, run = b.engine, posted()

        async def answer(_: str, __: bytes) -> bytes:
            await rogue.call("a", "claimed", f"{run.id} a 1".encode(), 1)
            return REFUSED

        async with rogue.answering("b", answer):
            with trio.move_on_after(0.1):
                async with fleet.hosts["a"].entry.post(run, "alice"):
                    kept = Run.decode(fleet.broker.tables["runs"][run.id].value)
                    assert (kept.state, kept.owner) == (RunState.QUEUED, "")


async def test_who_waits_for_a_run_whose_key_is_anothers_is_served_by_that_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And not told that its host was lost."""
    async with fleet_of(room=0) as (fleet, _):
        a, run = fleet.hosts["a"], posted()
        await a.records.create(run.given_up())
        await a.records.change(run.id, Run.replaced)
        with pytest.raises(Conflict, match="another run has the key"):
            await a.entry._look(run.id)


async def test_a_host_that_says_something_else_is_not_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A member that was taken over may answer anything."""
    async with fleet_of(room=0) as (fleet, b):
        run = posted()
        records = fleet.hosts["a"].records
        theirs = run.claimed("b", 0)
        for told in (b"", b"1", b"1 {}", b"1 " + run.encode(), b"x " + theirs.encode()):
            assert not records.hear_of(theirs, told)
            assert records.known(run.id) is None
        assert records.hear_of(theirs, b"1 " + theirs.encode())
        assert b.room == 0
