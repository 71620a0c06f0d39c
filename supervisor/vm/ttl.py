"""A VM's time to live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from supervisor.qemu.process import boottime_s
from supervisor.state.record import EndMode, Purpose

if TYPE_CHECKING:
    from supervisor.vm.vm import Vm

#: The host may have slept meanwhile, which trio's clock does not count.
_LONGEST_SLEEP_S = 30.0


async def watch(vm: Vm) -> None:
    """End the VM gracefully when its time is over, with an event some time before.

    The time is counted from the guest's first instruction, or from when the run got a VM of the
    pool, by a clock that cannot be set.
    """
    await vm.until(lambda: vm.record.purpose is Purpose.RUN)
    ttl_s = vm.record.options.ttl_s
    if ttl_s is None:
        return
    await vm.until(lambda: vm.record.first_ran_s is not None)
    over_s = (vm.record.first_ran_s or 0.0) + ttl_s
    if "expiring" not in vm.record.phases:
        await _sleep_until(over_s - vm.config.life.ttl_warning_s)
        vm.reached("expiring")
        left_s = max(0.0, over_s - boottime_s())
        await vm.commit("expiring", {"in_s": round(left_s, 3)})
    await _sleep_until(over_s)
    vm.ask_to_end(EndMode.GRACEFUL, f"its time to live of {ttl_s:g} s is over")


async def _sleep_until(boottime: float) -> None:
    while (left_s := boottime - boottime_s()) > 0:  # noqa: ASYNC110 - a time is what it waits for
        await trio.sleep(min(left_s, _LONGEST_SLEEP_S))
