"""What may happen to VMs that are kept ready, and to those who are given one."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

from tests.chaos.faults_supervisor import CHANCE, load
from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from tests.chaos.case import Case

_LOAD_THREADS = 3
_QUICK = {
    "MANAGER_HEARTBEAT": "200ms",
    "MANAGER_QMP_TIMEOUT": "1s",
    "MANAGER_CLONE_TIMEOUT": "5s",
    "MANAGER_QUIT_GRACE": "300ms",
    "MANAGER_TERM_GRACE": "300ms",
}


def _full(case: Case) -> list[str]:
    case.until_template()
    return case.until_pool()


@kind("pool: QEMU SIGKILLed", templates=True, pool=2, short=0)
def killed(case: Case) -> None:
    case.serve()
    for vm_id in _full(case):
        case.signal_qemu(vm_id, signal.SIGKILL)
        case.until_ended(vm_id, "crashed", "exit:-9")


@kind("pool: QEMU SIGKILLed, supervisor down", templates=True, pool=2)
def killed_unwatched(case: Case) -> None:
    case.serve()
    for vm_id in _full(case):
        if case.supervisor:
            case.crash()
        case.signal_qemu(vm_id, signal.SIGKILL)
        case.wait_no_qemu(vm_id)
    case.serve()


@kind("pool: QEMU SIGSTOPped", templates=True, pool=1, short=0, settings=_QUICK)
def stopped(case: Case) -> None:
    """Nobody is given it."""
    case.serve()
    before = _full(case)
    case.signal_qemu(before[0], signal.SIGSTOP)
    case.wait(lambda: case.until_pool() != before, "its replacement")
    case.run()


@kind("pool: its VMs deleted and shut down", templates=True, pool=2, short=0)
def deleted(case: Case) -> None:
    case.serve()
    first, second = _full(case)
    case.delete(first)
    case.shut_down(second)
    case.until_ended(second)


@kind("pool: supervisor SIGTERMed (leave) and back", templates=True, pool=2, short=0)
def left(case: Case) -> None:
    case.serve()
    before = set(_full(case))
    case.signal(signal.SIGTERM)
    case.expect(case.wait_dead() == 0, "the supervisor fails")
    case.serve()
    case.expect(set(_full(case)) == before, "it has other VMs")


@kind("pool: smaller, and no more, after a SIGKILL", templates=True, pool=2, short=0)
def smaller(case: Case) -> None:
    case.serve()
    _full(case)
    for size in (1, 0):
        case.crash()
        case.pool = size
        case.serve()
        _full(case)


@kind("pool: the image replaced, supervisor SIGKILLed as its VMs are", templates=True, pool=2,
      short=0)  # fmt: skip
def another_image(case: Case) -> None:
    case.serve()
    before = set(_full(case))
    case.place.another_image()
    case.wait(lambda: not before <= {row["id"] for row in case.of_purpose("pool")}, "the first")
    case.crash()
    case.serve()
    case.expect(not before & set(_full(case)), "VMs of the old image are kept")


@kind("pool: guests that cannot be copied", templates=True, pool=2, short=0)
def booted(case: Case) -> None:
    off = {"MANAGER_TEMPLATES": "off"}
    case.serve(settings=off)
    before = case.until_pool()
    taken = case.run()
    case.expect(taken in before, "a run was not given what was ready")
    case.crash()
    case.serve(settings=off)
    case.until_pool()
    case.crash()


@kind("pool: its VM given to a run, whose supervisor is SIGKILLed", templates=True, pool=1)
def taken(case: Case) -> None:
    case.serve()
    (vm_id,) = _full(case)
    case.run(hold=True)
    case.crash()
    case.place.agents.release()
    case.serve()
    case.expect(case.show(vm_id)["purpose"] == "run", "it is the pool's again")
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "interrupted")


@kind("pool: vm.json of a VM that was given to a run, and of one that was not, removed",
      templates=True, pool=1, short=0)  # fmt: skip
def damaged(case: Case) -> None:
    case.serve()
    (given,) = _full(case)
    case.run()
    (kept,) = case.until_pool()
    case.crash()
    case.damaged |= {given, kept}
    for vm_id in (given, kept):
        (case.tmp / vm_id / "vm.json").unlink()
    case.replies.clear()
    case.serve()
    case.expect(case.show(given)["purpose"] == "run", "it is the pool's again")
    case.expect(case.show(kept)["purpose"] == "pool", "it is no longer the pool's")


@kind(
    "supervisor SIGKILLed at random, under load, with templates and a pool",
    times=12,
    short=0,
    templates=True,
    pool=2,
    held=2,
    settings={"MANAGER_MAX_VMS": "6"},
)
def killed_at_random(case: Case) -> None:
    case.serve()
    case.restarts = 100  # how often is the load's business
    stop = threading.Event()
    threads = [
        threading.Thread(target=load, args=(case, stop, CHANCE.random(), ("auto", "off")))
        for _ in range(_LOAD_THREADS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(CHANCE.uniform(0.05, 4.0))
    case.signal(signal.SIGKILL)
    stop.set()
    for thread in threads:
        thread.join()
    case.wait_dead()
