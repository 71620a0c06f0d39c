"""QEMU started through sudo by an ordinary user, who may not signal it: with ``--sudo`` only."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.chaos.kinds import kind
from tests.chaos.place import processes_below

if TYPE_CHECKING:
    from tests.chaos.case import Case

_QUICK = {
    "MANAGER_HEARTBEAT": "300ms",
    "MANAGER_QMP_TIMEOUT": "1s",
    "MANAGER_QUIT_GRACE": "300ms",
    "MANAGER_TERM_GRACE": "300ms",
}


def _sudos(case: Case, vm_id: str) -> list[int]:
    return [
        pid
        for pid, words in processes_below(case.tmp / vm_id)
        if os.path.basename(words[0]) == "sudo"
    ]


@kind("sudo: supervisor SIGKILLed, VM taken up", sudo=True)
def adopted(case: Case) -> None:
    case.serve()
    held = case.run()
    case.run()
    case.control(held, "pause")
    case.crash()
    case.serve()
    case.until(held, lambda vm: vm["monitor"] == "ok" and vm["state"] == "paused")


@kind("sudo: taken up, then shut down gracefully", sudo=True)
def adopted_and_shut_down(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.serve()
    case.shut_down(vm_id)
    case.until_ended(vm_id, "shutoff")


@kind("sudo: taken up, then shut down by force", sudo=True)
def adopted_and_forced(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.serve()
    case.shut_down(vm_id, "force")
    case.until_ended(vm_id, "shutoff")


@kind("sudo: QEMU SIGSTOPped, then shut down", sudo=True, settings=_QUICK)
def stopped(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.until_monitor(vm_id, "lost")
    case.shut_down(vm_id)
    case.until_ended(vm_id)


@kind("sudo: QEMU SIGSTOPped, taken up, then shut down", sudo=True, settings=_QUICK)
def stopped_and_adopted(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.crash()
    case.serve()
    case.shut_down(vm_id)
    case.until_ended(vm_id)


@kind("sudo: QEMU SIGKILLed", sudo=True)
def killed(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until_ended(vm_id, "crashed")


@kind("sudo: QEMU SIGKILLed, supervisor down", sudo=True)
def killed_unwatched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.wait_no_qemu(vm_id)
    case.serve()
    case.until_ended(vm_id, "crashed", "exit:unknown")


@kind("sudo: sudo itself SIGKILLed", sudo=True)
def without_sudo(case: Case) -> None:
    """QEMU lives on, and nobody tells whoever waited for sudo."""
    case.serve()
    vm_id = case.run()
    for pid in _sudos(case, vm_id):
        os.kill(pid, signal.SIGKILL)
    case.until_ended(vm_id, "crashed")


@kind("sudo: sudo itself SIGKILLed, supervisor down", sudo=True)
def without_sudo_unwatched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    for pid in _sudos(case, vm_id):
        os.kill(pid, signal.SIGKILL)
    case.serve()


@kind("sudo: supervisor SIGTERMed (leave), then SIGINTed (end)", sudo=True)
def left_and_ended(case: Case) -> None:
    case.serve()
    case.run()
    case.signal(signal.SIGTERM)
    case.expect(case.wait_dead() == 0, "it does not leave in order")
    case.serve()
