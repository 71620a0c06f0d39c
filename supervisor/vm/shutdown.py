"""How a VM is brought to its end: power button, quit, SIGTERM, SIGKILL."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import MonitorError
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.state.record import EventKind
from supervisor.state.status import VmState
from supervisor.vm.control import let_run
from supervisor.vm.decisions import Step, shutdown_steps
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: A healthy QEMU answers within this time. Even a forced end waits for it.
_CONNECT_S = 2.5


async def shut_down_when_asked(vm: Vm, session: Session) -> None:
    """End the VM once that is asked for, or its guest has shut down. Cancelled at QEMU's exit."""
    await vm.until(lambda: vm.ending)
    request = vm.end_request
    if request and vm.status.state is not VmState.SHUTDOWN and request.mode is not vm.record.ending:
        log.info("ending", vm=vm.id, mode=request.mode, cause=request.cause, why=request.why)
        data = {"mode": request.mode, "cause": request.cause, "why": request.why}
        await vm.commit(EventKind.ENDING, data, ending=request.mode, end_cause=request.cause)
    if vm.status.state is not VmState.PRELAUNCH:
        await _wait_connected(vm, session)
    for step in shutdown_steps(vm.status.state, hurried=vm.hurried):
        await _take(step, vm, session)


async def _take(step: Step, vm: Vm, session: Session) -> None:
    """Take a step, and wait for its grace. Being cancelled is how a step succeeds."""
    qemu, config = session.qemu, vm.config.shutdown
    match step:
        case Step.POWERDOWN:
            with trio.move_on_after(config.powerdown_grace_s):
                async with move_on_when(lambda: vm.until(lambda: vm.hurried)):
                    try:
                        await _press_power_button(vm, session)
                    except MonitorError as error:
                        log.warning("power button out of reach", vm=vm.id, problem=str(error))
        case Step.QUIT:
            with trio.move_on_after(config.quit_grace_s) as patience:
                try:
                    await session.monitor().quit()
                except MonitorError:
                    # QEMU exits already, or cannot be told to. The next step needs no monitor.
                    patience.deadline = min(patience.deadline, trio.current_time() + EXIT_LAG_S)
                await trio.sleep_forever()
        case Step.SIGTERM:
            log.warning("QEMU does not quit, sending SIGTERM", vm=vm.id, pid=qemu.pid)
            await qemu.terminate()
            await trio.sleep(config.term_grace_s)
        case Step.SIGKILL:
            if vm.status.state is not VmState.PRELAUNCH:
                log.warning("QEMU does not heed SIGTERM, sending SIGKILL", vm=vm.id, pid=qemu.pid)
            await qemu.kill()


async def _wait_connected(vm: Vm, session: Session) -> None:
    """Return when QEMU can be asked, or has had its time for the first connection.

    Only a QEMU that was adopted with its end on record has not been connected to by then.
    """
    tried = session.connection.tried
    with trio.move_on_after(_CONNECT_S):
        await tried.wait()
        return
    with trio.move_on_after(vm.config.life.answer_s):
        async with move_on_when(lambda: vm.until(lambda: vm.hurried)):
            await tried.wait()


async def _press_power_button(vm: Vm, session: Session) -> None:
    """Press until the guest goes down: a guest that is still booting does not hear it.

    :raises MonitorError: if QEMU cannot be asked twice in a row
    """
    failed = False
    while True:
        try:
            monitor = session.monitor()
            if vm.status.state is VmState.PAUSED:
                # A paused guest does not hear it; it may be paused since the last press.
                with contextlib.suppress(MonitorError):
                    await let_run(vm, monitor)
            await monitor.powerdown()
            failed = False
        except MonitorError:
            if failed:
                raise
            failed = True  # the connection may be about to be made again
        with trio.move_on_after(vm.config.shutdown.powerdown_interval_s):
            await vm.until(lambda: vm.status.state is VmState.SHUTDOWN)
            return
