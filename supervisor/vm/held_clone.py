"""Lets a held clone run once a run has it. `supervisor.runs.held_clones` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.errors import MonitorError
from supervisor.state.record import Purpose

if TYPE_CHECKING:
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm


async def run_when_taken(vm: Vm, session: Session) -> None:
    """Let the guest run as soon as a run has the VM. Cancelled at QEMU's exit."""
    if vm.record.purpose is not Purpose.HELD:
        return
    await vm.until(lambda: vm.record.purpose is not Purpose.HELD)
    try:
        await session.monitor().cont()
    except MonitorError as error:
        if error.error_class is None:
            return  # the connection is lost: the next one lets the guest run
        session.refusal = str(error)
        await session.qemu.kill()
