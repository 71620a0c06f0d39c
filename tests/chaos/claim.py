"""What must hold after every fault, once a supervisor runs again: the claim under test."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from tests.chaos import claim_clones
from tests.chaos.case import Broken
from tests.chaos.place import kill_all_below, processes_below

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.case import Case

#: What QEMU may say of a VM in each state. A reset takes a held guest back to prelaunch.
_RUNSTATES = {
    "running": {"running"},
    "paused": {"paused", "prelaunch", "suspended", "io-error", "watchdog"},
    "shutdown": {"shutdown"},
}

#: What may be in tmp/ and in the directory of a VM that has ended.
_OWN_FILES = {"lock", "format.json", "events.jsonl", "sequence", "audit.jsonl", claim_clones.HOME}
_KEPT_FILES = {
    *("vm.json", "events.jsonl", "reply"),
    *("serial.log", "qemu.log", "serial.log.1", "qemu.log.1"),
    *("serial.log.times", "qemu.log.times", "algorithm.log", "algorithm.log.times"),
}
_DISKS = {"overlay.qcow2", "firmware_vars.fd"}

#: Lines that only a bug, or QEMU's, writes.
_BUGS = ("bug in", "stray asyncio", "unexpected event", "not JSON: ", "process does not end")
#: How the command says why it does not start; no log yet.
_REFUSAL = "not JSON: qmp-supervisor: "


@attrs.define
class Verdict:
    """Of one injection."""

    problems: list[str] = attrs.field(factory=list)
    processes: int = 0
    ports: int = 0
    files: int = 0
    states: Counter[str] = attrs.field(factory=Counter)
    #: Why this host cannot have that fault, if so.
    skipped: str = ""


def check(case: Case, verdict: Verdict) -> None:
    """Hold the claim against a case whose harm is done; start a supervisor if none runs.

    :raises Broken: at the first thing that does not hold
    """
    try:
        if case.supervisor is None:
            case.settings = {}
            case.serve()
        # A computation that has not been sent before is sent now, and should be answered.
        case.place.agents.holding = False
        case.place.agents.mute = case.place.agents.unwilling = False
        case.place.agents.release()
        if case.templates:
            claim_clones.settle(case)
        _settle(case, verdict)
        _work_on(case)
        _hear_everything(case)
        _stop(case)
    except BaseException:
        case.close()
        raise
    _count_leaks(case, verdict)
    problems = [
        *(*_on_disk(case), *claim_clones.on_disk(case)),
        *(*case.reader.problems, *_in_log(case)),
    ]
    if problems:
        raise Broken("; ".join(problems[:4]))


# --- a supervisor that runs again -------------------------------------------------------------


def _told_of_deletion(case: Case, vm_id: str) -> None:
    case.wait(lambda: case.reader.deletions(vm_id) == 1, "one event of its deletion")


def _settle(case: Case, verdict: Verdict) -> None:
    """Every VM is running and supervised, or has ended with the reason on record."""
    pending: dict[str, str] = {"": "nobody has looked yet"}
    rows: list[dict[str, Any]] = []

    def settled() -> bool:
        nonlocal rows, pending
        rows = _rows(case)
        pending = {row["id"]: why for row in rows if (why := _unsettled(case, row["id"]))}
        return not pending

    case.wait(settled, lambda: f"a VM is not settled: {pending}")
    rows = _rows(case)
    listed = {row["id"] for row in rows}
    for row in rows:
        if row["purpose"] == "held" and not row["ended"]:
            continue
        word = row["state"] if not row["ended"] else f"{row['state']} ({row['reason']})"
        verdict.states[word] += 1
        if row["ended"]:
            _buried(case, row["id"])
    # Of a VM that the supervisor removed itself a reader may have missed all but that.
    own = case.reader.ids() - case.told if case.templates else set()
    for vm_id in (case.told | case.housekeeping | case.reader.ids()) - listed - case.forgotten:
        may_go = case.asked_to_delete | case.housekeeping | own
        case.expect(vm_id in may_go, f"VM {vm_id} is no longer on record")
        _told_of_deletion(case, vm_id)
    for vm_id in listed - case.damaged:
        _answered_once(case, vm_id)


def _rows(case: Case) -> list[dict[str, Any]]:
    """All VMs, those that are listed only if they are asked for among them."""
    return [
        row for query in ("", "?purpose=held") for row in case.ask("GET", f"/vms{query}")[1]["vms"]
    ]


def _unsettled(case: Case, vm_id: str) -> str:
    """Why a VM is not as it should be, or nothing."""
    status, vm = case.ask("GET", f"/vms/{vm_id}")
    if status == 404 or vm["ended"]:
        return ""
    if vm["monitor"] != "ok":
        return f"monitor {vm['monitor']}"
    status, live = case.ask("GET", f"/vms/{vm_id}/status?live=1")
    if status != 200:
        return f"status answers {status}: {live}"
    said, known = live["query_status"]["status"], live["state"]
    # QEMU says of a restored guest that it is paused, as if it had run.
    held = vm["purpose"] == "held" and (known, said) == ("prelaunch", "paused")
    if said not in _RUNSTATES.get(known, ()) and not held:
        return f"{known}, and QEMU says {said}"
    if known == "shutdown" or case.records().get(vm_id, {}).get("vm", {}).get("ending"):
        return "going down"
    if vm["relay"]["state"] in ("waiting", "sent"):
        return f"relay {vm['relay']['state']}"
    return "" if vm["pid"] == case.qemu_pid(vm_id) or case.sudo else f"its pid is not {vm['pid']}"


def _buried(case: Case, vm_id: str) -> None:
    """Nothing is left of an ended VM but its record and its logs."""
    vm = case.show(vm_id)
    case.expect(bool(vm["reason"] and vm["ended_at"]), f"VM {vm_id} ended without a reason")
    case.expect(
        vm["state"] == "shutoff" or bool(vm["error"]), f"VM {vm_id} crashed without an error"
    )
    left = [pid for pid, _ in processes_below(case.tmp / vm_id)]
    case.expect(not left, f"processes of the ended VM {vm_id}: {left}")


def _answered_once(case: Case, vm_id: str) -> None:
    """A computation goes to its agent once, and a reply that was told stays."""
    if vm_id in case.replies:
        got = case.ask("GET", f"/vms/{vm_id}/reply")[1]
        case.expect(got == case.replies[vm_id], f"VM {vm_id}'s reply became {got!r}")


def _work_on(case: Case) -> None:
    """It still runs VMs, and no room or port is kept for one that is gone."""
    running = [row for row in case.ask("GET", "/vms")[1]["vms"] if not row["ended"]]
    if case.fresh and case.templates:
        claim_clones.work_on(case)
    elif case.fresh:
        case.run()
    wanted = {one["host_port"] for row in running for one in row["forwards"]}
    case.expect(
        len(wanted) == 3 * len(running), f"VMs share ports: {[one['forwards'] for one in running]}"
    )
    sent = [
        f"{name} {count} times"
        for name, count in case.place.agents.calls.items()
        if name.startswith(f"{case.tmp.name}-") and count > 1 + case.restarts
    ]
    case.expect(not sent, f"computations were sent again: {sent}")


def _hear_everything(case: Case) -> None:
    """A reader that came back each time has heard all there is on record."""
    if case.events_lost:
        return
    recorded = {event["sequence"]: event for event in _events(case)}
    last = max(recorded, default=0)
    case.expect(case.reader.wait_for(last, 20), f"a reader is at {case.reader.last}, not at {last}")
    heard = {event["sequence"]: event for event in case.reader.seen}
    missed = sorted(recorded.keys() - heard.keys())
    case.expect(not missed, f"a reader has missed the events {missed[:5]}")
    for number, event in recorded.items():
        told = heard[number]
        case.expect(told == event, f"a reader was told {told} where {event} is on record")


def _stop(case: Case) -> None:
    case.signal(signal.SIGINT)
    code = case.wait_dead()
    case.expect(code == 0, f"after SIGINT the supervisor exits with {code}")


# --- what is left when all is over ------------------------------------------------------------


def _count_leaks(case: Case, verdict: Verdict) -> None:
    verdict.processes = kill_all_below(case.tmp)
    if not verdict.processes:
        verdict.ports = len(case.place.ports_in_use())
    if not case.tmp.is_dir():
        return
    left = [path for path in _below(case.tmp) if not _belongs(case, path)]
    verdict.files = len(left)
    if left:
        verdict.problems.append(
            f"left: {', '.join(str(one.relative_to(case.tmp)) for one in left)}"
        )
    if verdict.processes:
        verdict.problems.append(f"{verdict.processes} processes are left")
    if verdict.ports:
        verdict.problems.append(f"{verdict.ports} ports are left")
    with contextlib.suppress(FileNotFoundError), (case.tmp / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            verdict.problems.append("tmp/ is still locked")


def _below(tmp: Path) -> list[Path]:
    found = []
    for path in tmp.iterdir():
        found += list(path.iterdir()) if path.is_dir() and not path.suffix else [path]
    return found


def _belongs(case: Case, path: Path) -> bool:
    if path in case.planted:
        return True
    if path.parent == case.tmp:
        return path.name in _OWN_FILES
    if path.parent.name == claim_clones.HOME:
        return case.templates  # `claim_clones` looks into it
    if path.name in _KEPT_FILES:
        return True
    vm_id = path.parent.name
    if path.name.startswith("vm.json.bad-") or path.name in _DISKS:
        return vm_id in case.damaged
    return False


def _on_disk(case: Case) -> list[str]:
    """Every record says how its VM ended; no number was given twice."""
    found = []
    removed = {vm_id for vm_id in case.housekeeping if not (case.tmp / vm_id).exists()}
    for vm_id in (case.told | case.housekeeping) - removed - case.asked_to_delete - case.forgotten:
        try:
            content = json.loads((case.tmp / vm_id / "vm.json").read_bytes())
        except (OSError, ValueError) as error:
            found.append(f"the record of VM {vm_id}: {error}")
            continue
        if not content["vm"]["ended_at"]:
            found.append(f"VM {vm_id} has no end on record")
    numbers = Counter(event["sequence"] for event in _events(case, found))
    twice = [number for number, count in numbers.items() if count > 1]
    if twice:
        found.append(f"event numbers given twice: {twice}")
    return found


def _events(case: Case, problems: list[str] | None = None) -> list[dict[str, Any]]:
    found = []
    for file in (case.tmp / "events.jsonl", *case.tmp.glob("*/events.jsonl")):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for line in file.read_bytes().splitlines():
                try:
                    found.append(json.loads(line))
                except ValueError:
                    if problems is not None:
                        problems.append(f"{file.parent.name}/{file.name} has {line[:60]!r}")
    return found


def _in_log(case: Case) -> list[str]:
    return [
        f"log: {line['message']} {line.get('exception', '')[-300:]}"
        for line in case.log_lines()
        if any(bug in line["message"] for bug in _BUGS) and not line["message"].startswith(_REFUSAL)
    ]


def clear(case: Case) -> None:
    """Remove the case's files, which are as they should be."""
    for path in sorted(case.tmp.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):
        case.tmp.rmdir()
    with contextlib.suppress(OSError):
        os.unlink(case.log)
