"""What must hold of a fleet after every fault: the claim under test.

It reads what the agents have got, what callers were told, the fleet's record, and what each host
has of its VMs.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from http import HTTPStatus
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import trio

from supervisor.fleet.ledger import Run, RunState
from tests.chaos.fleet.callers import KEY, Caller
from tests.chaos.fleet.observer import PATIENCE_S, Broken
from tests.chaos.fleet.place import wait

if TYPE_CHECKING:
    from tests.chaos.fleet.case import Case
    from tests.chaos.fleet.place import Machine

#: Problems that say that no agent got the computation, and none will.
_NOT_BEGUN = {"fleet-unavailable", "at-capacity", "no-host", "overloaded"}
#: And those of a run whose host was lost, or that ended on its host.
_ENDED = {"run-lost", "run-failed", "vm-ended", "agent-error"}
#: What a VM says of its run, by what the fleet says.
_AGREE = {
    RunState.ANSWERED: {"answered"},
    RunState.INTERRUPTED: {"interrupted", "sent"},
    RunState.FAILED: {"failed", "waiting", "sent"},
    RunState.SENT: {"sent"},
    RunState.OWNED: {"waiting"},
}
#: Lines of a log that only a bug writes.
_BUGS = ("bug in", "Traceback", "stray asyncio", "unexpected event")
_ANSWERED = RunState.ANSWERED
_LOOK_S = 0.2


async def check(case: Case) -> None:
    """Hold the claim against a fleet whose harm is mended.

    :raises Broken: with all that does not hold
    """
    await _whole_again(case)
    await _settled(case)
    problems = [
        *await _owned_once(case),
        *_reached_one_agent(case),
        *(problem for one in case.callers for problem in _told_the_truth(case, one)),
    ]
    await _remove_all(case)
    problems += _nothing_left(case)
    if problems:
        raise Broken("; ".join(problems))


async def _whole_again(case: Case) -> None:
    await case.place.observer.wait_whole()
    for one in case.place:
        await one.wait_knows(len(case.place.machines))


async def _settled(case: Case) -> None:
    """Every caller was told something, and every run is over."""
    with trio.move_on_after(PATIENCE_S):
        for caller in case.callers:
            await caller.over.wait()
    waiting = [one for one in case.callers if not one.over.is_set()]
    if waiting:
        raise Broken(f"{len(waiting)} callers are told nothing: {_shown(case)}")
    observer = case.place.observer
    with trio.move_on_after(PATIENCE_S):
        await observer.changed.until(
            lambda: _knows_all(case) and all(_is_over(case, one) for one in case.runs())
        )
        return
    raise Broken(f"a run does not end: {_shown(case)}")


def _knows_all(case: Case) -> bool:
    """Whether a run is known, if a caller was told of one."""
    success = any(one.last and one.last.vm for one in case.callers)
    return bool(case.runs()) or not success


def _is_over(case: Case, run_id: str) -> bool:
    """What its host put on record just before it was lost, and nobody was told of, stays there."""
    state = case.place.observer.runs[run_id][-1].state
    told = any(one.last and one.last.status for one in case.callers)
    return state.is_final or (state in (RunState.QUEUED, RunState.OWNED) and not told)


def _shown(case: Case) -> str:
    runs = [case.place.observer.runs[one] for one in case.runs()]
    return f"record {[words(one) for one in runs]}, told {[one.told for one in case.callers]}"


def words(run: list[Run]) -> str:
    return " > ".join(f"{one.state} {one.owner}{one.epoch}" for one in run)


def _got(case: Case, caller: Caller) -> list[tuple[str, str]]:
    """Host and VM of each agent that got its computation."""
    return [
        (one.name, vm_id)
        for one in case.place
        for vm_id, digest in one.received()[case.before[one.name] :]
        if digest == caller.digest
    ]


def _reached_one_agent(case: Case) -> list[str]:
    return [
        f"{len(got)} agents got one computation: {got}, {_shown(case)}"
        for got in (_got(case, one) for one in {one.digest: one for one in case.callers}.values())
        if len(got) > 1
    ]


def _told_the_truth(case: Case, caller: Caller) -> list[str]:
    """What is wrong with what a caller was told, if something is."""
    got, told = _got(case, caller), caller.last
    runs = [case.place.observer.runs[one] for one in case.runs()]
    states = {one[-1].state for one in runs}
    sent = any(run.state is RunState.SENT for one in runs for run in one)
    passed = {name for one in case.place for name, _ in _points(case, one)}
    sent |= "after runs sent" in passed
    # Its owner was cut off, and so was who watches: neither has heard that it is on record as sent,
    # and no other step leads there.
    unseen = any(
        (before.state, after.state) == (RunState.OWNED, RunState.INTERRUPTED)
        for one in runs
        for before, after in pairwise(one)
    )
    sent |= unseen and "before runs sent" in passed
    if caller.has_left or told is None or not told.status:
        return []
    if told.status == HTTPStatus.OK:
        claims = {
            "is told the answer of another computation": told.answer == caller.digest,
            f"is told of VM {told.vm}": [vm_id for _, vm_id in got] == [told.vm],
            "is told an answer that is not on record": states & {_ANSWERED, RunState.REMOVED},
        }
    elif told.status == HTTPStatus.ACCEPTED:
        over = {_ANSWERED} | ({RunState.INTERRUPTED} if sent else set())
        claims = {
            "was told that its run is taken, and it is lost": states & over,
            f"has a run that {len(got)} agents have done": len(got) == 1 or _ANSWERED not in states,
        }
    elif told.kind in _NOT_BEGUN:
        began = got and caller.form != KEY  # with a key it may have been so of an earlier request
        claims = {"is told that nothing has begun": not began}
    elif told.kind == "stopping":
        claims = {"is told of another host's stop": told.at in case.stops}
    elif told.kind in _ENDED:
        goes_on = not states or not all(one.is_final for one in states)
        claims = {
            "is told of the end of a run that goes on": not goes_on,
            "is told of the end of a run that no agent can have got": sent,
            "is told that its run is lost, and it is answered": _ANSWERED not in states,
        }
    else:
        claims = {"is told what nobody expects": False}
    return [
        f"a caller ({caller.form}) {one}: {_shown(case)}, got {got}"
        for one, holds in claims.items()
        if not holds
    ]


def _points(case: Case, machine: Machine) -> list[tuple[str, str]]:
    return [(name, run) for name, run in machine.points() if run in case.runs()]


async def _owned_once(case: Case) -> list[str]:
    """Every VM that runs is of the host that the record says, and tells the same as that."""
    rows: list[tuple[Machine, dict[str, Any]]] = []
    wrong: list[str] = ["nobody has looked yet"]

    async def look() -> list[str]:
        rows.clear()
        found = []
        for one in case.place:
            records = one.records()
            answer = await one.ask("GET", "/vms?host=self&purpose=run")
            for row in answer.json()["vms"]:
                if row["ended"] or row["id"] not in records:
                    continue
                options = records[row["id"]]["options"]
                if options["fleet_run"] not in case.place.observer.runs:
                    found.append(f"nobody knows of the run of VM {row['id']}")
                    continue
                run = case.place.observer.runs[options["fleet_run"]][-1]
                rows.append((one, row))
                mine = (run.owner, run.vm, run.epoch) == (one.name, row["id"], options["epoch"])
                relay = (await one.ask("GET", f"/vms/{row['id']}")).json()["relay"]["state"]
                if not mine:
                    found.append(f"VM {row['id']} of {one.name} runs, and the record has {run}")
                elif relay not in _AGREE.get(run.state, set()):
                    found.append(f"VM {row['id']} is {relay}, and its run {run.state}")
        return found

    with trio.move_on_after(PATIENCE_S):
        while True:
            wrong = await look()
            if not wrong:
                break
            await trio.sleep(_LOOK_S)
    owners = Counter(row["id"] for _, row in rows)
    return wrong + [f"VM {one} is on {count} hosts" for one, count in owners.items() if count > 1]


async def _remove_all(case: Case) -> None:
    for one in case.place:
        for row in (await one.ask("GET", "/vms?host=self&purpose=run")).json()["vms"]:
            answer = await one.ask("DELETE", f"/vms/{row['id']}")
            if answer.status_code not in (204, 404):
                raise Broken(f"{one.name} does not delete a VM: {answer.text}")
        await wait(partial(_has_no_qemu, one), f"the end of {one.name}'s QEMUs")
        one.guests.clear()


def _has_no_qemu(machine: Machine) -> bool:
    return not machine.qemus()


def _nothing_left(case: Case) -> list[str]:
    found = []
    for one in case.place:
        if ports := one.listens():
            found.append(f"ports are left on {one.name}: {ports}")
        if sockets := list(one.tmp.glob("*/*.sock")):
            found.append(f"sockets are left on {one.name}: {sockets}")
        log = (one.host.directory / "supervisor.log").read_text(errors="replace")
        found += [f"{one.name} logs: {line}" for line in log.splitlines() if _is_bug(line)]
    return found


def _is_bug(line: str) -> bool:
    return any(word in line for word in _BUGS)
