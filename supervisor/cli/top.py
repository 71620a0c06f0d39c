"""``top``: what the running VMs take of the host."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click
from rich.live import Live
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import duration, stdout

if TYPE_CHECKING:
    from supervisor.client import Client, models

_QUERY = {"ended": "false", "usage": "true"}
_HOST = "HOST"
_COLUMNS = ("ID", _HOST, "CPU", "MEMORY", "STATE", "UP", "FOR", "OWNER", "LABELS")
_RIGHT = ("CPU", "MEMORY", "UP")


@click.command()
@click.option("--once", is_flag=True, help="Show it once, of the time between two looks.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds from one look to the next.",
)
@uses_supervisor
def top(client: Client, /, once: bool, every_s: float) -> None:
    """Show what running VMs take of the host, those with the most CPU first, until Ctrl-C.

    CPU is the share of one processor, so 200 % are two. MEMORY is resident, and counts what a VM
    shares with others. In a fleet it is the VMs of all hosts.
    """
    before = client.vms(_QUERY)
    if once:
        time.sleep(every_s)
        stdout().print(table(before, client.vms(_QUERY)))
        return
    with suppress(KeyboardInterrupt), Live(console=stdout(), auto_refresh=False) as live:
        live.update(table(None, before), refresh=True)
        while True:
            time.sleep(every_s)
            now = client.vms(_QUERY)
            live.update(table(before, now), refresh=True)
            before = now


def table(before: models.Page | None, now: models.Page) -> Table:
    """:param before: the same some time ago; a VM that was not there has no share of CPU yet"""
    usage = {vm["id"]: vm["usage"] for vm in before["vms"] if vm["usage"]} if before else {}
    rows = [(_share(usage.get(vm["id"]), vm["usage"]), vm) for vm in now["vms"]]
    rows.sort(key=lambda row: -1.0 if row[0] is None else row[0], reverse=True)
    found = Table(box=None, pad_edge=False, caption_justify="left")
    # Where there is no fleet, no VM has a host.
    hosts = any("host" in vm for vm in now["vms"])
    for name in _COLUMNS:
        if name != _HOST or hosts:
            justify: Literal["left", "right"] = "right" if name in _RIGHT else "left"
            found.add_column(name, justify=justify, no_wrap=True)
    for share, vm in rows:
        memory = vm["usage"] and f"{vm['usage']['memory_bytes'] / 2**20:.0f} MiB"
        found.add_row(
            vm["id"][:8],
            *([vm.get("host", "")] if hosts else []),
            "-" if share is None else f"{100 * share:.0f} %",
            memory or "-",
            vm["state"],
            duration(vm["uptime_s"]),
            vm["purpose"],
            vm["owner"] or "",
            " ".join(f"{name}={value}" if value else name for name, value in vm["labels"].items()),
        )
    if missing := now.get("missing"):
        found.caption = f"without the VMs of {', '.join(missing)}: no answer"
    return found


def _share(before: models.Usage | None, now: models.Usage | None) -> float | None:
    """CPUs that it took between two looks; None without two looks at one QEMU."""
    if not before or not now or now["cpu_s"] < before["cpu_s"]:
        return None
    span = datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])
    return (now["cpu_s"] - before["cpu_s"]) / span.total_seconds() if span else None
