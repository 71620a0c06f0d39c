"""What members owe a large fleet: they wake for what concerns them, and share room fairly."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run
from tests.support.memory_engine import Broker, MemoryEngine
from tests.support.simulated_fleet import SimulatedFleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_GIB = 2**30
WIDE = Needs(memory_bytes=8 * _GIB)


@asynccontextmanager
async def fleet_of(**asked: object) -> AsyncIterator[SimulatedFleet]:
    """With a host "a" that callers ask and that has no room itself."""
    async with trio.open_nursery() as nursery:
        fleet = SimulatedFleet(Broker(nursery, seed=1), **asked)  # type: ignore[arg-type]
        await fleet.add("a", room=0)
        yield fleet
        nursery.cancel_scope.cancel()


def claimed(fleet: SimulatedFleet) -> list[str]:
    """The names of runs, in the order in which hosts took them."""
    return sorted(fleet.claims, key=lambda name: fleet.claims[name][0])


async def test_a_host_with_room_again_takes_the_next_run_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        await fleet.add("b", room=1)
        await trio.sleep(2)
        async with trio.open_nursery() as callers:
            callers.start_soon(fleet.call, "first", "a", Needs())
            callers.start_soon(fleet.call, "second", "a", Needs())
        (one, other) = (fleet.outcomes[0], claimed(fleet)[1])
        # On the simulation's clock: what messages take, and no more.
        assert fleet.claims[other][0] - fleet.claims[one.run][0] - one.waited_s < 0.06


async def test_what_others_tell_of_their_room_wakes_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        b = await fleet.add("b", room=4)
        await trio.sleep(2)
        members = fleet.hosts["a"].members
        changed = members.changed.next()
        for b.room in (3, 2, 1, 0):
            await trio.sleep(4)
            assert members.hosts["b"].room == b.room
        assert not changed.is_set()
        b.tee = ("snp",)
        await trio.sleep(4)
        assert changed.is_set()


async def test_needs_are_narrowed_anew_when_a_host_comes_or_goes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        members = fleet.hosts["a"].members
        await fleet.add("b", room=1, vm_memory_bytes=8 * _GIB, labels={"disk": "fast"})
        await trio.sleep(1)
        wide = members.narrowed(WIDE)
        assert wide == Needs(memory_bytes=8 * _GIB, labels={"disk": "fast"})
        assert members.narrowed(WIDE) is wide
        await fleet.add("c", room=1, vm_memory_bytes=16 * _GIB)
        await trio.sleep(1)
        assert members.narrowed(WIDE) == Needs(memory_bytes=8 * _GIB)
        fleet.hosts["b"].die()
        await trio.sleep(15)
        assert members.narrowed(WIDE) == Needs(memory_bytes=16 * _GIB)


async def test_a_host_that_few_runs_need_is_the_last_to_take_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        special = {"vm_memory_bytes": 8 * _GIB, "tee": ("snp",), "labels": {"disk": "fast"}}
        for number, (name, more) in enumerate(special.items()):
            await fleet.add(f"special-{number}", room=4, **{name: more})
        await fleet.add("common", room=4)
        await trio.sleep(2)
        async with trio.open_nursery() as callers:
            for number in range(4):
                callers.start_soon(fleet.call, f"r{number}", "a", Needs())
                await trio.sleep(0.5)  # a host takes one after the other
        assert {len(host.disk) for host in fleet.hosts.values() if host.name != "common"} == {0}


async def test_runs_that_one_host_can_have_wait_no_longer_than_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        await fleet.add("wide", room=1, vm_memory_bytes=8 * _GIB)
        await trio.sleep(2)
        posted = []
        async with trio.open_nursery() as callers:
            for number in range(24):
                needs = WIDE if number % 6 == 5 else Needs()
                callers.start_soon(fleet.call, f"r{number}", "a", needs, f"owner {number}")
                posted.append(f"r{number}")
                await trio.sleep(0.1)
        assert claimed(fleet) == posted


async def test_messages_about_runs_that_are_over_cost_their_kind_no_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        await fleet.add("wide", room=1, vm_memory_bytes=8 * _GIB)
        await trio.sleep(2)
        kind = fleet.hosts["a"].members.narrowed(WIDE).kind
        async with trio.open_nursery() as callers:
            callers.start_soon(fleet.call, "first", "a", Needs())
            await trio.sleep(0.1)
            for number in range(3):
                message = (
                    b"0 "
                    + Run(
                        id="0f109a90-0000-4000-8000-000000000000", entry="a", needs=Needs()
                    ).encode()
                )
                await MemoryEngine(fleet.broker).enqueue(kind, message, f"{number}")
            callers.start_soon(fleet.call, "second", "a", WIDE)
            await trio.sleep(0.1)
            callers.start_soon(fleet.call, "third", "a", Needs())
        assert claimed(fleet) == ["first", "second", "third"]


async def test_runs_that_wait_for_a_rare_host_hold_up_none_of_the_same_owner(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(boot_s=20.0, compute_s=20.0) as fleet:
        await fleet.add("wide", room=1, vm_memory_bytes=8 * _GIB)
        await fleet.add("common", room=1)
        await trio.sleep(2)
        async with trio.open_nursery() as callers:
            for number in range(20):
                callers.start_soon(fleet.call, f"wide {number}", "a", WIDE, "owner")
            await trio.sleep(1)
            callers.start_soon(fleet.call, "common", "a", Needs(), "owner")
        assert claimed(fleet)[1] == "common"


async def test_a_message_that_comes_again_does_not_end_the_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of(boot_s=20.0, compute_s=20.0) as fleet:
        await fleet.add("b", room=4)
        await trio.sleep(2)
        async with trio.open_nursery() as callers:
            callers.start_soon(fleet.call, "run", "a", Needs())
            await trio.sleep(1)
            kind = fleet.hosts["a"].members.narrowed(Needs()).kind
            again = b"0 " + Run(id=fleet.runs["run"], entry="a", needs=Needs()).encode()
            await MemoryEngine(fleet.broker).enqueue(kind, again, "a reminder")
        assert fleet.check(1) == []
        assert fleet.outcomes[0].told == "answer of run"


async def test_one_owner_whose_runs_wait_keeps_no_other_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fleet_of() as fleet:
        await fleet.add("b", room=1)
        await trio.sleep(2)
        limits = attrs.evolve(fleet.hosts["a"].entry._limits, max_vms=1, queue=1)
        fleet.hosts["a"].entry._limits = limits
        async with trio.open_nursery() as callers:
            for number in range(5):
                callers.start_soon(fleet.call, f"r{number}", "a", Needs(), "alice")
            await trio.sleep(0.1)
            callers.start_soon(fleet.call, "other", "a", Needs(), "bob")
        told = {outcome.run: outcome.told for outcome in fleet.outcomes}
        assert list(told.values()).count("AtCapacity") == 3
        assert told["other"] == "answer of other"
