"""The states of a VM: every pair of state and trigger, and every RunState of QEMU."""

from __future__ import annotations

import itertools

import pytest

from supervisor.state.status import (
    IllegalTransition,
    Status,
    Trigger,
    VmState,
    is_known_runstate,
    next_status,
    status_after_exit,
    status_after_missed_end,
    status_of_runstate,
)

P, R, Z = VmState.PRELAUNCH, VmState.RUNNING, VmState.PAUSED
D, C = VmState.SHUTDOWN, VmState.CRASHED
ENDS = [VmState.SHUTOFF, VmState.CRASHED]

#: A row a trigger but EXIT, a column a state that is not an end; None is illegal.
TABLE: dict[Trigger, dict[VmState, VmState | None]] = {
    Trigger.RESUME: {P: R, R: None, Z: R, D: None},
    Trigger.WAKEUP: {P: None, R: None, Z: R, D: None},
    Trigger.STOP: {P: None, R: Z, Z: Z, D: D},
    Trigger.SUSPEND: {P: None, R: Z, Z: None, D: None},
    Trigger.SHUTDOWN: {P: D, R: D, Z: D, D: D},
    Trigger.GUEST_PANICKED: {P: None, R: C, Z: C, D: None},
    Trigger.INTERNAL_ERROR: {P: None, R: C, Z: C, D: None},
    Trigger.RESTART: {P: None, R: None, Z: None, D: None},
}

RUNSTATES = {
    "prelaunch": P,
    "inmigrate": P,
    "running": R,
    "paused": Z,
    "suspended": Z,
    "debug": Z,
    "io-error": Z,
    "watchdog": Z,
    "save-vm": Z,
    "restore-vm": Z,
    "finish-migrate": Z,
    "postmigrate": Z,
    "colo": Z,
    "shutdown": D,
    "guest-panicked": C,
    "internal-error": C,
}

LIVE = [state for state in VmState if not state.ended]
EVENTS = [trigger for trigger in Trigger if trigger is not Trigger.EXIT]


def test_only_shutoff_and_crashed_are_ends() -> None:
    assert {state for state in VmState if state.ended} == set(ENDS)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(LIVE, EVENTS)))
def test_event(state: VmState, trigger: Trigger) -> None:
    wanted = TABLE[trigger][state]
    before = Status(state, "before")
    if wanted is None:
        with pytest.raises(IllegalTransition, match=f"{trigger} cannot follow {state}"):
            next_status(before, trigger, "why")
        return
    status = next_status(before, trigger, "why")
    assert status.state is wanted


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(ENDS, EVENTS)))
def test_only_a_restart_follows_an_end_and_only_a_crash(state: VmState, trigger: Trigger) -> None:
    before = Status(state, "before")
    if (state, trigger) == (C, Trigger.RESTART):
        assert next_status(before, trigger, "prelaunch") == Status(P, "prelaunch")
        return
    with pytest.raises(IllegalTransition):
        next_status(before, trigger, "why")


@pytest.mark.parametrize("state", ENDS)
def test_no_exit_follows_an_end(state: VmState) -> None:
    with pytest.raises(IllegalTransition):
        status_after_exit(Status(state, "before"), 0)


@pytest.mark.parametrize(("state", "code"), list(itertools.product(LIVE, [0, 1, -9, None])))
def test_exit(state: VmState, code: int | None) -> None:
    status = status_after_exit(Status(state, "guest-shutdown"), code)
    if state is VmState.SHUTDOWN and code in (0, None):
        assert status == Status(VmState.SHUTOFF, "guest-shutdown")
    else:
        shown = "unknown" if code is None else code
        assert status == Status(VmState.CRASHED, f"exit:{shown}")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("state", VmState)
def test_end_that_nobody_saw(state: VmState, same_boot: bool, asked: bool) -> None:
    last = Status(state, "last-word")
    found = status_after_missed_end(last, same_boot=same_boot, asked=asked)
    if state.ended:
        assert found == last
    elif state is P:
        assert found == Status(C, "launch-interrupted")
    elif not same_boot:
        assert found == Status(C, "host-reboot")
    elif state is D:
        assert found == Status(VmState.SHUTOFF, "last-word")
    else:
        assert found == Status(VmState.SHUTOFF if asked else C, "exit:unknown")


def test_reason_comes_with_the_trigger() -> None:
    running = Status(VmState.RUNNING, "running")
    assert next_status(running, Trigger.STOP, "io-error") == Status(VmState.PAUSED, "io-error")


@pytest.mark.parametrize("trigger", [Trigger.SHUTDOWN, Trigger.STOP])
def test_first_cause_of_a_shutdown_is_the_one_on_record(trigger: Trigger) -> None:
    going = Status(VmState.SHUTDOWN, "guest-shutdown")
    assert next_status(going, trigger, "host-qmp-quit") == going


@pytest.mark.parametrize(("runstate", "state"), list(RUNSTATES.items()))
def test_runstate(runstate: str, state: VmState) -> None:
    assert status_of_runstate(runstate) == Status(state, runstate)
    assert is_known_runstate(runstate)


def test_unknown_runstate_is_paused_with_its_raw_word() -> None:
    assert status_of_runstate("daydreaming") == Status(VmState.PAUSED, "daydreaming")
    assert not is_known_runstate("daydreaming")


def test_status_reads_well() -> None:
    assert str(Status(VmState.SHUTDOWN, "guest-reset")) == "shutdown (guest-reset)"
