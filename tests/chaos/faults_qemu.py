"""What may happen to QEMU: killed, told to end, stopped; in each state, watched and unwatched."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from tests.chaos.case import Case

_QUICK = {
    "MANAGER_HEARTBEAT": "200ms",
    "MANAGER_QMP_TIMEOUT": "1s",
    "MANAGER_QUIT_GRACE": "300ms",
    "MANAGER_TERM_GRACE": "300ms",
}


def in_prelaunch(case: Case, **members: Any) -> str:
    """A VM whose QEMU has been started and has not said a word."""
    case.serve(settings={"MANAGER_QEMU_BIN_PATH": str(case.place.stopped_qemu)})
    vm_id = case.run(wait=False, **members)
    case.wait(lambda: case.is_stopped(vm_id), "QEMU's start")
    case.fresh = False
    return vm_id


@kind("QEMU SIGKILLed: prelaunch")
def killed_prelaunch(case: Case) -> None:
    vm_id = in_prelaunch(case)
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("QEMU SIGKILLed: running")
def killed_running(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("QEMU SIGKILLed: running, its agent at work", short=0)
def killed_at_work(case: Case) -> None:
    case.serve()
    vm_id = case.run(hold=True)
    case.signal_qemu(vm_id, signal.SIGKILL)
    vm = case.until_ended(vm_id, "crashed", "exit:-9")
    case.expect(vm["relay"]["state"] == "failed", f"the relay is {vm['relay']}")


@kind("QEMU SIGKILLed: paused")
def killed_paused(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.control(vm_id, "pause")
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("QEMU SIGKILLed: asked to shut down", settings={"MANAGER_POWERDOWN_GRACE": "60s"})
def killed_going_down(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal(signal.SIGINT)
    case.wait(lambda: bool(case.records()[vm_id]["vm"]["ending"]), "the end's begin")
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.expect(case.wait_dead() == 0, "the supervisor fails")


@kind("QEMU SIGKILLed: supervisor down")
def killed_unwatched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.wait_no_qemu(vm_id)
    case.serve()
    case.until_ended(vm_id, "crashed", "exit:unknown")


def _restarted(case: Case, vm_id: str, times: int) -> None:
    case.until(vm_id, lambda vm: vm["restart"]["count"] == times and vm["agent"]["ready"])


@kind(
    "QEMU SIGKILLed: again and again, restarts by policy",
    short=0,
    times=2,
    settings={"MANAGER_RESTART_LIMIT": "2", "MANAGER_RESTART_BACKOFF": "10ms"},
)
def killed_in_a_loop(case: Case) -> None:
    case.serve()
    case.restarts = 2
    vm_id = case.run(restart="on-failure")
    for count in (1, 2):
        case.signal_qemu(vm_id, signal.SIGKILL)
        _restarted(case, vm_id, count)
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("QEMU aborts: running", short=0, times=2)
def aborts(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGABRT)
    case.until_ended(vm_id, "crashed", "exit:-6")


@kind("QEMU SIGTERMed: running")
def told_to_end(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGTERM)
    case.until_ended(vm_id, "shutoff", "host-signal")


@kind("QEMU SIGTERMed: paused", short=0)
def told_to_end_paused(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.control(vm_id, "pause")
    case.signal_qemu(vm_id, signal.SIGTERM)
    case.until_ended(vm_id, "shutoff", "host-signal")


@kind("QEMU SIGTERMed: supervisor down")
def told_to_end_unwatched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGTERM)
    case.wait_no_qemu(vm_id)
    case.serve()
    case.until_ended(vm_id, "crashed", "exit:unknown")


# --- stopped ----------------------------------------------------------------------------------


@kind("QEMU SIGSTOPped: prelaunch, goes on later")
def stopped_prelaunch(case: Case) -> None:
    vm_id = in_prelaunch(case)
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "answered")


@kind("QEMU SIGSTOPped: prelaunch, for ever", short=0, settings={"MANAGER_START_TIMEOUT": "500ms"})
def stopped_prelaunch_for_ever(case: Case) -> None:
    vm_id = in_prelaunch(case)
    vm = case.until_ended(vm_id, "crashed")
    case.expect("MANAGER_START_TIMEOUT" in vm["error"], f"its error is {vm['error']}")


@kind("QEMU SIGSTOPped: prelaunch, supervisor SIGKILLed")
def stopped_prelaunch_unwatched(case: Case) -> None:
    vm_id = in_prelaunch(case)
    case.crash()
    case.serve(settings=_QUICK | {"MANAGER_START_TIMEOUT": "500ms"})
    case.until_ended(vm_id, "crashed", "launch-interrupted")


@kind("QEMU SIGSTOPped: running, goes on later", settings=_QUICK)
def stopped_running(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.until_monitor(vm_id, "lost")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until_monitor(vm_id, "ok")


@kind("QEMU SIGSTOPped: paused, goes on later", short=0, settings=_QUICK)
def stopped_paused(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.control(vm_id, "pause")
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.until_monitor(vm_id, "lost")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until_monitor(vm_id, "ok")
    case.expect(case.show(vm_id)["state"] == "paused", "it is no longer paused")


@kind("QEMU SIGSTOPped: then shut down", settings=_QUICK)
def stopped_and_shut_down(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.until_monitor(vm_id, "lost")
    case.shut_down(vm_id)
    case.until_ended(vm_id, "crashed", "exit:-9")


@kind("QEMU SIGSTOPped: then deleted", short=0, settings=_QUICK)
def stopped_and_deleted(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.delete(vm_id)


@kind("QEMU SIGSTOPped: supervisor SIGKILLed and back", short=0, settings=_QUICK)
def stopped_and_adopted(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.crash()
    case.serve()
    case.until_monitor(vm_id, "lost")
    case.crash()
    case.serve()
    case.until_monitor(vm_id, "lost")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until_monitor(vm_id, "ok")


@kind("QEMU SIGSTOPped: adopted, then shut down", short=0, settings=_QUICK)
def stopped_adopted_and_shut_down(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    case.crash()
    case.serve()
    case.shut_down(vm_id)
    case.until_ended(vm_id, "crashed")
