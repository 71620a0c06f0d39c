"""A crashed VM's way to its next boot, as its run asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import LONGEST_BACKOFF_S
from supervisor.qemu.host import boot_id
from supervisor.state.record import EventKind
from supervisor.state.status import RunState, Status, Trigger, next_status
from supervisor.vm.decisions import restart_number
from supervisor.waiting import Backoff

if TYPE_CHECKING:
    from supervisor.vm.relay import Relay
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


async def wait(vm: Vm, relay: Relay, verdict: Status) -> bool:
    """Put the crash on record, then the restart when its time has come.

    False if somebody asks for the VM's end meanwhile.
    """
    number = restart_number(vm.record, vm.clock.boottime_s())
    wait_s = Backoff(vm.config.life.restart_backoff_s, LONGEST_BACKOFF_S).wait_s(number)
    log.warning("restarting", vm=vm.id, reason=verdict.reason, number=number, in_s=wait_s)
    exit_code = vm.session.qemu.exit_code if vm.session else None
    # CLOCK_BOOTTIME starts at 0 after a reboot of the host, so the time to live starts over.
    last = vm.record.process
    clock = {"first_ran_s": None} if last and last.boot_id != boot_id() else {}
    await vm.set_status(verdict, exit_code=exit_code, **clock)
    await vm.commit(EventKind.RESTARTING, {"number": number, "in_s": wait_s})
    with trio.move_on_after(wait_s):
        await vm.until(lambda: vm.end_request is not None)
    if vm.end_request:
        return False
    await relay.again()
    restarted = next_status(vm.status, Trigger.RESTART, RunState.PRELAUNCH)
    # Counted now, not before the wait: a supervisor that adopts the VM meanwhile waits again.
    await vm.set_status(
        restarted,
        running_since_s=None,
        restarts=number,
        attested_by="",
        attested_at=None,
        attested_without=(),
    )
    return True
