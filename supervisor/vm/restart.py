"""Whether, and after what wait, a VM that crashed is booted again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import LONGEST_BACKOFF_S, RestartPolicy
from supervisor.qemu.process import boottime_s
from supervisor.state.status import (
    Status,
    Trigger,
    VmState,
    next_status,
)
from supervisor.vm.shutdown import EndRequest

if TYPE_CHECKING:
    from supervisor.config import LifeConfig
    from supervisor.state.record import Record
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: A guest that ran for so long is not in a crash loop.
_GOOD_S = 600.0


class Restarts:
    """One VM's restarts."""

    def __init__(self, life: LifeConfig) -> None:
        self._limit = life.restart_limit
        self._backoff_s = life.restart_backoff_s

    def wanted(self, record: Record, verdict: Status) -> bool:
        """Whether a VM with this record is to follow the end it came to."""
        return (
            record.options.restart is RestartPolicy.ON_FAILURE
            and verdict.state is VmState.CRASHED
            and record.first_ran_s is not None
            and record.ending is None
            and _number(record) <= self._limit
        )

    async def wait(self, vm: Vm, verdict: Status) -> bool:
        """Put the crash on record, then the restart when its time has come.

        False if the VM's end is asked for meanwhile.
        """
        count = _number(vm.record)
        wait_s = min(self._backoff_s * 2.0 ** (count - 1), LONGEST_BACKOFF_S)
        log.warning("restarting", vm=vm.id, reason=verdict.reason, number=count, in_s=wait_s)
        exit_code = vm.qemu.exit_code if vm.qemu else None
        # No clock goes on over a boot of the host: a time to live begins anew.
        clock = {"first_ran_s": None} if verdict.reason == "host-reboot" else {}
        await vm.set_status(verdict, exit_code=exit_code, **clock)
        await vm.commit("restarting", {"number": count, "in_s": wait_s})
        with trio.move_on_after(wait_s):
            await vm.end_request.for_good.wait()
        if vm.end_request.for_good.is_set():
            return False
        vm.end_request = EndRequest()
        await vm.relay.again()
        restarted = next_status(vm.status, Trigger.RESTART, "prelaunch")
        # Counted when it is made: a supervisor that comes during the wait begins that anew.
        await vm.set_status(restarted, running_since_s=None, restarts=count)
        return True


def _number(record: Record) -> int:
    """Which restart in a row the next one would be."""
    ran_s = boottime_s() - (record.running_since_s or 0.0)
    # A negative time is of another boot of the host, which is no fault of the guest's.
    return record.restarts + 1 if 0 <= ran_s <= _GOOD_S else 1
