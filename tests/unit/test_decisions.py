"""What a VM's task decides: what follows a boot, and what the last record says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from supervisor.config import RestartPolicy
from supervisor.state.record import EndMode, Record, RelayState, RunOptions
from supervisor.state.status import Reason, Status, VmState
from supervisor.vm.decisions import (
    Next,
    after_boot,
    final_error,
    final_relay,
    final_status,
    restart_number,
    session_verdict,
)

PRELAUNCH = Status(VmState.PRELAUNCH, "prelaunch")
RUNNING = Status(VmState.RUNNING, "running")
GOING_DOWN = Status(VmState.SHUTDOWN, "guest-shutdown")
CRASHED = Status(VmState.CRASHED, "exit:-9")
SHUTOFF = Status(VmState.SHUTOFF, "guest-shutdown")
REBOOTED = Status(VmState.CRASHED, Reason.HOST_REBOOT)

PLAIN = Record(
    id="7f0c5f3e-0000-4000-8000-000000000001",
    created_at=datetime(2026, 11, 23, tzinfo=UTC),
    options=RunOptions(restart=RestartPolicy.ON_FAILURE),
    memory_bytes=1,
    vcpus=1,
    status=RUNNING,
    first_ran_s=100.0,
    running_since_s=100.0,
)
CLONE = attrs.evolve(PLAIN, template="0123456789abcdef")
RENEWED = attrs.evolve(CLONE, renewed=True)
NEVER = attrs.evolve(PLAIN, options=RunOptions())


@pytest.mark.parametrize(
    ("record", "verdict", "given", "wanted"),
    [
        (PLAIN, CRASHED, {}, Next.RESTART),
        (PLAIN, SHUTOFF, {}, Next.END),
        (NEVER, CRASHED, {}, Next.END),
        (attrs.evolve(PLAIN, first_ran_s=None, running_since_s=None), CRASHED, {}, Next.END),
        # The host was rebooted, and the next supervisor gone before the VM was booted again.
        (attrs.evolve(PLAIN, first_ran_s=None), REBOOTED, {}, Next.RESTART),
        (attrs.evolve(PLAIN, ending=EndMode.GRACEFUL), CRASHED, {}, Next.END),
        (attrs.evolve(PLAIN, restarts=5), CRASHED, {}, Next.END),
        (attrs.evolve(PLAIN, first_ran_s=None, restarts=1), CRASHED, {}, Next.RESTART),
        (PLAIN, REBOOTED, {}, Next.RESTART),
        (RENEWED, CRASHED, {}, Next.RESTART),
        (CLONE, CRASHED, {}, Next.COLD_BOOT),
        (CLONE, SHUTOFF, {}, Next.COLD_BOOT),
        # A record that was lost, and says of the rebuilt VM that nobody waits for it any more.
        (attrs.evolve(NEVER, template="0", relay=RelayState.INTERRUPTED), CRASHED, {}, Next.END),
        (attrs.evolve(CLONE, restarts=1), CRASHED, {}, Next.RESTART),
        (CLONE, REBOOTED, {}, Next.RESTART),
        (CLONE, CRASHED, {"end_requested": True}, Next.RESTART),
        (attrs.evolve(CLONE, ending=EndMode.FORCE), CRASHED, {}, Next.END),
        (NEVER, PRELAUNCH, {"clone_failed": True}, Next.COLD_BOOT),
        (NEVER, PRELAUNCH, {"clone_failed": True, "end_requested": True}, Next.END),
    ],
)
def test_what_follows_a_boot(
    record: Record, verdict: Status, given: dict[str, bool], wanted: Next
) -> None:
    asked: dict[str, Any] = {"clone_failed": False, "end_requested": False} | given
    assert after_boot(record, verdict, restart_limit=5, now_s=110.0, **asked) is wanted


@pytest.mark.parametrize(
    ("now_s", "number"),
    [(100.0, 4), (700.0, 4), (700.1, 1), (99.0, 1)],
    ids=["at-once", "ten-minutes", "a-good-guest", "another-boot-of-the-host"],
)
def test_restarts_in_a_row(now_s: float, number: int) -> None:
    assert restart_number(attrs.evolve(PLAIN, restarts=3), now_s) == number


def test_boot_that_did_not_come_to_its_guest_is_one_more_in_a_row() -> None:
    assert restart_number(attrs.evolve(PLAIN, restarts=3, running_since_s=None), 10_000.0) == 4


@pytest.mark.parametrize(
    ("status", "exit_code", "given", "wanted"),
    [
        (PRELAUNCH, 1, {}, PRELAUNCH),
        (CRASHED, -9, {}, CRASHED),
        (RUNNING, -9, {}, CRASHED),
        (GOING_DOWN, 0, {}, SHUTOFF),
        (GOING_DOWN, 0, {"watchdog_fired": True}, Status(VmState.CRASHED, "watchdog")),
        (RUNNING, -9, {"out_of_memory": True}, Status(VmState.CRASHED, "out-of-memory")),
        (RUNNING, None, {"out_of_memory": True}, Status(VmState.CRASHED, "out-of-memory")),
        (PRELAUNCH, -9, {"out_of_memory": True}, PRELAUNCH),
    ],
)
def test_what_a_session_came_to(
    status: Status, exit_code: int, given: dict[str, bool], wanted: Status
) -> None:
    nothing = {"watchdog_fired": False, "out_of_memory": False, "killed": False}
    seen: dict[str, Any] = nothing | given
    assert session_verdict(attrs.evolve(PLAIN, status=status), exit_code, **seen) == wanted


def test_sigterm_that_was_asked_for_is_no_crash_but_sigkill_is() -> None:
    asked = attrs.evolve(PLAIN, ending=EndMode.GRACEFUL)
    heeded = session_verdict(asked, 0, watchdog_fired=False, out_of_memory=False, killed=False)
    assert heeded == Status(VmState.SHUTOFF, Reason.HOST_SIGNAL)
    assert (
        session_verdict(asked, 0, watchdog_fired=False, out_of_memory=False, killed=True).state
        is VmState.CRASHED
    )


@pytest.mark.parametrize(
    ("status", "verdict", "exited", "wanted"),
    [
        (RUNNING, SHUTOFF, True, SHUTOFF),
        (GOING_DOWN, None, True, SHUTOFF),
        (GOING_DOWN, None, False, Status(VmState.CRASHED, "exit:0")),
        (RUNNING, PRELAUNCH, True, Status(VmState.CRASHED, "exit:0")),
    ],
)
def test_last_status(status: Status, verdict: Status | None, exited: bool, wanted: Status) -> None:
    record = attrs.evolve(PLAIN, status=status)
    assert final_status(record, verdict, 0, exited=exited) == wanted


def test_first_failure_is_the_one_on_record() -> None:
    failed = attrs.evolve(PLAIN, error="first")
    assert final_error(failed, CRASHED, ValueError("second"), "log") == "first"
    assert final_error(PLAIN, CRASHED, ValueError("second"), "log") == "second"
    assert final_error(PLAIN, CRASHED, None, "log") == "log"
    assert final_error(PLAIN, CRASHED, None, "") == "QEMU ended: exit:-9"
    assert final_error(PLAIN, SHUTOFF, None, "log") is None


@pytest.mark.parametrize(
    ("relay", "answered", "wanted"),
    [
        (RelayState.WAITING, False, RelayState.FAILED),
        (RelayState.SENT, False, RelayState.FAILED),
        (RelayState.SENT, True, RelayState.ANSWERED),
        (RelayState.INTERRUPTED, False, RelayState.INTERRUPTED),
        (RelayState.IDLE, False, RelayState.IDLE),
    ],
)
def test_answer_stays_one(relay: RelayState, answered: bool, wanted: RelayState) -> None:
    """Also where a guest that was booted again had the computation a second time."""
    record = attrs.evolve(PLAIN, relay=relay, answered=answered)
    assert final_relay(record) is wanted
    assert record.settled == (answered or relay is RelayState.INTERRUPTED)
