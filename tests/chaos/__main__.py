"""Kills, fills, cuts and garbles, and checks after each fault that nothing was lost or left.

scripts/chaos            every kind of fault, and a crash at every step: a quarter of an hour
scripts/chaos --short    every kind once, and few of the steps: less than a minute
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import attrs

from tests.chaos import (
    faults_clients,
    faults_clones,
    faults_files,
    faults_held,
    faults_line,
    faults_pool,
    faults_qemu,
    faults_qmp,
    faults_supervisor,
    faults_templates,
    guests,
    kinds,
    sudo,
    sweep,
    table,
)
from tests.chaos.case import Broken
from tests.chaos.kinds import KINDS, Kind, Row
from tests.chaos.place import Place, kill_all_below
from tests.chaos.zygote import Zygote

#: Declared by being imported.
_FAULTS = (
    *(faults_qemu, faults_qmp, faults_supervisor, faults_clients, faults_files),
    *(faults_templates, faults_clones, faults_held, faults_pool, guests, faults_line, sudo),
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.claim import Verdict

#: In the short form so many steps of each scenario, spread over all.
_SHORT_POINTS = 2


@attrs.frozen
class Wanted:
    """What the command line asks for."""

    short: bool
    only: str
    jobs: int
    seed: int
    verbose: bool
    keep: bool
    sudo: str


def main() -> int:
    wanted = _arguments()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    if wanted.sudo:
        directory.chmod(0o755)
    zygote = Zygote()
    kinds.KEEP = wanted.keep
    faults_supervisor.CHANCE.seed(wanted.seed)
    began = time.monotonic()
    # What is under way is finished, so that nothing of ours is left behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = _Run(wanted, directory, zygote)
    try:
        rows = run.all()
    finally:
        run.close()
        zygote.close()
        kill_all_below(directory)
    print(table.text(rows, time.monotonic() - began, wanted.seed))
    if all(row.held for row in rows) and not wanted.keep:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    print(f"what is to be looked at is in {directory}")
    return 0 if all(row.held for row in rows) else 1


def _arguments() -> Wanted:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="every kind once, few crash points")
    parser.add_argument("--only", default="", help="kinds named so: words, with commas")
    parser.add_argument("--jobs", type=int, default=2, help="injections at the same time")
    parser.add_argument("--seed", type=int, default=None, help="of what is left to chance")
    parser.add_argument("--verbose", action="store_true", help="a line for each injection")
    parser.add_argument("--keep", action="store_true", help="leave all files")
    parser.add_argument(
        "--sudo",
        default="",
        metavar="USER",
        help="also the kinds with sudo; the user may have no password asked; run this as root",
    )
    given = vars(parser.parse_args())
    if given["seed"] is None:
        given["seed"] = random.SystemRandom().randrange(10**6)
    return Wanted(**given)


class _Run:
    """All that is wanted, on as many places as jobs."""

    def __init__(self, wanted: Wanted, directory: Path, zygote: Zygote) -> None:
        self._wanted = wanted
        self._zygote = zygote
        self._chance = random.Random(wanted.seed)
        self._places: SimpleQueue[Place] = SimpleQueue()
        self._all_places = [Place(directory / f"p{n}", wanted.sudo) for n in range(wanted.jobs)]
        for place in self._all_places:
            self._places.put(place)
        self._printing = threading.Lock()

    def close(self) -> None:
        for place in self._all_places:
            place.close()

    def all(self) -> list[Row]:
        rows: list[Row] = []
        tasks: list[tuple[Row, str, Callable[[Place], Verdict | None]]] = []
        for one in KINDS:
            times = one.short if self._wanted.short else one.times
            if not times or not self._is_wanted(one.name) or (one.sudo and not self._wanted.sudo):
                continue
            rows.append(Row(one.name))
            tasks += [(rows[-1], one.name, self._injection(one)) for _ in range(times)]
        for scenario in sweep.SCENARIOS:
            row = Row(f"supervisor SIGKILLed in: {scenario.name}")
            if not self._is_wanted(row.name) or (self._wanted.short and not scenario.short):
                continue
            rows.append(row)
            tasks += [
                (row, point, self._crash(point, scenario)) for point in self._points(row, scenario)
            ]
        threads = ThreadPoolExecutor(self._wanted.jobs)
        try:
            for row, verdict in threads.map(self._do, tasks):
                if verdict:
                    row.add(verdict)
        finally:
            threads.shutdown(cancel_futures=True)
        return rows

    def _is_wanted(self, name: str) -> bool:
        return any(word in name for word in self._wanted.only.split(","))

    def _points(self, row: Row, scenario: sweep.Scenario) -> list[str]:
        place = self._places.get()
        try:
            points = sweep.points_of(scenario, place, self._zygote)
        except Broken as problem:
            row.problems.append(str(problem))
            return []
        finally:
            self._places.put(place)
        if self._wanted.short:
            return self._chance.sample(points, min(_SHORT_POINTS, len(points)))
        return points

    def _injection(self, one: Kind) -> Callable[[Place], Verdict]:
        return lambda place: kinds.inject(one, place, self._zygote)

    def _crash(self, point: str, scenario: sweep.Scenario) -> Callable[[Place], Verdict | None]:
        return lambda place: sweep.die_at(point, scenario, place, self._zygote)

    def _do(
        self, task: tuple[Row, str, Callable[[Place], Verdict | None]]
    ) -> tuple[Row, Verdict | None]:
        row, what, act = task
        place = self._places.get()
        began = time.monotonic()
        try:
            verdict = act(place)
        finally:
            self._places.put(place)
        with self._printing:
            for problem in verdict.problems if verdict else []:
                print(f"!! {row.name}: {problem}", flush=True)
            if self._wanted.verbose:
                states = dict(verdict.states) if verdict else "not reached"
                took = time.monotonic() - began
                print(f"{took:5.1f} s  {row.name}: {what}: {states}", flush=True)
        return row, verdict


if __name__ == "__main__":
    raise SystemExit(main())
