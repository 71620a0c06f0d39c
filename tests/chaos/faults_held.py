"""What may happen to clones that are held before their first instruction."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from tests.chaos.case import Case

_QUICK = {
    "MANAGER_CLONE_TIMEOUT": "5s",
    "MANAGER_QUIT_GRACE": "300ms",
    "MANAGER_TERM_GRACE": "300ms",
}


@kind("held clone: QEMU SIGKILLed", templates=True, held=2)
def killed(case: Case) -> None:
    case.serve()
    before = case.until_held()
    for vm_id in before:
        case.signal_qemu(vm_id, signal.SIGKILL)
        case.until_ended(vm_id, "crashed", "exit:-9")
    case.expect(not set(before) & set(case.until_held()), "one that is dead is held")


@kind("held clone: supervisor SIGKILLed", templates=True, held=2)
def left_behind(case: Case) -> None:
    """A QEMU with ``-incoming`` must not stay."""
    case.serve()
    before = case.until_held()
    case.crash()
    case.serve()
    for vm_id in before:
        case.wait_no_qemu(vm_id)
    case.wait(
        lambda: not any((case.tmp / vm_id).exists() for vm_id in before), "the removal of its files"
    )
    case.expect(not set(before) & set(case.until_held()), "one of the supervisor before is held")


@kind("held clone: QEMU SIGSTOPped, and a run takes it", templates=True, held=2, settings=_QUICK)
def stopped(case: Case) -> None:
    """It is booted from cold: its computation has reached nobody."""
    case.serve()
    first, *_ = case.until_held()
    case.signal_qemu(first, signal.SIGSTOP)
    case.expect(case.run() == first, "a run did not take what was held first")
    case.expect(case.show(first)["template"] is None, "it was not booted from cold")


@kind("held clone: given to a run, whose supervisor is SIGKILLed", templates=True, held=2)
def taken(case: Case) -> None:
    case.serve()
    first, *_ = case.until_held()
    case.expect(case.run(hold=True) == first, "a run did not take what was held first")
    case.crash()
    case.place.agents.release()
    case.serve()
    case.until(first, lambda vm: vm["relay"]["state"] == "interrupted")


@kind("held clone: the image replaced", templates=True, held=2)
def another_image(case: Case) -> None:
    case.serve()
    before = case.until_held()
    case.place.another_image()
    case.expect(case.run() not in before, "a run took a clone of the old image")
    case.wait(lambda: not set(before) & set(case.until_held()), "the end of those before")


@kind("held clone: vm.json removed, supervisor SIGKILLed", templates=True, held=2)
def damaged(case: Case) -> None:
    case.serve()
    before = case.until_held()
    case.crash()
    case.damaged |= set(before)
    for vm_id in before:
        (case.tmp / vm_id / "vm.json").unlink()
    case.serve()
    for vm_id in before:
        case.wait_no_qemu(vm_id)
    case.until_held()
