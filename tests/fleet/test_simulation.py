"""A small one of what `scripts/bench simulate` runs: a fleet under load, whose hosts die."""

from __future__ import annotations

import trio

from tests.support.memory_engine import Broker
from tests.support.simulated_load import CLASSES, TENANTS, Load, LoadedFleet


async def test_a_loaded_fleet_whose_hosts_die(autojump_clock: trio.testing.MockClock) -> None:
    load = Load(hosts=30, entries=4, runs=600, period_s=120.0, deaths_per_hour=4.0)
    async with trio.open_nursery() as nursery:
        tally = await LoadedFleet(Broker(nursery, seed=1), load).run()
        nursery.cancel_scope.cancel()
    assert tally.twice == 0
    assert tally.wrong == []
    assert sum(tally.posted.values()) == sum(tally.told.values()) == load.runs
    # Of those who did not ask a host that was gone.
    asked = load.runs - tally.told["host died"]
    assert tally.told["answered"] > asked * 0.9 > load.runs * 0.1
    assert tally.deaths
    assert {of for _, of, _ in tally.waits} == set(CLASSES)
    assert {tenant for _, _, tenant in tally.waits} <= set(TENANTS)
