"""``templates``: the templates that VMs are started from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import as_json, print_json, stderr, stdout

if TYPE_CHECKING:
    from supervisor.client import Client


@click.command()
@as_json
@uses_supervisor
def templates(client: Client, as_json: bool) -> None:
    """List the templates that VMs are started from."""
    answer = client.templates()
    if as_json:
        print_json(answer)
        return
    if answer["why"]:
        stderr().print(f"VMs are booted from cold: {answer['why']}")
    if not answer["templates"]:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("DIGEST", "STATE", "SINCE", "MIB", "CLONES", "PROBLEM"):
        table.add_column(heading, no_wrap=heading != "PROBLEM")
    for one in answer["templates"]:
        size = "" if one["size_bytes"] is None else f"{one['size_bytes'] >> 20}"
        table.add_row(
            *(one["digest"], one["state"], one["since"], size),
            *(str(one["clones"]), one["problem"] or ""),
        )
    stdout().print(table)
