"""``top``: what the running VMs take of the host."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.live import Live
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import duration, stdout

if TYPE_CHECKING:
    from supervisor.client import Client, models

_QUERY = {"ended": "false", "usage": "true"}
_COLUMNS = ("ID", "CPU", "MEMORY", "STATE", "UP", "FOR", "OWNER", "LABELS")
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
    shares with others.
    """
    before = client.vms(_QUERY)["vms"]
    if once:
        time.sleep(every_s)
        stdout().print(table(before, client.vms(_QUERY)["vms"]))
        return
    with suppress(KeyboardInterrupt), Live(console=stdout(), auto_refresh=False) as live:
        live.update(table([], before), refresh=True)
        while True:
            time.sleep(every_s)
            now = client.vms(_QUERY)["vms"]
            live.update(table(before, now), refresh=True)
            before = now


def table(before: list[models.Summary], now: list[models.Summary]) -> Table:
    """:param before: the same VMs some time ago; one that was not there has no share of CPU yet"""
    usage = {vm["id"]: vm["usage"] for vm in before if vm["usage"]}
    rows = [(_share(usage.get(vm["id"]), vm["usage"]), vm) for vm in now]
    rows.sort(key=lambda row: -1.0 if row[0] is None else row[0], reverse=True)
    found = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        found.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True)
    for share, vm in rows:
        memory = vm["usage"] and f"{vm['usage']['memory_bytes'] / 2**20:.0f} MiB"
        found.add_row(
            vm["id"][:8],
            "-" if share is None else f"{100 * share:.0f} %",
            memory or "-",
            vm["state"],
            duration(vm["uptime_s"]),
            vm["purpose"],
            vm["owner"] or "",
            " ".join(f"{name}={value}" if value else name for name, value in vm["labels"].items()),
        )
    return found


def _share(before: models.Usage | None, now: models.Usage | None) -> float | None:
    """CPUs that it took between two looks; None without two looks at one QEMU."""
    if not before or not now or now["cpu_s"] < before["cpu_s"]:
        return None
    span = datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])
    return (now["cpu_s"] - before["cpu_s"]) / span.total_seconds() if span else None
