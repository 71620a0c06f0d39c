"""``ls``, ``show``, ``shutdown``, ``rm``: the VMs of a running supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import as_json, duration, forward, print_json, stdout

if TYPE_CHECKING:
    from supervisor.cli.client import Client

_vm_id = click.argument("vm_id", metavar="ID")


@click.command("ls")
@as_json
@uses_supervisor
def list_vms(client: Client, as_json: bool) -> None:
    """List the VMs, oldest first."""
    vms = client.get("/vms")
    if as_json:
        print_json(vms)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("ID", "STATE", "REASON", "AGENT", "UP", "FORWARDS"):
        table.add_column(heading, no_wrap=heading != "FORWARDS")
    for vm in vms["vms"]:
        table.add_row(
            vm["id"],
            vm["state"],
            vm["reason"],
            "ready" if vm["agent_ready"] else "-",
            duration(vm["uptime_s"]),
            " ".join(f"{one['host_port']}:{one['guest_port']}" for one in vm["forwards"]),
        )
    stdout().print(table)


@click.command()
@_vm_id
@as_json
@uses_supervisor
def show(client: Client, vm_id: str, as_json: bool) -> None:
    """Show all that is known of a VM. The beginning of an ID is enough."""
    vm = client.get(f"/vms/{client.find(vm_id)}")
    if as_json:
        print_json(vm)
        return
    console = stdout()
    for name, text in _rows(vm):
        first, *more = text.splitlines()
        console.print(f"{name:9}", style="bold", end=" ")
        # Left for the terminal to wrap, so that a command line can be copied as one.
        console.print(first, soft_wrap=True)
        for line in more:
            console.print(f"{'':9} {line}", soft_wrap=True)


def _rows(vm: dict[str, Any]) -> list[tuple[str, str]]:
    agent = "ready" if vm["agent"]["ready"] else "not ready"
    address = vm["agent"]["address"]
    ended = vm["exit_code"] is not None
    rows = {
        "id": vm["id"],
        "state": f"{vm['state']} ({vm['reason']})",
        "error": vm["error"],
        "created": vm["created_at"],
        "ended": vm["ended_at"],
        "up": duration(vm["uptime_s"]) if vm["uptime_s"] is not None else None,
        "agent": f"{agent} at {address}" if address else agent,
        "forwards": "\n".join(map(forward, vm["forwards"])),
        "relay": vm["relay"]["state"],
        "reply": vm["relay"]["computation"],
        "phases": "  ".join(f"{name} {at:.3f} s" for name, at in vm["phases_s"].items()),
        "sev": _sev(vm["query_sev"]),
        "pid": str(vm["pid"]) if vm["pid"] is not None else None,
        "exit code": str(vm["exit_code"]) if ended else None,
        "directory": vm["directory"],
        "command": vm["command"],
    }
    return [(name, text) for name, text in rows.items() if text]


def _sev(facts: dict[str, Any] | None) -> str | None:
    if not facts:
        return None
    if not facts["enabled"]:
        return "off"
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "enabled")


@click.command()
@_vm_id
@click.option("--force", is_flag=True, help="Do not ask the guest.")
@as_json
@uses_supervisor
def shutdown(client: Client, vm_id: str, force: bool, as_json: bool) -> None:
    """End a VM and wait until it has ended; what is known of it stays. See rm.

    The guest is asked to power off and given time for it, unless --force is given.
    """
    vm = client.shutdown(client.find(vm_id), "force" if force else "graceful")
    if as_json:
        print_json(vm)
        return
    click.echo(f"{vm['id']} {vm['state']} ({vm['reason']})")


@click.command("rm")
@_vm_id
@uses_supervisor
def remove(client: Client, vm_id: str) -> None:
    """Remove a VM: end it by force if it runs, delete its directory and all trace of it."""
    found = client.find(vm_id)
    client.delete(f"/vms/{found}")
    click.echo(found)
