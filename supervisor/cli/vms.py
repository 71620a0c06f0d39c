"""``ls``, ``show``, ``shutdown``, ``rm``, ``pause`` and so on: the VMs of a running supervisor."""

from __future__ import annotations

import codecs
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.live import Live
from rich.table import Table

from supervisor.cli.client import complete_id, find, find_all, one_vm, some_vms, uses_supervisor
from supervisor.cli.output import (
    as_json,
    duration,
    echo,
    forward,
    print_json,
    print_piece,
    print_reply,
    shown,
    stderr,
    stdout,
)
from supervisor.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.client import models

#: Requests; a caller may have so many.
_AT_ONCE = 8


@click.command("ls")
@click.option("-a", "--all", "everything", is_flag=True, help="Show ended VMs too.")
@click.option("--state", multiple=True, help="In this state; said again: or in that one.")
@click.option("--owner", multiple=True, help="Of this caller.")
@click.option("--label", multiple=True, help="With this label: NAME=VALUE, or NAME.")
@click.option(
    "--for",
    "purpose",
    multiple=True,
    help="There for this: run, pool, cvm, template; held, which is listed only so.",
)
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--limit", type=click.IntRange(1, 1000), help="So many at most.")
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever something happens.")
@as_json
@uses_supervisor
def list_vms(
    client: Client, /, everything: bool, newest: bool, watch: bool, as_json: bool, **filters: Any
) -> None:
    """List the VMs, oldest first."""
    asked = {name: value for name, value in filters.items() if value}
    # What has ended in such a state is looked for.
    if not everything and not filters["state"]:
        asked["ended"] = "false"
    asked |= {"order": "newest"} if newest else {}
    if as_json:
        print_json(client.vms(asked))
        return

    def table() -> Table:
        page = client.vms(asked)
        if missing := page.get("missing"):
            stderr().print(f"without the VMs of {', '.join(missing)}: no answer")
        return _table(page["vms"], everything=everything)

    if not watch:
        stdout().print(table())
        return
    with Live(console=stdout(), auto_refresh=False) as live, client.events() as events:
        live.update(table(), refresh=True)
        for _ in events:
            live.update(table(), refresh=True)


def _table(vms: Sequence[models.Summary], *, everything: bool) -> Table:
    """Columns in which no row has anything are left out."""
    columns: dict[str, Sequence[str]] = {
        "ID": [vm["id"] for vm in vms],
        "HOST": [vm.get("host", "") for vm in vms],
        "FOR": [vm["purpose"] for vm in vms],
        "STATE": [vm["state"] for vm in vms],
        "REASON": [vm["reason"] for vm in vms],
        "OUTCOME": [_outcome(vm) for vm in vms],
        "MONITOR": [vm["monitor"] if not vm["ended"] else "-" for vm in vms],
        "AGENT": ["ready" if vm["agent_ready"] else "-" for vm in vms],
        "UP": [duration(vm["uptime_s"]) for vm in vms],
        "OWNER": [vm["owner"] or "" for vm in vms],
        "LABELS": [" ".join(_label(one) for one in vm.get("labels", {}).items()) for vm in vms],
        "CREATED": [vm["created_at"] if everything else "" for vm in vms],
        "ENDED": [(vm["ended_at"] or "-") if everything else "" for vm in vms],
        "FORWARDS": ["" if vm["ended"] else _ports(vm["forwards"]) for vm in vms],
    }
    always = ("ID", "FOR", "STATE", "REASON", "OUTCOME", "MONITOR", "AGENT", "UP")
    kept = {name: cells for name, cells in columns.items() if name in always or any(cells)}
    table = Table(box=None, pad_edge=False)
    for heading in kept:
        table.add_column(heading, no_wrap=heading not in ("FORWARDS", "LABELS"))
    for cells in zip(*kept.values(), strict=True):
        table.add_row(*cells)
    return table


def _outcome(vm: models.Summary) -> str:
    """Of its algorithm, else of its computation."""
    # An older supervisor knows neither.
    return str(vm.get("computed") or vm.get("relay", {}).get("state") or "-")


def _label(one: tuple[str, str]) -> str:
    name, value = one
    return f"{name}={value}" if value else name


def _ports(forwards: list[models.Forward]) -> str:
    return " ".join(f"{one['host_port']}:{one['guest_port']}" for one in forwards)


@click.command()
@some_vms
@as_json
@uses_supervisor
def show(client: Client, vm_ids: tuple[str, ...], as_json: bool) -> None:
    """Show everything about VMs. The first characters of an ID are enough.

    --json prints an object for one VM, an array for several.
    """
    vms = [client.vm(found) for found in find_all(client, vm_ids)]
    if as_json:
        print_json(vms if len(vms) > 1 else vms[0])
        return
    for number, vm in enumerate(vms):
        if number:
            stdout().print()
        _show(vm)


def _show(vm: models.Vm) -> None:
    console = stdout()
    for name, text in _rows(vm):
        first, *more = shown(text).splitlines() or [""]
        console.print(f"{name:9}", style="bold", end=" ")
        # The terminal wraps the line, so that a command line can be copied as one line.
        console.print(first, soft_wrap=True)
        for line in more:
            console.print(f"{'':9} {line}", soft_wrap=True)


def _parties(parties: models.PartiesNow | None) -> str | None:
    """Who brings and gets what, a line each."""
    if not parties:
        return None
    brings = {"algorithm": parties["algorithm"]}
    brings |= {f"data/{number}": who for number, who in enumerate(parties["data"])}
    lines = [
        f"{part}: {who}, {'sent' if part in parties['sent'] else 'not sent yet'}"
        for part, who in brings.items()
    ]
    if agreed := parties.get("algorithm_sha256"):
        lines[0] += f", SHA-256 {agreed}"
    return "\n".join([*lines, f"result: {', '.join(parties['result'])}"])


def _rows(vm: models.Vm) -> list[tuple[str, str]]:
    agent = "ready" if vm["agent"]["ready"] else "not ready"
    address = vm["agent"]["address"]
    ended = vm["exit_code"] is not None
    rows = {
        "id": vm["id"],
        "host": vm.get("host"),
        "state": f"{vm['state']} ({vm['reason']})",
        "error": vm["error"],
        "for": vm["purpose"] if vm["purpose"] != "run" else None,
        "template": vm["template"],
        "parties": _parties(vm.get("parties")),
        "created": vm["created_at"],
        "ended": vm["ended_at"],
        "up": duration(vm["uptime_s"]) if vm["uptime_s"] is not None else None,
        "monitor": vm["monitor"] if not vm["ended"] else None,
        "agent": f"{agent} at {address}" if address else agent,
        "forwards": "\n".join(map(forward, vm["forwards"])),
        "relay": vm["relay"]["state"],
        "computed": vm.get("computed"),
        "owner": vm["owner"],
        "labels": " ".join(_label(one) for one in vm.get("labels", {}).items()),
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


def _restarts(restart: models.Restart) -> str | None:
    if restart["policy"] == "never":
        return None
    return f"{restart['count']} ({restart['policy']})"


def _confidential(vm: models.Vm) -> dict[str, str]:
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
@one_vm
@uses_supervisor
def reply(client: Client, vm_id: str) -> None:
    """Print the agent's answer. A pipe gets it byte for byte."""
    print_reply(client.reply(find(client, vm_id)))


@click.command()
@some_vms
@click.option("--force", is_flag=True, help="End the VMs without asking their guests.")
@as_json
@uses_supervisor
def shutdown(client: Client, vm_ids: tuple[str, ...], force: bool, as_json: bool) -> None:
    """End VMs and wait for their ends. Their records and logs stay: see rm.

    The guest is asked to power off and gets time for it, except with --force.

    --json prints an object for one VM, an array for several.
    """
    mode: Literal["force", "graceful"] = "force" if force else "graceful"
    found = find_all(client, vm_ids)
    # At the same time: each guest may take a minute.
    with ThreadPoolExecutor(min(len(found), _AT_ONCE)) as threads:
        ended = list(threads.map(lambda one: client.shutdown(one, mode), found))
    _print_states(ended, as_json=as_json)


def _print_states(vms: Sequence[Mapping[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json(vms if len(vms) > 1 else vms[0])
        return
    for vm in vms:
        _print_state(vm)


def _print_state(vm: Mapping[str, object]) -> None:
    echo(f"{vm['id']} {vm['state']} ({vm['reason']})", lines=False)


def _control(act: Callable[[Client, str], models.Status], what: str) -> click.Command:
    @click.command(act.__name__, help=what)
    @some_vms
    @as_json
    @uses_supervisor
    def command(client: Client, vm_ids: tuple[str, ...], as_json: bool) -> None:
        vms = [act(client, found) for found in find_all(client, vm_ids)]
        _print_states(vms, as_json=as_json)

    return command


pause = _control(Client.pause, "Pause VMs.")
resume = _control(Client.resume, "Resume paused VMs.")
reset = _control(Client.reset, "Press VMs' reset buttons: their guests boot again.")


@click.command()
@one_vm
@click.option("--stop", is_flag=True, help="Have the agent stop it. The VM runs on.")
@as_json
@uses_supervisor
def computation(client: Client, vm_id: str, stop: bool, as_json: bool) -> None:
    """Ask an agent that dials the supervisor for the state of its computation."""
    found = find(client, vm_id)
    if stop:
        _print_states([client.stop_computation(found)], as_json=as_json)
        return
    answer = client.computation(found)
    if as_json:
        print_json(answer)
    else:
        echo(answer["state"], lines=False)


@click.command()
@one_vm
@click.option("-f", "--follow", is_flag=True, help="Go on until the VM has ended.")
@click.option("-n", "--tail", type=click.IntRange(0), help="The last so many lines.")
@click.option("--since", help="From then on: so long ago, 10m, or a time.")
@click.option(
    "--algorithm", "source", flag_value="algorithm", help="What the VM's algorithms have printed."
)
@click.option("--qemu", "source", flag_value="qemu", help="What QEMU has printed.")
@uses_supervisor
def logs(
    client: Client,
    vm_id: str,
    follow: bool,
    tail: int | None,
    since: str | None,
    source: str | None,
) -> None:
    """Print what a VM's guest has printed on its console. Ctrl-C ends the command.

    A pipe gets it byte for byte.
    """
    wishes = {"source": source, "follow": int(follow), "tail": tail, "since": since}
    asked = {name: wish for name, wish in wishes.items() if wish is not None}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    is_empty = True
    with client.logs(found := find(client, vm_id), asked) as pieces:
        for piece in pieces:
            is_empty = False
            print_piece(decoder.decode(piece))
    print_piece(decoder.decode(b"", final=True))
    if is_empty and source is None and sys.stderr.isatty() and client.vm(found)["template"]:
        click.echo(
            "Nothing yet: a VM from a template did not boot, so its guest may be silent.", err=True
        )


@click.command()
@click.argument("vm_id", metavar="[ID]", required=False, shell_complete=complete_id)
@click.option("--after", metavar="NUMBER", help="Begin after the event of this number.")
@as_json
@uses_supervisor
def events(client: Client, vm_id: str | None, after: str | None, as_json: bool) -> None:
    """Follow the events of one VM, or of all. Ctrl-C ends the command.

    Without --after, only new events are shown. --after 0 shows all events on record first.
    """
    found = find(client, vm_id) if vm_id else None
    with client.events(found, after=after) as told:
        for event in told:
            echo(json.dumps(event) if as_json else event_line(event), lines=False)


def event_line(event: Mapping[str, Any]) -> str:
    """An event for a person: number, time, VM, kind, and its data in words; in a fleet its host."""
    data = dict(event)
    number, at, vm_id, kind = (data.pop(name) for name in ("sequence", "at", "vm", "event"))
    data.pop("position", None)
    host = f"{data.pop('host'):8} " if "host" in data else ""
    words = ", ".join(_in_words(name, value) for name, value in data.items())
    return f"{number:>6} {at} {host}{(vm_id or '-')[:8]:8} {kind:10} {words}".rstrip()


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
@some_vms
@uses_supervisor
def remove(client: Client, vm_ids: tuple[str, ...]) -> None:
    """Remove VMs: end them by force if they run, then delete their directories and records."""
    for found in find_all(client, vm_ids):
        client.delete(found)
        echo(found, lines=False)
