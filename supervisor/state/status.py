"""The states of a VM and how one leads to another. Pure.

Six of QEMU's events move a VM, the end of its process does, and a restart after it; nothing
else. POWERDOWN is a request the guest may ignore, RESET leaves a VM in the state it has (a
reboot by the guest ends it: ``-action reboot=shutdown``), and whether the agent answers is a
fact beside the state.

Sources: QEMU's QAPI, ``run-state.json`` (RunState, ShutdownCause, the events).
"""

from __future__ import annotations

import enum

import attrs


class VmState(enum.StrEnum):
    """Where a VM is in its life. The last two are ends; only a restart follows a crash."""

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
    """What can move a VM: QMP events by their QMP names, the process's exit, and we."""

    RESUME = "RESUME"
    WAKEUP = "WAKEUP"
    STOP = "STOP"
    SUSPEND = "SUSPEND"
    SHUTDOWN = "SHUTDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"
    INTERNAL_ERROR = "INTERNAL_ERROR"  # not an event of its own: STOP, and RunState says so
    EXIT = "EXIT"
    RESTART = "RESTART"  # by the VM's restart policy


class Reason(enum.StrEnum):
    """Reasons of ours. All others are QEMU's own words."""

    PRELAUNCH = "prelaunch"
    #: The process exited while no supervisor looked, on the same boot of the host.
    EXIT_UNKNOWN = "exit:unknown"
    #: The host rebooted under the VM.
    HOST_REBOOT = "host-reboot"
    #: The supervisor went away before the guest's first instruction.
    LAUNCH_INTERRUPTED = "launch-interrupted"
    #: QEMU heeded our SIGTERM and could not tell of it.
    HOST_SIGNAL = "host-signal"
    #: The guest's watchdog ended the VM.
    WATCHDOG = "watchdog"


@attrs.frozen
class Status:
    """A state and the reason, raw: a RunState, a ShutdownCause, ``exit:<code>`` or a `Reason`."""

    state: VmState
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})"


class IllegalTransition(Exception):
    """A trigger that cannot follow the present state. A bug of ours or of QEMU's."""

    def __init__(self, status: Status, trigger: Trigger) -> None:
        super().__init__(f"{trigger} cannot follow {status}")


_S, _T = VmState, Trigger

#: Where each trigger leads. What is not here is illegal, but for the rules in `next_status`.
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
    # The VM's own stop on its way down, and a suspended guest that is stopped as well.
    (_S.SHUTDOWN, _T.STOP): _S.SHUTDOWN,
    (_S.PAUSED, _T.STOP): _S.PAUSED,
    # A guest that was asked to power off may still be killed, or asked twice.
    (_S.SHUTDOWN, _T.SHUTDOWN): _S.SHUTDOWN,
    (_S.CRASHED, _T.RESTART): _S.PRELAUNCH,
}


def next_status(status: Status, trigger: Trigger, reason: str) -> Status:
    """The status that follows. For the process's end see `status_after_exit`.

    :param reason: the raw word that comes with the trigger
    :raises IllegalTransition: if the trigger cannot follow the state
    """
    state = _TRANSITIONS.get((status.state, trigger))
    if state is None:
        raise IllegalTransition(status, trigger)
    if state is VmState.SHUTDOWN is status.state:
        return status  # the first cause is the one on record
    return Status(state, reason)


def status_after_exit(status: Status, exit_code: int | None, *, asked: bool = False) -> Status:
    """The status at the end of the process.

    :param exit_code: negative for a signal; None where it was not our child to ask
    :param asked: whether it was we who had it end, and not by force
    :raises IllegalTransition: if the VM has ended already
    """
    if status.state.ended:
        raise IllegalTransition(status, Trigger.EXIT)
    if exit_code in (0, None):
        if status.state is VmState.SHUTDOWN:
            return Status(VmState.SHUTOFF, status.reason)
        if asked and status.state is not VmState.PRELAUNCH:
            # It heeded SIGTERM, and its monitor was not there to tell of it.
            return Status(VmState.SHUTOFF, Reason.HOST_SIGNAL)
    return Status(VmState.CRASHED, f"exit:{'unknown' if exit_code is None else exit_code}")


def status_after_missed_end(status: Status, *, same_boot: bool, asked: bool = False) -> Status:
    """What a VM came to whose process ended while no supervisor looked.

    :param status: the last on record
    :param same_boot: whether the host has been up ever since
    :param asked: whether it had been asked to end
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


_STATE_OF_RUNSTATE = {
    **dict.fromkeys(("prelaunch", "inmigrate"), VmState.PRELAUNCH),
    "running": VmState.RUNNING,
    **dict.fromkeys(
        (
            "paused",
            "suspended",
            "debug",
            "io-error",
            "watchdog",
            "save-vm",
            "restore-vm",
            "finish-migrate",
            "postmigrate",
            "colo",
        ),
        VmState.PAUSED,
    ),
    "shutdown": VmState.SHUTDOWN,
    "guest-panicked": VmState.CRASHED,
    "internal-error": VmState.CRASHED,
}


def status_of_runstate(runstate: str) -> Status:
    """What a RunState from ``query-status`` means for us; one we do not know is PAUSED."""
    return Status(_STATE_OF_RUNSTATE.get(runstate, VmState.PAUSED), runstate)


def is_known_runstate(runstate: str) -> bool:
    """Whether ``status_of_runstate`` had to guess."""
    return runstate in _STATE_OF_RUNSTATE


def corrected_status(status: Status, found: Status) -> Status | None:
    """The status to enter if ``query-status`` says ``found``; None if ``status`` is right."""
    if status.state.ended or status.state is found.state is VmState.PRELAUNCH:
        return None
    if found.state is VmState.PRELAUNCH:
        # A reset takes a paused guest back to before its first instruction; yet it has run.
        found = Status(VmState.PAUSED, found.reason)
    same = found.state is status.state
    if same and (found == status or found.state is not VmState.PAUSED):
        return None  # the cause of a shutdown that is on record says more than QEMU's word
    return None if status.state is VmState.SHUTDOWN else found
