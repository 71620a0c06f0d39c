"""What may happen to copies of the real guest, which have a line. Few: each boots a template."""

from __future__ import annotations

import contextlib
import signal
import urllib.request
from typing import TYPE_CHECKING

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.case import Case

    Harm = Callable[[Case], None]


def _line(name: str, *, pool: int = 0, held: int = 0) -> Callable[[Harm], Harm]:
    return kind(
        f"line: {name}",
        times=1,
        short=0,
        guests=True,
        templates=True,
        pool=pool,
        held=held,
    )


def _runs(case: Case, vm_id: str) -> int:
    """How many computations the guest's agent has answered, by its own count."""
    forward = case.show(vm_id)["forwards"][1]
    url = f"http://{forward['host_address']}:{forward['host_port']}/metrics"
    counts = ""

    def answers() -> bool:
        nonlocal counts
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60) as answer:
            counts = answer.read().decode()
        return bool(counts)

    case.wait(answers, "the agent's own count")  # it is asked over HTTP, which is there later
    counted = dict(line.rsplit(" ", 1) for line in counts.splitlines())
    return int(counted.get('agent_calls_total{method="Run",code="OK"}', 0))


def _dies_at(case: Case, point: str) -> str:
    """The id of a VM whose supervisor was killed there."""
    case.serve(die_at=f"{point} #1")
    case.until_held()
    vm_id = case.run(wait=False)
    case.wait_dead()
    return vm_id


@_line("supervisor SIGKILLed before the computation is sent", held=1)
def before_it_is_sent(case: Case) -> None:
    """It is on record as sent, so nobody sends it again; but the guest's agent is let go."""
    vm_id = _dies_at(case, "line Run, before")
    case.serve()
    vm = case.until(vm_id, lambda vm: vm["agent"]["ready"] and vm["agent"]["protected"] is False)
    case.expect(vm["relay"]["state"] == "interrupted", f"its relay is {vm['relay']}")
    case.expect(_runs(case, vm_id) == 0, "somebody has sent it")


@_line("supervisor SIGKILLed when the answer is here", held=1)
def when_it_is_answered(case: Case) -> None:
    vm_id = _dies_at(case, "line Run, after")
    case.serve()
    vm = case.until(vm_id, lambda vm: vm["agent"]["ready"] and vm["agent"]["protected"] is False)
    case.expect(vm["relay"]["state"] == "interrupted", f"its relay is {vm['relay']}")
    case.expect(_runs(case, vm_id) == 1, "it was not sent, or twice")


@_line("supervisor SIGKILLed before it is known that the copy is renewed", held=1)
def before_it_is_renewed(case: Case) -> None:
    """Nothing was sent: the next supervisor sends it, and calls for the renewal before."""
    vm_id = _dies_at(case, "line renewed, before")
    case.serve()
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")
    case.expect(_runs(case, vm_id) == 1, "it was sent twice")


@_line("QEMU SIGKILLed before the computation arrives", held=1)
def killed(case: Case) -> None:
    """It is on record as sent: no second guest gets it."""
    case.serve(stop_at="line Run, before #1")
    case.until_held()
    vm_id = case.run(wait=False)
    case.until_stopped()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.signal(signal.SIGCONT)
    vm = case.until_ended(vm_id, "crashed", "exit:-9")
    case.expect(vm["relay"]["state"] != "answered", "it was answered")
    case.expect(vm["template"] is not None, "it was booted again")


@_line("QEMU SIGSTOPped before the computation arrives, goes on", held=1)
def stopped(case: Case) -> None:
    case.serve(stop_at="line Run, before #1")
    case.until_held()
    vm_id = case.run(wait=False)
    case.until_stopped()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.signal(signal.SIGCONT)
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "sent")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")
    case.expect(case.show(vm_id)["template"] is not None, "it was booted again")
    case.expect(_runs(case, vm_id) == 1, "it was sent twice")


@_line("supervisor SIGKILLed while a copy for the pool rehearses", pool=1)
def rehearsing(case: Case) -> None:
    case.serve(die_at="line rehearsal, before #1")
    case.wait_dead()
    case.serve()
    (waiting,) = case.until_pool()
    case.expect(case.run() == waiting, "a run did not get what waited")
    case.expect(_runs(case, waiting) == 1, "it was not sent once")


@_line("supervisor SIGKILLed, the next gives a copy of the pool to a run", pool=1)
def pooled(case: Case) -> None:
    case.serve()
    (waiting,) = case.until_pool()
    case.crash()
    case.serve()
    case.expect(case.until_pool() == [waiting], "what waited was replaced")
    case.expect(case.run() == waiting, "a run did not get what waited")
    case.expect(_runs(case, waiting) == 1, "it was not sent once")


@_line("guest of the pool reset, and a run takes it", pool=1)
def reset(case: Case) -> None:
    """Its line leads to an agent that is not there any more."""
    case.serve()
    (waiting,) = case.until_pool()
    case.control(waiting, "reset")
    case.until_pool()
    case.expect(case.run() == waiting, "a run did not get what waited")
    case.expect(_runs(case, waiting) == 1, "it was not sent once")
