"""Kills, stops and cuts off the hosts of a fleet, and checks after each fault that no computation
reached two agents, none that was accepted is lost, each VM is of one host, and each caller was told
the truth, once.

scripts/chaos --fleet            every fault at every step that it is for
scripts/chaos --fleet --short    a few of them
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import attrs

from tests.chaos import table
from tests.chaos.fleet.kinds import ALL, SHORT
from tests.chaos.kinds import Row

_CHECKOUT = Path(__file__).parents[3]
#: Namespaces of its own, which go with its first process; that one reaps what others leave.
_APART = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid"),
    *("--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"),
)


@attrs.define
class Wanted:
    """What the command line asks for."""

    short: bool
    only: str
    jobs: int
    seed: int
    careless: bool
    results: Path | None
    verbose: bool
    fleet: bool

    @property
    def names(self) -> list[str]:
        all_of_them = [one.name for one in ALL if not self.short or one.name in SHORT]
        return [one for one in all_of_them if any(word in one for word in self.only.split(";"))]


class Fleets:
    """As many as jobs, each of which takes the next injection."""

    def __init__(self, wanted: Wanted, directory: Path) -> None:
        self._wanted = wanted
        self._directory = directory
        self._names: SimpleQueue[str] = SimpleQueue()
        names = wanted.names
        # Faults that last long and such that do not, side by side.
        random.Random(wanted.seed).shuffle(names)
        for name in names:
            self._names.put(name)
        self._lock = threading.Lock()
        self._made = 0
        self.verdicts: list[dict[str, Any]] = []

    def run(self) -> None:
        jobs = max(1, min(self._wanted.jobs, self._names.qsize()))
        with ThreadPoolExecutor(jobs) as threads:
            for done in [threads.submit(self._work) for _ in range(jobs)]:
                done.result()

    def stop(self, *_: object) -> None:
        """Make no more of them. What is under way is finished."""
        with suppress(Empty):
            while True:
                self._names.get_nowait()

    def _work(self) -> None:
        while not self._names.empty():
            with self._lock:
                self._made += 1
                at = self._directory / f"f{self._made}"
            at.mkdir()
            self._use(at)

    def _use(self, at: Path) -> None:
        """Have one fleet make injections, until there are no more or one finds something."""
        words = [sys.executable, "-m", "tests.chaos.fleet.worker", str(at)]
        with (
            Path(f"{at}.log").open("wb") as log,
            subprocess.Popen(
                [*_APART, *words, *(["--careless"] if self._wanted.careless else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=_CHECKOUT,
                env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
            ) as worker,
        ):
            assert worker.stdin
            assert worker.stdout
            if not worker.stdout.readline():
                self._add({"name": "a fleet", "problems": [f"it does not start, see {at}.log"]})
                return
            while True:
                try:
                    name = self._names.get_nowait()
                except Empty:
                    break
                worker.stdin.write(f"{name}\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                died = {"name": name, "problems": [f"its fleet ended, see {at}.log"]}
                verdict = json.loads(line) if line else died
                self._add(verdict)
                if verdict["problems"]:
                    return
            worker.stdin.close()
            if worker.wait():
                self._add({"name": "the end", "problems": [f"it is none in good order: {at}.log"]})
                return
        shutil.rmtree(at)
        Path(f"{at}.log").unlink()

    def _add(self, verdict: dict[str, Any]) -> None:
        with self._lock:
            self.verdicts.append(verdict)
            for problem in verdict["problems"]:
                print(f"!! {verdict['name']}: {problem}", flush=True)
            if self._wanted.verbose and not verdict["problems"]:
                print(
                    f"{verdict['took_s']:5.1f} s  {verdict['name']}: {verdict['told']},"
                    f" {verdict['record']}",
                    flush=True,
                )


def _rows(verdicts: list[dict[str, Any]]) -> list[Row]:
    rows: dict[str, Row] = {}
    for one in verdicts:
        kind = next((found.kind for found in ALL if found.name == one["name"]), one["name"])
        row = rows.setdefault(kind, Row(kind))
        row.injected += 1
        row.lost += bool(one["problems"])
        row.problems += one["problems"]
        row.states.update(one.get("told", []))
    order = [one.kind for one in ALL]
    return sorted(rows.values(), key=lambda row: order.index(row.name) if row.name in order else -1)


def _keep(rows: list[Row], took_s: float, jobs: int, file: Path) -> None:
    kinds = [
        {"fault": row.name, "times": row.injected, "not held": row.lost, "told": dict(row.states)}
        for row in rows
    ]
    totals = {"kinds": len(rows), "injections": sum(row.injected for row in rows)}
    found = totals | {"not held": sum(row.lost for row in rows), "seconds": round(took_s)}
    file.write_text(json.dumps(found | {"fleets": jobs, "each": kinds}, indent=1) + "\n")


def main() -> int:
    wanted = _arguments()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    began = time.monotonic()
    fleets = Fleets(wanted, directory)
    signal.signal(signal.SIGTERM, fleets.stop)
    fleets.run()
    rows, took_s = _rows(fleets.verdicts), time.monotonic() - began
    print(table.fleet_text(rows, took_s))
    if wanted.results:
        _keep(rows, took_s, wanted.jobs, wanted.results)
    if all(row.held for row in rows):
        directory.rmdir()
        return 0
    print(f"what is to be looked at is in {directory}")
    return 1


def _arguments() -> Wanted:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos --fleet",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--fleet", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help="a few of all")
    parser.add_argument("--only", default="", help="those named so: words, with semicolons")
    parser.add_argument("--jobs", type=int, default=4, help="fleets at the same time")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument("--careless", action="store_true", help="hosts that prove nothing")
    parser.add_argument("--results", type=Path, help="a file for the figures")
    parser.add_argument("--verbose", action="store_true", help="a line for each injection")
    return Wanted(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
