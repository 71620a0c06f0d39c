"""What many runs leave behind in a supervisor: memory and descriptors.

    scripts/bench runs [--runs 20000] [--json FILE]

Each run is posted, answered, and its VM ended, with stand-ins for QEMU; eight at the same time.
Records of ended VMs are kept as many as there are by then after the first thousand.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scripts.benchmarks import client, figures, host

if TYPE_CHECKING:
    import argparse

_AT_ONCE = 8
_FIRST = 1000
#: Less than the first runs, so that from then on each ended VM has another one removed.
_KEPT = 500
_SETTLE_S = 5.0

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=20000, help="of all; the first thousand count")
    parser.add_argument("--ports", default="61000-65535", help="host ports for the VMs, three each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    kept = {"MANAGER_KEEP_ENDED": str(_KEPT)}
    with host.opened() as at, host.supervisor(at, wanted.ports, **kept) as supervisor:
        begun = time.monotonic()
        _run(supervisor.port, _FIRST)
        time.sleep(_SETTLE_S)
        before, descriptors_before = supervisor.memory(), supervisor.descriptors()
        _run(supervisor.port, wanted.runs - _FIRST)
        took_s = time.monotonic() - begun
        time.sleep(_SETTLE_S)
        after, descriptors = supervisor.memory(), supervisor.descriptors()
        left = len(at.left())
    found = [
        _growth("memory", before / 1e6, after / 1e6, "MB"),
        _growth("descriptors", descriptors_before, descriptors, ""),
        figures.Figure("processes that are left", "", left, 0),
        figures.Figure("runs", "/s", wanted.runs / took_s, detail=f"{wanted.runs} runs"),
    ]
    console.print(figures.table(found, f"{wanted.runs} runs"))
    console.print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if wanted.json:
        wanted.json.write_text(json.dumps([one.as_json() for one in found], indent=2) + "\n")


def _growth(what: str, before: float, after: float, unit: str) -> figures.Figure:
    detail = f"{before:.1f} {unit} after the first {_FIRST}, {after:.1f} {unit} in the end"
    return figures.Figure(f"more {what}", "%", (after / before - 1) * 100, 10, detail=detail)


def _run(port: int, count: int) -> None:
    """So many runs, each to its VM's end."""

    def share(number: int) -> None:
        with client.Connection(port) as connection:
            for _ in range(number):
                status, body = connection.ask(client.post_run())
                assert status == 200, body
                vm_id = json.loads(body)["id"]
                ending = client.post(f"/vms/{vm_id}/shutdown", b'{"mode": "force"}')
                status, body = connection.ask(ending)
                assert status == 200, body

    shares = [count // _AT_ONCE + (one < count % _AT_ONCE) for one in range(_AT_ONCE)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(share, shares))
