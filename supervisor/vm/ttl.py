"""A VM's time to live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from supervisor.state.record import EndCause, EndMode, EventKind, Phase

if TYPE_CHECKING:
    from supervisor.vm.vm import Vm


async def end_in_time(vm: Vm) -> None:
    """End the VM gracefully when its time is over, with an event some time before.

    The time is counted from the guest's first instruction, or from when the run got a VM of the
    pool, by a clock that nobody can set.
    """
    await vm.until(lambda: vm.record.purpose.is_for_a_caller)
    ttl_s = vm.record.options.ttl_s
    if ttl_s is None:
        return
    await vm.until(lambda: vm.record.first_ran_s is not None)
    over_s = (vm.record.first_ran_s or 0.0) + ttl_s
    if Phase.EXPIRING not in vm.record.phases:
        await _sleep_until(over_s - vm.config.life.ttl_warning_s, vm)
        vm.reached(Phase.EXPIRING)
        left_s = max(0.0, over_s - vm.clock.boottime_s())
        await vm.commit(EventKind.EXPIRING, {"in_s": round(left_s, 3)})
    await _sleep_until(over_s, vm)
    why = f"its time to live of {ttl_s:g} s is over"
    vm.request_end(EndMode.GRACEFUL, EndCause.TTL, why)


async def _sleep_until(boottime_s: float, vm: Vm) -> None:
    # The host may sleep meanwhile, which trio's clock does not count.
    longest_s = vm.config.timing.ttl_sleep_s
    while (left_s := boottime_s - vm.clock.boottime_s()) > 0:  # noqa: ASYNC110 - it waits for a time
        await trio.sleep(min(left_s, longest_s))
