"""What a fleet adds to a run, with stand-ins for QEMU and a real NATS with synced writes.

    scripts/bench fleet [--rounds 200] [--seconds 20] [--servers 1] [--json FILE]

By turns, a run is posted to a supervisor that is alone; to a member that serves it itself; and to
a member that has another one serve it. Then as many as go, eight at a time: of those that another
member serves some wait in the queue. All on this machine, so the members and the broker's servers
share its processors and its disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from scripts.benchmarks import client, figures, host
from supervisor.config import Address
from supervisor.fleet import authority
from supervisor.fleet.authority import Member

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_AT_ONCE = 8
_NET = "127.98.0"
_PATIENCE_S = 60.0
_GOAL_MS = 15.0

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=200, help="runs of each way, by turns")
    parser.add_argument("--seconds", type=float, default=20, help="of as many as go, each way")
    parser.add_argument("--servers", type=int, default=1, choices=(1, 3), help="of NATS")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        names = "abc" if wanted.servers == 3 else "ab"
        members = [Member(name, Address(f"{_NET}.{at}", 9022)) for at, name in enumerate(names, 1)]
        brokers = [
            stack.enter_context(_broker(directory, member, members))
            for member in members[: wanted.servers]
        ]
        alone = stack.enter_context(_supervisor({}))
        a, b = (stack.enter_context(_supervisor(_settings(directory, name))) for name in ("a", "b"))
        _wait_for_members(a.port, 2)
        ways = {
            "alone": (alone.port, _run({})),
            "a member that serves it": (a.port, _run({})),
            "another member serves it": (a.port, _run({"host": {"labels": {"host": "b"}}})),
        }
        found = _one_by_one(ways, wanted.rounds)
        found += _as_many_as_go(ways, wanted.seconds, brokers)
        del b
    title = f"{wanted.servers} server{'s' * (wanted.servers > 1)} of NATS, synced writes"
    console.print(figures.table(found, title))
    console.print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if wanted.json:
        wanted.json.write_text(json.dumps([one.as_json() for one in found], indent=2) + "\n")


# --- what is measured -----------------------------------------------------------------------


def _run(members: dict[str, object]) -> bytes:
    return client.post("/run", json.dumps({"computation": "e30=", **members}).encode())


def _one_by_one(ways: dict[str, tuple[int, bytes]], rounds: int) -> list[figures.Figure]:
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (port, request) in ways.items():
            with client.Connection(port) as connection:
                begun = time.perf_counter()
                status, body = connection.ask(request)
                took[name].append(time.perf_counter() - begun)
                assert status == 200, body
                _end(connection, body)
    medians = {name: statistics.median(seconds) * 1000 for name, seconds in took.items()}
    found = []
    for name, seconds in took.items():
        more = figures.milliseconds(seconds)
        detail = f"p50 {more['p50_ms']:.1f}, p99 {more['p99_ms']:.1f} ms, n={rounds}, by turns"
        found.append(figures.Figure(name, "ms", medians[name], detail=detail, more=more))
    for name in list(ways)[1:]:
        added = medians[name] - medians["alone"]
        found.append(figures.Figure(f"{name}: added", "ms", added, _GOAL_MS))
    return found


def _as_many_as_go(
    ways: dict[str, tuple[int, bytes]], seconds: float, brokers: list[psutil.Process]
) -> list[figures.Figure]:
    found = []
    for name, (port, request) in ways.items():
        before, begun = _cpu_s(brokers), time.monotonic()
        count = _flood(port, request, seconds)
        took = time.monotonic() - begun
        used = (_cpu_s(brokers) - before) / took * 100
        detail = f"{_AT_ONCE} at once for {took:.0f} s; the broker took {used:.0f} % of a core"
        found.append(figures.Figure(f"runs, {name}", "/s", count / took, detail=detail))
    memory = sum(one.memory_info().rss for one in brokers) / 1e6
    found.append(figures.Figure("memory of the broker", "MB", memory, detail="RSS of all servers"))
    return found


def _flood(port: int, request: bytes, seconds: float) -> int:
    over, done = time.monotonic() + seconds, [0] * _AT_ONCE

    def post(number: int) -> None:
        with client.Connection(port) as connection:
            while time.monotonic() < over:
                status, body = connection.ask(request)
                assert status == 200, body
                _end(connection, body)
                done[number] += 1

    threads = [threading.Thread(target=post, args=(number,)) for number in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def _end(connection: client.Connection, answer: bytes) -> None:
    vm_id = json.loads(answer)["id"]
    status, body = connection.ask(client.delete(f"/vms/{vm_id}"))
    assert status == 204, body


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


# --- what it is measured of -----------------------------------------------------------------


@contextmanager
def _broker(directory: Path, member: Member, members: list[Member]) -> Iterator[psutil.Process]:
    """A server of NATS, whose files have its own paths in them."""
    at = directory / member.name
    authority.make(directory / "made", members, installed=at, store=at / "store")
    at.mkdir()
    for file in (directory / "made" / member.name).iterdir():
        (at / file.name).write_bytes(file.read_bytes())
    program = Path(sys.executable).with_name("nats-server")
    command = [str(program), "-c", str(at / "nats.conf")]
    with (at / "nats.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _settings(directory: Path, name: str) -> dict[str, str]:
    """Of a member: its own files, whether it has a server or not."""
    at = directory / name
    if not at.exists():
        at.mkdir()
        for file in (directory / "made" / name).iterdir():
            (at / file.name).write_bytes(file.read_bytes())
    lines = (at / "fleet.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines) | {
        "MANAGER_FLEET_DIR": str(at),
        "MANAGER_FLEET_LABELS": f"host={name}",
    }


@contextmanager
def _supervisor(settings: dict[str, str]) -> Iterator[host.Supervisor]:
    with host.opened() as at, host.supervisor(at, _ports(), **settings) as supervisor:
        yield supervisor


_next = iter(range(50_000, 65_000, 4_000))


def _ports() -> str:
    first = next(_next)
    return f"{first}-{first + 3_999}"


def _wait_for_members(port: int, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with client.Connection(port) as connection:
        while len(connection.json(client.get("/hosts"))[1]["hosts"]) < count:
            if time.monotonic() > deadline:
                sys.exit("bench: the members do not find each other")
            time.sleep(0.1)
