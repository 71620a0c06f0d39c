"""``run``: send a computation to a new VM, show progress, print its agent's answer."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import click

from supervisor.cli.client import uses_supervisor
from supervisor.cli.computations import request_body
from supervisor.cli.environment import CommandFailed, fail
from supervisor.cli.output import as_json, forward, print_json, print_reply, stderr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.status import Status

    from supervisor.client import Client, models

#: How often the supervisor is asked for the VM's progress.
_INTERVAL_S = 0.1

#: After each phase: the work that comes next.
DOING = {
    "queue": "making the VM's record",
    "directory": "making the VM's disk and firmware variables",
    "overlay": "starting QEMU",
    "spawn": "starting QEMU",
    "greeting": "starting the guest",
    "restore": "starting the guest",
    "running": "waiting for the guest's agent",
    "renew": "waiting for the guest's agent",
    "pool": "waiting for the agent's answer",
    "agent": "waiting for the agent's answer",
}


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--raw", is_flag=True, help="FILE is the computation, even if it looks like a request."
)
@click.option("--ttl", help="Shut the VM down after this time: 1h30m, or PT1H30M.")
@click.option("--restart", help="never, or on-failure: boot the VM again if it crashes.")
@click.option("--keep-disk", is_flag=True, default=None, help="Keep the VM's disk after its end.")
@click.option(
    "--template",
    help="auto; off: boot the VM from cold; require: start the VM from a template or not at all.",
)
@click.option("--forwards", help="host; none: no port of the host leads into the VM.")
@click.option(
    "--tee", help="none, auto, sev, sev-es, sev-snp or tdx: what keeps the VM from its host."
)
@click.option("--tee-policy", help="The guest's policy in words, such as no-debug,no-rapl.")
@click.option("--label", multiple=True, help="NAME=VALUE, by which ls finds the VM again.")
@click.option("--algorithm-by", metavar="CALLER", help="Who alone brings the algorithm.")
@click.option(
    "--data-by", metavar="CALLER", multiple=True, help="Who alone brings data set 0, 1, ..."
)
@click.option("--result-for", metavar="CALLER", multiple=True, help="Who alone gets the result.")
@click.option(
    "--algorithm-sha256", metavar="HEX", help="What the parties agreed on: no other is taken."
)
@as_json
@uses_supervisor
def run(
    client: Client,
    /,
    file: IO[bytes],
    raw: bool,
    label: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Boot a VM, relay the computation in FILE to its agent and print the agent's answer.

    FILE is a request or a computation; "-" is standard input. A JSON object with a member
    "computation" is a request, the body of POST /run; the member is an array of numbers from 0 to
    255 or a base64 string. Any other FILE is the computation itself and is relayed byte for byte.

    The answer goes to standard output, everything else to standard error. The VM keeps running:
    see ls and shutdown. Ctrl-C before the answer ends the VM by force.
    """
    parties = _parties(options)
    wishes = {name: value for name, value in options.items() if value is not None}
    if label:
        wishes["labels"] = dict(one.partition("=")[::2] for one in label)
    if parties:
        wishes["parties"] = parties
    body = cast("models.RunRequest", request_body(file.read(), raw=raw) | wishes)
    with stop_signals() as signals:
        with stderr().status("waiting for a VM"):
            begun = client.start(body)
        credential = begun.get("credential")  # an older supervisor has none
        vm = follow(client, begun["id"], signals)
    reply = client.reply(vm["id"])
    if as_json:
        print_json(_answer(vm, reply) | {"credential": credential})
        return
    print_reply(reply)
    console = stderr()
    console.print(f"VM {vm['id']} is {vm['state']}")
    for one in vm["forwards"]:
        console.print(f"  {forward(one)}")
    if parties:
        console.print("its parties send and fetch: see send, compute and result")
    elif not vm["forwards"]:
        console.print("no port leads to its agent: it got this computation and gets no other")
    elif credential:
        console.print(f"its agent asks for the credential {credential}")
    console.print(f"end it with: qmp-supervisor shutdown {vm['id'][:8]}")


def follow(client: Client, vm_id: str, signals: list[int], *, quiet: bool = False) -> models.Vm:
    """The VM once its agent has answered.

    :param quiet: without a line for each phase
    """
    console = stderr()
    shown_s, shown_reason = -1.0, None
    with console.status("") as status:
        console.print(f"VM {vm_id}")
        while True:
            if signals:
                _abandon(client, vm_id, signals[0])
            vm = client.vm(vm_id)
            if not quiet:
                shown_s = _show_progress(status, vm["phases_s"], shown_s)
            # An older supervisor knows no reason.
            if (reason := vm["agent"].get("reason")) not in (None, shown_reason):
                shown_reason = reason
                console.print(f"waiting for the agent: {reason}")
            if vm["relay"]["state"] == "answered":
                return vm
            if vm["relay"]["state"] in ("failed", "interrupted") or vm["ended"]:
                raise CommandFailed(_failure(vm))
            time.sleep(_INTERVAL_S)


def _show_progress(status: Status, phases: dict[str, float], shown_s: float) -> float:
    """Print a line for each new phase; return the time of the last phase shown."""
    for name, at in sorted(phases.items(), key=lambda step: step[1]):
        if at > shown_s:
            status.console.print(f"{name:9} {at - max(shown_s, 0.0):7.3f} s")
            status.update(DOING.get(name, ""))
            shown_s = at
    return shown_s


def _failure(vm: models.Vm) -> str:
    problem = vm["error"] or f"it ended before its agent answered: {vm['state']} ({vm['reason']})"
    return problem if vm["id"] in problem else f"VM {vm['id']}: {problem}"


def _abandon(client: Client, vm_id: str, number: int) -> None:
    fail(f"ending VM {vm_id}")
    client.shutdown(vm_id, "force")
    sys.exit(128 + number)


def _answer(vm: models.Vm, reply: str) -> dict[str, Any]:
    """The members of ``POST /run``'s answer."""
    return {
        "id": vm["id"],
        "computation": reply,
        "state": vm["state"],
        "forwards": vm["forwards"],
        "tee": vm.get("tee"),  # an older supervisor knows none
    }


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, collected while the context lasts; a second signal has its usual effect.

    A handler that raised could do so before the VM's id is known, and leave the VM running.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        restore()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        restore()


def _parties(options: dict[str, Any]) -> dict[str, Any]:
    """Who brings and gets what, taken out of the options; empty if nobody is named."""
    parties = {
        "algorithm": options.pop("algorithm_by"),
        "data": list(options.pop("data_by")),
        "result": list(options.pop("result_for")),
    }
    agreed = options.pop("algorithm_sha256")
    if not all(parties.values()):
        if any(parties.values()) or agreed:
            raise click.UsageError("--algorithm-by, --data-by and --result-for go together")
        return {}
    return parties | ({"algorithm_sha256": agreed} if agreed else {})
