"""What large bodies cost: memory, and how long others wait meanwhile.

    scripts/bench bodies [--posts 8] [--json FILE]

The largest computation, written as numbers, is 80 MB of JSON. Several are posted at the same time
to a supervisor with stand-ins for QEMU. Meanwhile ``GET /health`` is asked again and again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scripts.benchmarks import client, figures, host
from supervisor.config import MAX_COMPUTATION

if TYPE_CHECKING:
    import argparse

_MB = 1e6
_PAUSE_S = 0.01
#: Until memory that is not needed any more has gone back.
_SETTLE_S = 5.0

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--posts", type=int, default=8, help="bodies at once")
    parser.add_argument("--ports", default="61000-65535", help="host ports for the VMs, three each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    request = client.post("/run", _largest(), "respond-async")
    with host.opened() as at, host.supervisor(at, wanted.ports) as supervisor:
        before = _resident(supervisor.process.pid, "VmRSS")
        over = threading.Event()
        with ThreadPoolExecutor(wanted.posts + 1) as threads:
            asked = threads.submit(_ask_health, supervisor.port, over)
            begun = time.monotonic()
            posted = [threads.submit(_post, supervisor.port, request) for _ in range(wanted.posts)]
            answers = Counter(one.result() for one in posted)
            took_s = time.monotonic() - begun
            over.set()
            waits_s = asked.result()
        peak = _resident(supervisor.process.pid, "VmHWM")
        time.sleep(_SETTLE_S)
        after = _resident(supervisor.process.pid, "VmRSS")
    statuses = ", ".join(f"{count} times {status}" for status, count in answers.items())
    detail = f"{wanted.posts} bodies of {len(request) / _MB:.0f} MB in {took_s:.1f} s: {statuses}"
    waits = figures.milliseconds(waits_s)
    found = [
        figures.Figure("peak of memory", "MB", peak / _MB, 400, detail=detail),
        figures.Figure(
            "memory that stays",
            "MB",
            (after - before) / _MB,
            50,
            detail=f"{before / _MB:.0f} MB before",
        ),
        figures.Figure(
            "longest wait for /health",
            "ms",
            waits["max_ms"],
            250,
            detail=f"{len(waits_s)} asked, median {waits['p50_ms']:.1f} ms",
            more=waits,
        ),
    ]
    console.print(figures.table(found, "large bodies"))
    console.print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if wanted.json:
        wanted.json.write_text(json.dumps([one.as_json() for one in found], indent=2) + "\n")


def _largest() -> bytes:
    return b'{"computation": [' + b", ".join([b"255"] * MAX_COMPUTATION) + b"]}"


def _post(port: int, request: bytes) -> int:
    with client.Connection(port) as connection:
        return connection.ask(request)[0]


def _ask_health(port: int, over: threading.Event) -> list[float]:
    """How long each answer took, in seconds."""
    waits_s = []
    with client.Connection(port) as connection:
        while not over.wait(_PAUSE_S):
            begun = time.perf_counter()
            connection.ask(client.get("/health"))
            waits_s.append(time.perf_counter() - begun)
    return waits_s


def _resident(pid: int, field: str) -> int:
    """A field of proc_pid_status(5), in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024
