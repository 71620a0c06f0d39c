"""``host``: the hosts of a fleet, and whether this one takes runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import as_json, duration, print_json, stderr, stdout

if TYPE_CHECKING:
    from supervisor.client import Client, models


@click.group()
def host() -> None:
    """List the hosts of the fleet; have this one take no runs, or take them again."""


@host.command("ls")
@as_json
@uses_supervisor
def list_hosts(client: Client, as_json: bool) -> None:
    """List the hosts, and those lost in the last day. ROOM: how many more VMs there is room for."""
    answer = client.hosts()
    if as_json:
        print_json(answer)
        return
    if not answer["reached"]:
        stderr().print(f"{answer['self']} does not reach the fleet: this is what it knew last")
    table = Table(box=None, pad_edge=False)
    for heading in ("HOST", "ADDRESS", "ROOM", "TEE", "TEMPLATE", "IMAGE", "LABELS", "STATE"):
        table.add_column(heading, no_wrap=heading != "LABELS")
    for one in answer["hosts"]:
        name = one["name"]
        table.add_row(
            f"{name} *" if name == answer["self"] else name,
            one["address"],
            str(one["room"]),
            ",".join(f"{kind}:{free}" for kind, free in one["tee"].items()) or "-",
            "yes" if one["template"] else "no",
            (one["image"] or "-")[:12],
            ",".join(f"{label}={value}" for label, value in one["labels"].items()) or "-",
            "draining" if one["draining"] else "ready",
        )
    for lost in answer["lost"]:
        table.add_row(lost["name"], *["-"] * 6, f"lost {duration(lost['lost_s'])} ago")
    stdout().print(table)


@host.command()
@as_json
@uses_supervisor
def drain(client: Client, as_json: bool) -> None:
    """Have this host take no runs until it is resumed, or its supervisor is started again.

    Runs whose agents have not got their computation go to other hosts; the others end here.
    """
    _tell(client.drain_host(), as_json)


@host.command()
@as_json
@uses_supervisor
def resume(client: Client, as_json: bool) -> None:
    """Have this host take runs again."""
    _tell(client.resume_host(), as_json)


def _tell(answer: models.Drained, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    takes = "takes no runs" if answer["draining"] else "takes runs"
    stdout().print(f"{answer['host']} {takes}; {answer['vms']} of its runs are not over")
    if answer["callers"]:
        stdout().print(f"{answer['callers']} callers wait here for runs of other hosts")
