"""Which ended VMs have been kept for long enough, and their removal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.config import RetentionConfig
    from supervisor.runs.vms import Vms
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


async def keep_within_limits(vms: Vms) -> None:
    """Forget ended VMs, oldest first, beyond what is to be kept."""
    while True:
        ended = vms.ended.next()
        for vm in surplus(vms.staying, vms.config.retention, datetime.now(UTC)):
            log.info("forgetting an ended VM", vm=vm.id)
            await vms.forget(vm)
        with trio.move_on_after(vms.config.timing.retention_look_s):
            await ended.wait()


def surplus(vms: Iterable[Vm], limits: RetentionConfig, now: datetime) -> list[Vm]:
    """Those ended VMs that are too many or too old, oldest end first. Pure.

    One whose disk is to be kept is kept.
    """
    ended = [
        (vm.record.ended_at, vm)
        for vm in vms
        if vm.record.ended_at and not vm.record.options.keep_disk
    ]
    ended.sort(key=lambda pair: pair[0])
    too_many = max(0, len(ended) - limits.count)
    oldest = now - timedelta(seconds=limits.age_s)
    return [vm for index, (at, vm) in enumerate(ended) if index < too_many or at < oldest]
