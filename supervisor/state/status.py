"""The states of a VM and the transitions between them. Pure.

A `Trigger` moves a VM. If its event was missed, `corrected_status` moves the VM later. These do not
move a VM:

- POWERDOWN is a request that the guest may ignore.
- RESET leaves the VM in its state. A reboot by the guest ends the VM instead, because of
  ``-action reboot=shutdown``.
- Whether the agent answers is a fact beside the state.

Sources: QEMU's QAPI, ``run-state.json`` (RunState, ShutdownCause, the events).
"""

from __future__ import annotations

import enum

import attrs


class VmState(enum.StrEnum):
    """The state of a VM. SHUTOFF and CRASHED are ends; only a restart leaves CRASHED."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"

    @property
    def ended(self) -> bool:
        return self in (VmState.SHUTOFF, VmState.CRASHED)


class Trigger(enum.StrEnum):
    """What moves a VM: QMP events by their QMP names, the process's exit, and a restart."""

    RESUME = "RESUME"
    WAKEUP = "WAKEUP"
    STOP = "STOP"
    SUSPEND = "SUSPEND"
    SHUTDOWN = "SHUTDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"
    INTERNAL_ERROR = "INTERNAL_ERROR"  # QMP has no such event: a STOP, with this RunState
    EXIT = "EXIT"
    RESTART = "RESTART"  # by the VM's restart policy


class RunState(enum.StrEnum):
    """QEMU's own states: QAPI's ``RunState``, ``run-state.json``."""

    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    DEBUG = "debug"
    IO_ERROR = "io-error"
    WATCHDOG = "watchdog"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    COLO = "colo"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"


class Reason(enum.StrEnum):
    """The supervisor's own reasons. All others are QEMU's words."""

    #: The process exited while no supervisor was running, on the same boot of the host.
    EXIT_UNKNOWN = "exit:unknown"
    #: The host rebooted under the VM.
    HOST_REBOOT = "host-reboot"
    #: The supervisor stopped before the guest's first instruction.
    LAUNCH_INTERRUPTED = "launch-interrupted"
    #: QEMU exited after our SIGTERM, and no QMP connection reported its SHUTDOWN.
    HOST_SIGNAL = "host-signal"
    #: The guest's watchdog ended the VM.
    WATCHDOG = "watchdog"
    #: The kernel killed QEMU, which took more memory than a VM may.
    OUT_OF_MEMORY = "out-of-memory"


@attrs.frozen
class Status:
    """A state and its raw reason: a RunState, a ShutdownCause, ``exit:<code>`` or a `Reason`."""

    state: VmState
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})"

    @property
    def is_held(self) -> bool:
        """Whether the host keeps the guest from running. Such a guest cannot be late.

        A guest that has suspended itself, or has let its watchdog run out, is not held.
        """
        return self.state is VmState.PAUSED and self.reason in _HELD


class IllegalTransition(Exception):
    """A trigger that cannot follow the present state: a bug of the supervisor or of QEMU."""

    def __init__(self, status: Status, trigger: Trigger) -> None:
        super().__init__(f"{trigger} cannot follow {status}")


_S, _T = VmState, Trigger

#: Where each trigger leads. A pair that is not here is illegal. `status_after_exit` handles EXIT.
_TRANSITIONS = {
    (_S.PRELAUNCH, _T.RESUME): _S.RUNNING,
    (_S.PRELAUNCH, _T.SHUTDOWN): _S.SHUTDOWN,
    (_S.RUNNING, _T.STOP): _S.PAUSED,
    (_S.RUNNING, _T.SUSPEND): _S.PAUSED,
    (_S.RUNNING, _T.SHUTDOWN): _S.SHUTDOWN,
    (_S.RUNNING, _T.GUEST_PANICKED): _S.CRASHED,
    (_S.RUNNING, _T.INTERNAL_ERROR): _S.CRASHED,
    (_S.PAUSED, _T.RESUME): _S.RUNNING,
    (_S.PAUSED, _T.WAKEUP): _S.RUNNING,
    (_S.PAUSED, _T.SHUTDOWN): _S.SHUTDOWN,
    (_S.PAUSED, _T.GUEST_PANICKED): _S.CRASHED,
    (_S.PAUSED, _T.INTERNAL_ERROR): _S.CRASHED,
    # QEMU stops a VM on its way down. A guest that has suspended itself can be stopped as well.
    (_S.SHUTDOWN, _T.STOP): _S.SHUTDOWN,
    (_S.PAUSED, _T.STOP): _S.PAUSED,
    # A guest that was asked to power off may be asked again, or be killed.
    (_S.SHUTDOWN, _T.SHUTDOWN): _S.SHUTDOWN,
    (_S.CRASHED, _T.RESTART): _S.PRELAUNCH,
}


def next_status(status: Status, trigger: Trigger, reason: str) -> Status:
    """The status after a trigger other than EXIT; for that, see `status_after_exit`.

    :param reason: QEMU's raw word for the trigger, or a `Reason`
    :raises IllegalTransition: if the trigger cannot follow the state
    """
    state = _TRANSITIONS.get((status.state, trigger))
    if state is None:
        raise IllegalTransition(status, trigger)
    if state is VmState.SHUTDOWN is status.state:
        return status  # the first cause stays on record
    return Status(state, reason)


def status_after_exit(status: Status, exit_code: int | None, *, asked: bool = False) -> Status:
    """The status after the process has ended.

    :param exit_code: negative for a signal; None if the process was not our child
    :param asked: whether the supervisor ended the VM, and not by SIGKILL
    :raises IllegalTransition: if the VM has ended already
    """
    if status.state.ended:
        raise IllegalTransition(status, Trigger.EXIT)
    if exit_code in (0, None):
        if status.state is VmState.SHUTDOWN:
            return Status(VmState.SHUTOFF, status.reason)
        if asked and status.state is not VmState.PRELAUNCH:
            # QEMU exited after SIGTERM, and no QMP connection reported its SHUTDOWN.
            return Status(VmState.SHUTOFF, Reason.HOST_SIGNAL)
    return Status(VmState.CRASHED, f"exit:{'unknown' if exit_code is None else exit_code}")


def status_after_missed_end(status: Status, *, same_boot: bool, asked: bool = False) -> Status:
    """The status of a VM whose process ended while no supervisor was running.

    | last status | same boot | host rebooted |
    | --- | --- | --- |
    | shutoff, crashed | unchanged | unchanged |
    | prelaunch | crashed, launch-interrupted | crashed, launch-interrupted |
    | shutdown | shutoff, its cause | crashed, host-reboot |
    | running, paused; end requested | shutoff, exit:unknown | crashed, host-reboot |
    | running, paused | crashed, exit:unknown | crashed, host-reboot |

    :param status: the last status on record
    :param same_boot: whether the host has not rebooted since
    :param asked: whether the VM's end had been requested
    """
    match status.state:
        case VmState.SHUTOFF | VmState.CRASHED:
            return status
        case VmState.PRELAUNCH:
            return Status(VmState.CRASHED, Reason.LAUNCH_INTERRUPTED)
        case VmState.SHUTDOWN if same_boot:
            return Status(VmState.SHUTOFF, status.reason)
    if not same_boot:
        return Status(VmState.CRASHED, Reason.HOST_REBOOT)
    return Status(VmState.SHUTOFF if asked else VmState.CRASHED, Reason.EXIT_UNKNOWN)


#: Typed as str, because a RunState arrives as QEMU's word and may be unknown.
_STATE_OF_RUNSTATE: dict[str, VmState] = {
    **dict.fromkeys((RunState.PRELAUNCH, RunState.INMIGRATE), VmState.PRELAUNCH),
    RunState.RUNNING: VmState.RUNNING,
    **dict.fromkeys(
        (
            *(RunState.PAUSED, RunState.SUSPENDED, RunState.DEBUG, RunState.IO_ERROR),
            *(RunState.WATCHDOG, RunState.SAVE_VM, RunState.RESTORE_VM),
            *(RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.COLO),
        ),
        VmState.PAUSED,
    ),
    RunState.SHUTDOWN: VmState.SHUTDOWN,
    RunState.GUEST_PANICKED: VmState.CRASHED,
    RunState.INTERNAL_ERROR: VmState.CRASHED,
}


def status_of_runstate(runstate: str) -> Status:
    """The status for a RunState from ``query-status``. An unknown RunState is PAUSED."""
    return Status(_STATE_OF_RUNSTATE.get(runstate, VmState.PAUSED), runstate)


#: PRELAUNCH is the RunState of a guest that was reset while it was paused. IO_ERROR: the host has
#: no room left.
_HELD = (
    *(RunState.PAUSED, RunState.DEBUG, RunState.IO_ERROR, RunState.SAVE_VM, RunState.RESTORE_VM),
    *(RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.COLO),
    *(RunState.PRELAUNCH, RunState.INMIGRATE),
)


def is_known_runstate(runstate: str) -> bool:
    """Whether `status_of_runstate` knows this RunState."""
    return runstate in _STATE_OF_RUNSTATE


def corrected_status(status: Status, found: Status) -> Status | None:
    """The status to enter if ``query-status`` says ``found``; None if ``status`` is right."""
    if status.state.ended or status.state is found.state is VmState.PRELAUNCH:
        return None
    if found.state is VmState.PRELAUNCH:
        # QEMU says prelaunch for a guest that was reset while it was paused. It has run before.
        found = Status(VmState.PAUSED, found.reason)
    same = found.state is status.state
    if same and (found == status or found.state is not VmState.PAUSED):
        return None  # the reason on record, such as a shutdown's cause, says more than the RunState
    return None if status.state is VmState.SHUTDOWN else found
