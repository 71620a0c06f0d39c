"""How much one host bears: a supervisor with a thousand VMs, and with fifty real QEMUs.

    scripts/bench scale [--vms 1000] [--real 50] [--seconds 60] [--json FILE]

The thousand are small programs that speak QMP and answer as the VM's agent; the fifty are
QEMUs without a machine. Each supervisor is a process of its own on a directory of its own,
with settings of its own: none is taken from the environment. Goals and verdicts are for a host
with nothing else to do; look at the load before a figure is believed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scripts.benchmarks import figures, host, measures

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from scripts.benchmarks.figures import Figure

#: VMs at which events are timed, and beside which runs are accepted first.
_FEW = 50
_RUNS_PER_S = 20.0
_SETTLE_S = 3.0
#: QEMUs without a machine have no guest that could power off.
_NO_GRACE = {"MANAGER_POWERDOWN_GRACE": "1s", "MANAGER_BOOT_TIMEOUT": "1h"}

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vms", type=int, default=1000, help="stand-ins for QEMU")
    parser.add_argument("--real", type=int, default=50, help="real QEMUs, without a machine")
    parser.add_argument("--seconds", type=float, default=60, help="time to look at idle VMs")
    parser.add_argument("--rounds", type=int, default=4, help=f"of {_FEW} power-offs each")
    parser.add_argument("--ports", default="61000-65535", help="host ports for the VMs, three each")
    parser.add_argument("--descriptors", type=int, help="limit for the supervisor; default: hard")
    parser.add_argument(
        "--only", choices=["few", "many", "real"], action="append", help="parts; default: all"
    )
    parser.add_argument("--keep", action="store_true", help="leave the directories, with the logs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    # As Ctrl-C: nothing that was started here stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    limit = host.raise_descriptor_limit(wanted.descriptors)
    parts = {"few": few, "many": many, "real": real}
    found: list[Figure] = []
    try:
        for name, part in parts.items():
            if wanted.only and name not in wanted.only:
                continue
            with host.opened(wanted.keep) as at:
                if wanted.keep:
                    console.print(f"{name}: {at.directory}")
                for figure in part(at, wanted):
                    found.append(figure)
                    _say(figures.line(figure))
    except KeyboardInterrupt:
        console.print("interrupted; what was measured until then:")
    console.print(figures.table(found, "one host, many VMs"))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    console.print(f"{os.cpu_count()} CPUs; load {load}; at most {limit} descriptors")
    if wanted.json:
        _write(wanted.json, found, wanted)


def few(at: host.Host, wanted: argparse.Namespace) -> Iterator[Figure]:
    """Events, and status beside new runs, with VMs as a busy host has today."""
    count = min(_FEW, wanted.vms)
    with host.supervisor(at, wanted.ports) as supervisor:
        _say(f"few: supervisor {supervisor.process.pid}")
        yield measures.events(supervisor, at, count, wanted.rounds)
        ids = measures.start_vms(supervisor, count)
        figure, _ = measures.under_load(supervisor, ids, _RUNS_PER_S, wanted.seconds)
        yield figure


def many(at: host.Host, wanted: argparse.Namespace) -> Iterator[Figure]:
    """All the rest, with as many VMs as one host is to bear."""
    with host.supervisor(at, wanted.ports) as supervisor:
        empty_s = supervisor.ready_at - supervisor.executed_at
        _say(f"many: supervisor {supervisor.process.pid}, ready after {empty_s:.2f} s")
        before, descriptors = supervisor.memory(), supervisor.descriptors()
        started = time.monotonic()
        ids = measures.start_vms(supervisor, wanted.vms)
        took = time.monotonic() - started
        yield figures.Figure("VMs started", "/s", len(ids) / took, detail=f"{took:.1f} s")
        time.sleep(_SETTLE_S)
        yield measures.memory(supervisor, before, descriptors, len(ids))
        idle = measures.idle(supervisor, len(ids), wanted.seconds)
        yield idle
        yield from measures.scrapes(supervisor, len(ids), wanted.seconds, idle)
        yield measures.statuses(supervisor, ids, _load_s(wanted))
        _say("many: runs beside status")
        figure, more = measures.under_load(supervisor, ids, _RUNS_PER_S, _load_s(wanted))
        yield figure
        measures.delete(supervisor, more)
        supervisor.kill()
    with host.supervisor(at, wanted.ports) as supervisor:
        yield measures.adoption(supervisor, ids, "peers", empty_s, 5)
        left = len(at.left())
        yield figures.Figure("ending all", "s", supervisor.stop(), detail=f"{left} VMs")


def real(at: host.Host, wanted: argparse.Namespace) -> Iterator[Figure]:
    """Adoption, of QEMU itself."""
    settings = {"MANAGER_QEMU_BIN_PATH": str(at.qemu), **_NO_GRACE}
    with host.supervisor(at, wanted.ports, **settings) as supervisor:
        empty_s = supervisor.ready_at - supervisor.executed_at
        _say(f"real: supervisor {supervisor.process.pid}, ready after {empty_s:.2f} s")
        ids = measures.begin_vms(supervisor, wanted.real)
        supervisor.kill()
    with host.supervisor(at, wanted.ports, **settings) as supervisor:
        yield measures.adoption(supervisor, ids, "QEMUs", empty_s, 2)


def _load_s(wanted: argparse.Namespace) -> float:
    """A third of the time that idle VMs are looked at: 20 s."""
    return float(wanted.seconds) / 3


def _say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False)


def _write(file: Path, found: list[Figure], wanted: argparse.Namespace) -> None:
    result = {
        "vms": wanted.vms,
        "real": wanted.real,
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "figures": [figure.as_json() for figure in found],
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
