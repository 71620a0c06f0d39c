"""The states of a VM and how one leads to another. Pure.

Five of QEMU's events move a VM, and the end of its process does; nothing else. POWERDOWN
is a request the guest may ignore, RESET cannot happen to a running VM (a reboot ends it:
``-action reboot=shutdown``), and whether the agent answers is a fact beside the state.

Sources: QEMU's QAPI, ``run-state.json`` (RunState, ShutdownCause, the events).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from datetime import datetime


class VmState(enum.StrEnum):
    """Where a VM is in its life. The last two are ends: nothing follows them."""

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
    """What can move a VM: QMP events by their QMP names, and the process's exit."""

    RESUME = "RESUME"
    WAKEUP = "WAKEUP"
    STOP = "STOP"
    SUSPEND = "SUSPEND"
    SHUTDOWN = "SHUTDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"
    INTERNAL_ERROR = "INTERNAL_ERROR"  # not an event of its own: STOP, and RunState says so
    EXIT = "EXIT"


@attrs.frozen
class Status:
    """A state and, raw, the word for why: a RunState, a ShutdownCause or ``exit:<code>``."""

    state: VmState
    reason: str

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})"


@attrs.frozen
class Change:
    """A VM's new status, as it was at that moment."""

    vm_id: str
    status: Status
    at: datetime


class IllegalTransition(Exception):
    """A trigger that cannot follow the present state. A bug of ours or of QEMU's."""

    def __init__(self, status: Status, trigger: Trigger) -> None:
        super().__init__(f"{trigger} cannot follow {status}")


_S, _T = VmState, Trigger

#: Where each trigger leads. What is not here is illegal, but for the rules in `after`.
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
}


def after(status: Status, trigger: Trigger, reason: str, *, exit_code: int | None = None) -> Status:
    """The status that follows.

    :param reason: the raw word that comes with the trigger; unused for ``EXIT``
    :param exit_code: the process's, for ``EXIT`` alone; negative for a signal
    :raises IllegalTransition: if the trigger cannot follow the state
    """
    if status.state.ended:
        raise IllegalTransition(status, trigger)
    if trigger is Trigger.EXIT:
        if status.state is VmState.SHUTDOWN and exit_code == 0:
            return Status(VmState.SHUTOFF, status.reason)
        return Status(VmState.CRASHED, f"exit:{exit_code}")
    state = _TRANSITIONS.get((status.state, trigger))
    if state is None:
        raise IllegalTransition(status, trigger)
    if state is VmState.SHUTDOWN is status.state:
        return status  # the first cause is the one on record
    return Status(state, reason)


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


def from_runstate(runstate: str) -> Status:
    """What a RunState from ``query-status`` means for us; one we do not know is PAUSED."""
    return Status(_STATE_OF_RUNSTATE.get(runstate, VmState.PAUSED), runstate)


def is_known(runstate: str) -> bool:
    """Whether ``from_runstate`` had to guess."""
    return runstate in _STATE_OF_RUNSTATE
