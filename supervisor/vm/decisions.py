"""What a VM's task decides. Pure: from a record and what was seen to what is done next."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from supervisor.config import RestartPolicy
from supervisor.state.record import RelayState
from supervisor.state.status import (
    Reason,
    Status,
    VmState,
    status_after_exit,
)

if TYPE_CHECKING:
    from supervisor.state.record import Record

#: A guest that ran for so long is not in a crash loop.
_GOOD_S = 600.0


class Next(enum.Enum):
    """What follows one boot of a VM."""

    #: Nothing: the VM has ended.
    END = enum.auto()
    #: The VM did not come up from its template, and is booted without it.
    COLD_BOOT = enum.auto()
    #: The VM crashed, and its run asked for a restart.
    RESTART = enum.auto()


def after_boot(
    record: Record,
    verdict: Status,
    *,
    clone_failed: bool,
    end_requested: bool,
    restart_limit: int,
    now_s: float,
) -> Next:
    """What follows a boot.

    :param verdict: what the boot came to; PRELAUNCH if the clone failed before its QEMU ran
    :param clone_failed: whether the clone failed by the word of its agent or its QEMU
    :param end_requested: whether somebody asked this supervisor to end the VM
    :param now_s: CLOCK_BOOTTIME
    """
    stopping = end_requested or record.ending is not None
    never_renewed = verdict.state.ended and record.template is not None and not record.renewed
    first_boot = record.restarts == 0  # a restart does not use the template's memory
    host_rebooted = verdict.reason == Reason.HOST_REBOOT
    # Who may have the computation is no clone that did not come up.
    sent = record.relay is RelayState.SENT
    # After a reboot of the host the time of the first is not known any more: see `restart.wait`.
    has_run = (
        record.first_ran_s is not None or record.running_since_s is not None or record.restarts > 0
    )
    needed = not (stopping or host_rebooted or record.settled or sent)
    if (clone_failed or (never_renewed and first_boot)) and needed:
        return Next.COLD_BOOT
    if (
        record.options.restart is RestartPolicy.ON_FAILURE
        and verdict.state is VmState.CRASHED
        and has_run
        and record.ending is None
        and restart_number(record, now_s) <= restart_limit
    ):
        return Next.RESTART
    return Next.END


def restart_number(record: Record, now_s: float) -> int:
    """Which restart in a row the next one would be.

    :param now_s: CLOCK_BOOTTIME
    """
    if record.running_since_s is None:
        return record.restarts + 1  # the last boot did not come to its guest
    ran_s = now_s - record.running_since_s
    # A negative time is of another boot of the host, which is no fault of the guest's.
    return record.restarts + 1 if 0 <= ran_s <= _GOOD_S else 1


def session_verdict(
    record: Record,
    exit_code: int | None,
    *,
    watchdog_fired: bool,
    out_of_memory: bool,
    killed: bool,
) -> Status:
    """What a VM has come to whose QEMU has exited and whose events are all handled.

    A guest that never ran is still in PRELAUNCH.

    :param exit_code: None if QEMU was not our child
    :param out_of_memory: whether the kernel killed it for taking more than a VM may
    :param killed: whether we sent SIGKILL
    """
    if record.status.state in (VmState.PRELAUNCH, VmState.CRASHED):
        return record.status
    if out_of_memory:
        return Status(VmState.CRASHED, Reason.OUT_OF_MEMORY)
    if watchdog_fired:
        return Status(VmState.CRASHED, Reason.WATCHDOG)
    asked = record.ending is not None and not killed
    return status_after_exit(record.status, exit_code, asked=asked)


def final_status(
    record: Record, verdict: Status | None, exit_code: int | None, *, exited: bool
) -> Status:
    """The last status of a VM.

    :param verdict: of its last boot; None if the task failed before it had one
    :param exited: whether its QEMU was seen to exit
    """
    if verdict is None and exited and record.status.state is VmState.SHUTDOWN:
        verdict = status_after_exit(record.status, exit_code)
    if verdict is None or not verdict.state.ended:
        return launch_failed(exit_code)
    return verdict


def launch_failed(exit_code: int | None) -> Status:
    """What a VM has come to whose guest never ran.

    :param exit_code: None if QEMU was never started
    """
    return Status(VmState.CRASHED, f"exit:{'none' if exit_code is None else exit_code}")


def final_error(
    record: Record, status: Status, failure: Exception | None, log_tail: str
) -> str | None:
    """What the last record says went wrong; the first failure counts."""
    if record.error:
        return record.error
    if failure:
        return str(failure)
    if status.state is VmState.CRASHED:
        return log_tail or f"QEMU ended: {status.reason}"
    return None


def final_relay(record: Record) -> RelayState:
    """What a VM's end makes of its computation. An answer stays one."""
    if record.relay not in (RelayState.WAITING, RelayState.SENT):
        return record.relay
    return RelayState.ANSWERED if record.answered else RelayState.FAILED


class Step(enum.Enum):
    """A step of a VM's shutdown, in order. Each has a grace; then comes the next one."""

    POWERDOWN = enum.auto()
    QUIT = enum.auto()
    SIGTERM = enum.auto()
    SIGKILL = enum.auto()


def shutdown_steps(state: VmState, *, hurried: bool) -> tuple[Step, ...]:
    """How a VM in this state is shut down.

    :param hurried: whether the guest is not asked: its end is forced, or it has ended already
    """
    if state is VmState.PRELAUNCH:
        return (Step.SIGKILL,)  # nothing has run that could be lost
    if hurried:
        return (Step.QUIT, Step.SIGTERM, Step.SIGKILL)
    return (Step.POWERDOWN, Step.QUIT, Step.SIGTERM, Step.SIGKILL)
