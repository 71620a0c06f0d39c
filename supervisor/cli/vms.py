"""``ls``, ``show``, ``shutdown``, ``rm``, ``pause`` and so on: the VMs of a running supervisor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from supervisor.cli.client import uses_supervisor
from supervisor.cli.output import (
    as_json,
    duration,
    echo,
    forward,
    print_json,
    print_reply,
    shown,
    stdout,
)

if TYPE_CHECKING:
    from supervisor.cli.client import Client

_vm_id = click.argument("vm_id", metavar="ID")


@click.command("ls")
@click.option("-a", "--all", "everything", is_flag=True, help="Show ended VMs too.")
@as_json
@uses_supervisor
def list_vms(client: Client, everything: bool, as_json: bool) -> None:
    """List the VMs, oldest first."""
    vms = client.get("/vms")
    vms["vms"] = [vm for vm in vms["vms"] if everything or not vm["ended"]]
    if as_json:
        print_json(vms)
        return
    table = Table(box=None, pad_edge=False)
    times = ("CREATED", "ENDED") if everything else ()
    for heading in ("ID", "FOR", "STATE", "REASON", "MONITOR", "AGENT", "UP", *times, "FORWARDS"):
        table.add_column(heading, no_wrap=heading != "FORWARDS")
    for vm in vms["vms"]:
        table.add_row(
            vm["id"],
            vm["purpose"],
            vm["state"],
            vm["reason"],
            vm["monitor"] if not vm["ended"] else "-",
            "ready" if vm["agent_ready"] else "-",
            duration(vm["uptime_s"]),
            *((vm["created_at"], vm["ended_at"] or "-") if everything else ()),
            "" if vm["ended"] else _ports(vm["forwards"]),
        )
    stdout().print(table)


def _ports(forwards: list[dict[str, Any]]) -> str:
    return " ".join(f"{one['host_port']}:{one['guest_port']}" for one in forwards)


@click.command()
@_vm_id
@as_json
@uses_supervisor
def show(client: Client, vm_id: str, as_json: bool) -> None:
    """Show everything about a VM. The first characters of an ID are enough."""
    vm = client.get(f"/vms/{client.find(vm_id)}")
    if as_json:
        print_json(vm)
        return
    console = stdout()
    for name, text in _rows(vm):
        first, *more = shown(text).splitlines() or [""]
        console.print(f"{name:9}", style="bold", end=" ")
        # The terminal wraps the line, so that a command line can be copied as one line.
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
        "for": vm["purpose"] if vm["purpose"] != "run" else None,
        "template": vm["template"],
        "created": vm["created_at"],
        "ended": vm["ended_at"],
        "up": duration(vm["uptime_s"]) if vm["uptime_s"] is not None else None,
        "monitor": vm["monitor"] if not vm["ended"] else None,
        "agent": f"{agent} at {address}" if address else agent,
        "forwards": "\n".join(map(forward, vm["forwards"])),
        "relay": vm["relay"]["state"],
        "ttl": duration(vm["ttl_s"]) if vm["ttl_s"] is not None else None,
        "restarts": _restarts(vm["restart"]),
        "phases": "  ".join(f"{name} {at:.3f} s" for name, at in vm["phases_s"].items()),
        **_confidential(vm),
        "sev": _sev(vm["query_sev"]),
        "pid": str(vm["pid"]) if vm["pid"] is not None else None,
        "exit code": str(vm["exit_code"]) if ended else None,
        "directory": vm["directory"],
        "command": vm["command"],
    }
    return [(name, text) for name, text in rows.items() if text]


def _restarts(restart: dict[str, Any]) -> str | None:
    if restart["policy"] == "never":
        return None
    return f"{restart['count']} ({restart['policy']})"


def _confidential(vm: dict[str, Any]) -> dict[str, str]:
    """Nothing of a plain VM, and of an older supervisor's."""
    if vm.get("tee", "none") == "none":
        return {}
    policy = f" ({vm['tee_policy']})" if vm["tee_policy"] else ""
    return {"tee": f"{vm['tee']}{policy}", "insecure": "\n".join(vm["insecure"])}


def _sev(facts: dict[str, Any] | None) -> str | None:
    if not facts:
        return None
    if not facts["enabled"]:
        return "off"
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "enabled")


@click.command()
@_vm_id
@uses_supervisor
def reply(client: Client, vm_id: str) -> None:
    """Print the agent's answer. A pipe gets it byte for byte."""
    print_reply(client.text(f"/vms/{client.find(vm_id)}/reply"))


@click.command()
@_vm_id
@click.option("--force", is_flag=True, help="End the VM without asking its guest.")
@as_json
@uses_supervisor
def shutdown(client: Client, vm_id: str, force: bool, as_json: bool) -> None:
    """End a VM and wait for its end. Its record and logs stay: see rm.

    The guest is asked to power off and gets time for it, except with --force.
    """
    vm = client.shutdown(client.find(vm_id), "force" if force else "graceful")
    if as_json:
        print_json(vm)
        return
    _print_state(vm)


def _print_state(vm: dict[str, Any]) -> None:
    echo(f"{vm['id']} {vm['state']} ({vm['reason']})", lines=False)


def _control(name: str, what: str) -> click.Command:
    @click.command(name, help=what)
    @_vm_id
    @as_json
    @uses_supervisor
    def command(client: Client, vm_id: str, as_json: bool) -> None:
        vm = client.post(f"/vms/{client.find(vm_id)}/{name}", {})
        if as_json:
            print_json(vm)
            return
        _print_state(vm)

    return command


pause = _control("pause", "Pause a VM.")
resume = _control("resume", "Resume a paused VM.")
reset = _control("reset", "Press a VM's reset button: its guest boots again.")


@click.command()
@_vm_id
@click.option("--stop", is_flag=True, help="Have the agent stop it. The VM runs on.")
@as_json
@uses_supervisor
def computation(client: Client, vm_id: str, stop: bool, as_json: bool) -> None:
    """Ask an agent that dials the supervisor for the state of its computation."""
    path = f"/vms/{client.find(vm_id)}/computation"
    answer = client.post(f"{path}/stop", {}) if stop else client.get(path)
    if as_json:
        print_json(answer)
    elif stop:
        _print_state(answer)
    else:
        echo(answer["state"], lines=False)


@click.command()
@click.argument("vm_id", metavar="[ID]", required=False)
@click.option("--after", type=int, help="Begin after the event of this number.")
@as_json
@uses_supervisor
def events(client: Client, vm_id: str | None, after: int | None, as_json: bool) -> None:
    """Follow the events of one VM, or of all. Ctrl-C ends the command.

    Without --after, only new events are shown. --after 0 shows all events on record first.
    """
    path = f"/vms/{client.find(vm_id)}/events" if vm_id else "/events"
    for event in client.events(path, after):
        echo(json.dumps(event) if as_json else event_line(event), lines=False)


def event_line(event: dict[str, Any]) -> str:
    """An event for a person: number, time, VM, kind, and its data in words."""
    data = dict(event)
    number, at, vm_id, kind = (data.pop(name) for name in ("sequence", "at", "vm", "event"))
    words = ", ".join(_in_words(name, value) for name, value in data.items())
    return f"{number:>6} {at} {(vm_id or '-')[:8]:8} {kind:10} {words}".rstrip()


def _in_words(name: str, value: object) -> str:
    """``ttl: 5m 0s`` of ``ttl_s`` and 300, ``keep disk: no`` of ``keep_disk`` and False."""
    match value:
        case None | []:
            text = "none"
        case bool():
            text = "yes" if value else "no"
        case list():
            text = " ".join(map(str, value))
        case int() | float() if name.endswith("_s"):
            text = duration(value)
        case _:
            text = str(value)
    return f"{name.removesuffix('_s').replace('_', ' ')}: {text}"


@click.command("rm")
@click.argument("vm_ids", metavar="ID...", nargs=-1, required=True)
@uses_supervisor
def remove(client: Client, vm_ids: tuple[str, ...]) -> None:
    """Remove VMs: end them by force if they run, then delete their directories and records."""
    for found in [client.find(vm_id) for vm_id in vm_ids]:
        client.delete(f"/vms/{found}")
        echo(found, lines=False)
