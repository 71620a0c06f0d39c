"""What may be done to a VM that runs: pause, resume, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from supervisor.errors import Busy, MonitorError
from supervisor.state.record import Purpose
from supervisor.state.status import RunState, VmState
from supervisor.tee.facts import Technology
from supervisor.vm.qmp_events import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.qemu.qmp import Monitor
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm


async def pause(vm: Vm) -> None:
    """Stop the guest's vCPUs. A paused guest stays paused.

    :raises Busy: if no guest runs
    :raises MonitorError: if QEMU does not answer
    """
    _require(vm, "paused", VmState.RUNNING, VmState.PAUSED)
    if vm.status.state is VmState.RUNNING:
        await vm.monitor().stop()
        await _follows(vm, "pause", lambda: vm.status.state is not VmState.RUNNING)


async def resume(vm: Vm) -> None:
    """Let the guest run on, whatever paused it: a caller, an I/O error, its own suspension.

    :raises Busy: if it is not paused
    :raises MonitorError: if QEMU does not answer
    """
    _require(vm, "resumed", VmState.RUNNING, VmState.PAUSED)
    if vm.status.state is VmState.PAUSED:
        await let_run(vm, vm.monitor())
        await _follows(vm, "resume", lambda: vm.status.state is not VmState.PAUSED)


async def let_run(vm: Vm, monitor: Monitor) -> None:
    """Wake a guest that has suspended itself, which ``cont`` does not; else let it run on.

    :raises MonitorError: if QEMU does not answer
    """
    if vm.status.reason == RunState.SUSPENDED:
        await monitor.wake_up()
    else:
        await monitor.cont()


async def reset(vm: Vm) -> None:
    """Press the reset button. The guest boots anew; a paused guest stays paused.

    A computation that its agent was at is interrupted, and not sent again.

    :raises Busy: if there is no guest to reset
    :raises MonitorError: if QEMU does not answer
    """
    async with vm.resetting:  # two at once would set the action back too early
        session = _require(vm, "reset", VmState.RUNNING, VmState.PAUSED)
        if vm.record.options.technology not in (None, Technology.SEV):
            # Its CPUs' state is its own as well.
            raise Busy(
                f"VM {vm.id} cannot be reset: nobody can reset the CPUs of an"
                f" {vm.record.options.technology.label} guest",
                advice="end it, and run the computation again",
            )
        monitor, before = vm.monitor(), session.resets
        # Otherwise QEMU would exit at the reset: see ACTIONS.
        await monitor.set_actions(reboot="reset")
        try:
            await monitor.reset()
            await _follows(vm, "reset", lambda: session.resets > before)
        finally:
            with trio.move_on_after(vm.config.life.answer_s, shield=True):
                await monitor.set_actions(reboot=ACTIONS["reboot"])


def _require(vm: Vm, done: str, *states: VmState) -> Session:
    if vm.record.purpose is Purpose.TEMPLATE:
        raise Busy(f"VM {vm.id} cannot be {done}: it becomes a template")
    if vm.record.purpose is Purpose.HELD:
        raise Busy(f"VM {vm.id} cannot be {done}: it is held until a run takes it")
    if vm.ended or vm.status.state not in states or vm.session is None:
        raise Busy(f"VM {vm.id} cannot be {done}: it is {vm.status}")
    return vm.session


async def _follows(vm: Vm, what: str, so: Callable[[], bool]) -> None:
    """Wait until the event that tells of it is on record; or the VM's end, which overtakes it."""
    answer_s = vm.config.life.answer_s
    with trio.move_on_after(answer_s):
        await vm.until(lambda: so() or vm.status.state.ended)
        return
    raise MonitorError(
        f"{what}: QEMU of VM {vm.id} accepted it, but after {answer_s:g} s it is not on record: "
        "the disk of tmp/ is slow (the supervisor's log says so then), or QEMU told of no change"
    )
