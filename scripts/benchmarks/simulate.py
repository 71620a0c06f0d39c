"""A fleet of a thousand hosts under load, simulated: how soon runs are placed, and how fairly.

    scripts/bench simulate [--runs 1000000] [--hosts 1000] [--processes 1] [--results DIR]

The placement, the leases and the records are the real ones; the broker is in memory, time is
simulated, and QEMUs are sleeps. Hosts die. One tenant floods the fleet at times. Each process has
a fleet of its own and its part of the runs. Ctrl-C ends it with what was posted so far.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import signal
import time
from array import array
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio
import trio.testing
from rich.console import Console

from scripts.benchmarks import facts, figures
from supervisor.fleet import members
from tests.support.memory_engine import Broker
from tests.support.simulated_load import (
    CLASSES,
    FLOOD,
    NORMAL,
    OVERLOAD,
    TENANTS,
    Load,
    LoadedFleet,
    Tally,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

_TOLD_S = 60.0
#: Of the machine; guests and QEMU have no part in this.
_FACTS = ("date", "commit", "cpu", "cores", "memory_gb", "kernel", "load_at_start", "python")

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=Load().runs, help="of all processes")
    parser.add_argument("--hosts", type=int, default=Load().hosts, help="of each process")
    parser.add_argument("--entries", type=int, default=Load().entries, help="that callers ask")
    parser.add_argument("--seed", type=int, default=1, help="of the first process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("results"))


def main(wanted: argparse.Namespace) -> None:
    machine = facts.facts(os.getloadavg(), None, None)
    runs = wanted.runs // wanted.processes
    load = Load(hosts=wanted.hosts, entries=wanted.entries, runs=runs)
    seeds = range(wanted.seed, wanted.seed + wanted.processes)
    begun = time.monotonic()
    # Ctrl-C goes to all processes, and each of them ends what it has begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with get_context("spawn").Pool(wanted.processes) as pool:
        tallies = pool.map(functools.partial(_simulate, load), seeds, chunksize=1)
    found = summary(tallies)
    written = {
        "machine": {name: machine[name] for name in _FACTS},
        "load": attrs.asdict(load) | {"seeds": list(seeds), "tenants": TENANTS, "classes": CLASSES},
        "took_s": round(time.monotonic() - begun),
        **found,
    }
    file = wanted.results / f"{datetime.now(UTC):%Y-%m-%d}-simulation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(written, indent=2) + "\n")
    try:
        from scripts.benchmarks import simulation_picture  # needs what is installed only for it
    except ModuleNotFoundError:
        console.print("no picture: matplotlib is not installed (pip install -e .[bench])")
    else:
        simulation_picture.draw(tallies, found, load, file.with_suffix(".svg"))
    console.print_json(json.dumps(found))
    console.print(str(file))


def _simulate(load: Load, seed: int) -> Tally:
    """In a process of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.set_threshold(200_000, 50, 100)
    # All hosts are in this process: what each would read by itself is read once.
    members._read = functools.lru_cache(8192)(members._read)
    return trio.run(_run, load, seed, clock=trio.testing.MockClock(autojump_threshold=0))


async def _run(load: Load, seed: int) -> Tally:
    async with trio.open_nursery() as nursery:
        loaded = LoadedFleet(Broker(nursery, seed=seed), load)

        def stop(*_: object) -> None:
            loaded.stopped = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        nursery.start_soon(_tell, loaded.tally, seed)
        tally = await loaded.run()
        nursery.cancel_scope.cancel()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends its processes
    return tally


async def _tell(tally: Tally, seed: int) -> None:
    """Say how far it is, each simulated minute."""
    begun = time.monotonic()
    while True:
        await trio.sleep(_TOLD_S)
        done, took = sum(tally.told.values()), time.monotonic() - begun
        wrong = f", {len(tally.wrong)} wrong" if tally.wrong else ""
        told = f"seed {seed}: {done:,} runs in {took:.0f} s, simulated {trio.current_time():.0f} s"
        print(f"{told}, {tally.deaths} deaths{wrong}", flush=True)


# --- what it comes to -----------------------------------------------------------------------


def waits(tallies: Iterable[Tally], phase: str, name: str) -> array[float]:
    """Of a class or of a tenant, in seconds."""
    found = array("d")
    for tally in tallies:
        for (when, of, tenant), seconds in tally.waits.items():
            if when == phase and name in (of, tenant):
                found.extend(seconds)
    return found


def summary(tallies: list[Tally]) -> dict[str, Any]:
    runs = sum(sum(one.told.values()) for one in tallies)
    messages = sum((one.messages for one in tallies), start=type(tallies[0].messages)())
    told = sum((one.told for one in tallies), start=type(tallies[0].told)())
    return {
        "runs": runs,
        "simulated_hours": round(sum(one.simulated_s for one in tallies) / 3600, 2),
        "told": dict(told),
        "deaths": sum(one.deaths for one in tallies),
        "runs_on_hosts_that_died": sum(one.lost for one in tallies),
        "claimed_again": sum(one.claimed_again for one in tallies),
        "handed_back": sum(one.handed_back for one in tallies),
        "agents_that_got_a_computation_twice": sum(one.twice for one in tallies),
        "wrong": [problem for one in tallies for problem in one.wrong],
        "messages_a_run": {name: round(count / runs, 2) for name, count in messages.items()},
        "seconds_to_place": {
            phase: {name: _spread(waits(tallies, phase, name)) for name in (*CLASSES, *TENANTS)}
            for phase in (NORMAL, OVERLOAD)
        },
        "fairness_in_overload": _fairness(tallies),
    }


def _spread(seconds: array[float]) -> dict[str, float]:
    if not seconds:
        return {"runs": 0}
    at = {f"p{percent}": figures.percentile(seconds, percent) for percent in (50, 99)}
    longest = {"longest": max(seconds)}
    return {"runs": len(seconds)} | {name: round(one, 3) for name, one in (at | longest).items()}


def _fairness(tallies: list[Tally]) -> dict[str, Any]:
    """Jain's index of what each tenant got in overloads, of its max-min fair share."""
    asked = {name: sum(one.posted[OVERLOAD, name] for one in tallies) for name in TENANTS}
    got = {name: sum(one.placed[OVERLOAD, name] for one in tallies) for name in TENANTS}
    fair = shares(asked, sum(got.values()))
    parts = {name: got[name] / fair[name] for name in TENANTS if fair[name]}
    index = sum(parts.values()) ** 2 / (len(parts) * sum(one**2 for one in parts.values()) or 1)
    return {
        "jain": round(index, 4),
        "got_of_fair_share": {name: round(part, 3) for name, part in parts.items()},
        "flood_asked_of_all": round(asked[FLOOD] / (sum(asked.values()) or 1), 3),
    }


def shares(asked: dict[str, int], whole: float) -> dict[str, float]:
    """Max-min fair: who asks for less than an equal share gets it; the others share the rest."""
    found: dict[str, float] = {}
    for name in sorted(asked, key=asked.__getitem__):
        found[name] = min(asked[name], whole / (len(asked) - len(found)))
        whole -= found[name]
    return found
