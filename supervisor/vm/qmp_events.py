"""What QEMU's events, and its answers when asked, mean for a VM."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.config.qemu import size_in_bytes
from supervisor.errors import MonitorError
from supervisor.qemu.process import boottime_s
from supervisor.qemu.qmp import RunStatus
from supervisor.state.status import (
    IllegalTransition,
    Status,
    Trigger,
    VmState,
    is_known_runstate,
    next_status,
    status_of_runstate,
)

if TYPE_CHECKING:
    from supervisor.qemu.qmp import QmpEvent
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: QEMU stays until it is told to quit, so that a supervisor that comes late finds out how the
#: guest ended; and a reboot is an end, for it would keep the process and lose the record.
ACTIONS = {"reboot": "shutdown", "shutdown": "pause", "panic": "pause"}

#: What QEMU does at the end of a watchdog's time that ends the guest as well.
_WATCHDOG_ENDS = ("reset", "shutdown", "poweroff")

#: At most one event of a failing disk in so many seconds: a guest may try without end.
_DISK_ERRORS_S = 10.0


async def hear(vm: Vm, event: QmpEvent) -> None:
    """Take in one event. What means nothing now is logged, and changes nothing."""
    log.debug("event", vm=vm.id, qmp_event=event.name, data=event.data)
    if vm.status.state.ended:
        return
    try:
        match event.name:
            case "RESET":
                await vm.relay.guest_was_reset()
                await vm.commit("reset", {})
                vm.resets += 1  # who waits for it may look at the record
                vm.wake()
            case "WATCHDOG":
                action = event.data.get("action")
                log.warning("watchdog ran out", vm=vm.id, action=action)
                vm.watchdog_ended_it |= action in _WATCHDOG_ENDS
                await vm.commit("watchdog", {"action": action})
            case "BLOCK_IO_ERROR":
                await _disk_error(vm, event)
            case name if name in Trigger.__members__:
                await _move(vm, Trigger(name), event)
    except IllegalTransition as error:
        log.error("unexpected event", vm=vm.id, problem=str(error))


async def _move(vm: Vm, trigger: Trigger, event: QmpEvent) -> None:
    reason = event.name.lower()
    match trigger:
        case Trigger.SHUTDOWN:
            reason = event.data.get("reason", reason)
        case Trigger.RESUME | Trigger.WAKEUP:
            reason = "running"
        case Trigger.GUEST_PANICKED:
            reason = "guest-panicked"
        case Trigger.STOP | Trigger.SUSPEND:
            # The event does not say why; a KVM that gave up stops its guest like a user.
            reason = await _runstate(vm)
            if status_of_runstate(reason).state is VmState.CRASHED:
                trigger = Trigger.INTERNAL_ERROR
    if trigger in (Trigger.RESUME, Trigger.WAKEUP):
        await _note_running(vm)
    await _enter(vm, next_status(vm.status, trigger, reason))


async def correct(vm: Vm, found: Status) -> None:
    """Enter the state that QEMU says it is in, where events that told of it were missed.

    :param found: by ``query-status``
    """
    if vm.status.state.ended or vm.status.state is found.state is VmState.PRELAUNCH:
        return
    if found.state is VmState.PRELAUNCH:
        # A reset takes a held guest back to before its first instruction; it has run all the same.
        found = Status(VmState.PAUSED, found.reason)
    same = found.state is vm.status.state
    if same and (found == vm.status or found.state is not VmState.PAUSED):
        return  # the cause of a shutdown that is on record says more than QEMU's word
    if vm.status.state is not VmState.SHUTDOWN:
        log.info("missed", vm=vm.id, was=str(vm.status), found=str(found))
        await _enter(vm, found)


async def compare(vm: Vm, answer: RunStatus | None) -> None:
    """See to the logs, and take in the answer to a heartbeat, if it is still of any interest."""
    try:
        vm.dir.cut_logs(size_in_bytes(vm.config.life.log_size))
    except OSError as error:
        log.warning("logs cannot be cut", vm=vm.id, problem=str(error))
    if answer is None:
        return
    if vm.facts:
        vm.facts = attrs.evolve(vm.facts, run_status=answer, at=datetime.now(UTC))
    await correct(vm, status_of_runstate(answer.status))


async def _enter(vm: Vm, status: Status) -> None:
    if status.state is VmState.RUNNING and vm.record.running_since_s is None:
        vm.reached("running")
        now_s = boottime_s()
        first_s = vm.record.first_ran_s or now_s
        await vm.set_status(status, running_since_s=now_s, first_ran_s=first_s)
    else:
        await vm.set_status(status)
    if status.state is VmState.SHUTDOWN:
        vm.quit_after_guest_shutdown()
    elif status.state is VmState.CRASHED and vm.qemu:
        await vm.qemu.kill()


async def _note_running(vm: Vm) -> None:
    """For those who ask; nothing depends on it."""
    if vm.facts and not vm.facts.sev.enabled:
        # The event says it all. To ask would keep the run waiting whose VM this is.
        running = RunStatus("running", running=True)
        vm.facts = attrs.evolve(vm.facts, run_status=running, at=datetime.now(UTC))
    else:
        await _runstate(vm)


async def _runstate(vm: Vm) -> str:
    """QEMU's present RunState, after an event that says less; ``paused`` if it is gone."""
    try:
        facts = await vm.query_now()
    except MonitorError:
        return "paused"
    reason = facts.run_status.status
    if not is_known_runstate(reason):
        log.warning("unknown RunState, taken for paused", vm=vm.id, runstate=reason)
    return reason


async def _disk_error(vm: Vm, event: QmpEvent) -> None:
    now = trio.current_time()
    if now < vm.disk_quiet_until:
        return
    vm.disk_quiet_until = now + _DISK_ERRORS_S
    data = {name: event.data.get(name) for name in ("operation", "action", "nospace", "reason")}
    log.error("the VM's disk fails on the host", vm=vm.id, **data)
    await vm.commit("io-error", data)
