"""Thousands of faults against the fleet's own code, with a broker in memory, on trio's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from supervisor.fleet.facts import Needs
from supervisor.fleet.owner import Owner
from tests.support.memory_engine import Broker
from tests.support.simulated_fleet import SimulatedFleet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.state.record import RelayState
    from supervisor.vm.on_record import OnRecord

HOSTS = "abcde"
RUNS = 120
#: Seconds between two faults, and how long one lasts at most.
APART_S, LONGEST_S = 3.0, 25.0


class Careless(Owner):
    """Asks nobody before it sends. The checker must see what comes of that."""

    async def prove(self, vm: OnRecord, relay: RelayState) -> None:
        await trio.lowlevel.checkpoint()


async def die(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    fleet.hosts[name].die()
    await trio.sleep(for_s)
    await fleet.revive(name)


async def stop(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    """As by SIGSTOP."""
    host = fleet.hosts[name]
    host.engine.runs = trio.Event()
    await trio.sleep(for_s)
    host.engine.runs.set()


async def cut_off(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    """From the broker alone."""
    host = fleet.hosts[name]
    host.engine.cut()
    await trio.sleep(for_s)
    host.engine.reachable = host.alive


async def cut_link(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    for other in HOSTS[:2]:
        fleet.cut(name, other)
    await trio.sleep(for_s)
    fleet.mend_links()


async def isolate(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    for other in HOSTS:
        fleet.cut(name, other)
    await cut_off(fleet, name, for_s)
    fleet.mend_links()


async def fill(fleet: SimulatedFleet, name: str, for_s: float) -> None:
    """Others have taken its room."""
    host = fleet.hosts[name]
    room, host.room = host.room, 0
    await trio.sleep(for_s)
    host.room = room


FAULTS: list[Callable[[SimulatedFleet, str, float], Awaitable[None]]] = [
    die,
    stop,
    cut_off,
    cut_link,
    isolate,
    fill,
]


async def torment(broker: Broker, owner: type[Owner] = Owner) -> tuple[list[str], SimulatedFleet]:
    """What was wrong after many faults."""
    fleet, chance = SimulatedFleet(broker, owner=owner), broker.random
    for name in HOSTS:
        await fleet.add(name, room=4, labels={"zone": "n" if name < "c" else "s"})
    await trio.sleep(2)
    async with trio.open_nursery() as callers:
        over = trio.Event()

        async def make_faults() -> None:
            async with trio.open_nursery() as faults:
                while not over.is_set():
                    name = chance.choice(HOSTS)
                    if fleet.hosts[name].alive and fleet.hosts[name].engine.runs.is_set():
                        fleet.faults += 1
                        fault, for_s = chance.choice(FAULTS), chance.random() * LONGEST_S
                        faults.start_soon(fault, fleet, name, for_s)
                    await trio.sleep(chance.expovariate(1 / APART_S))

        callers.start_soon(make_faults)
        async with trio.open_nursery() as posting:
            for number in range(RUNS):
                needs = Needs(labels={"zone": chance.choice("ns")} if chance.random() < 0.5 else {})
                posting.start_soon(fleet.call, f"r{number}", chance.choice(HOSTS), needs)
                await trio.sleep(chance.expovariate(1.0))
            await trio.sleep(60)
            over.set()
    await trio.sleep(120)
    return fleet.check(RUNS), fleet


@pytest.mark.parametrize("seed", [9, 29, 39])
async def test_no_run_comes_twice_and_each_caller_is_told_the_truth(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0.03, seed=seed)
        wrong, fleet = await torment(broker)
        assert wrong == []
        answered = sum(one.told.startswith("answer") for one in fleet.outcomes)
        assert answered > RUNS / 4
        assert fleet.faults > RUNS / 4
        nursery.cancel_scope.cancel()


async def test_the_checker_sees_a_host_that_does_not_ask(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for seed in range(20):  # not every time is there a fault at the wrong moment
        async with trio.open_nursery() as nursery:
            wrong, _ = await torment(Broker(nursery, lies=0.03, seed=seed), owner=Careless)
            nursery.cancel_scope.cancel()
        if any("agents" in one for one in wrong):
            return
    pytest.fail("no computation came to two agents")
