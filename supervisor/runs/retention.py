"""Which ended VMs have been kept for long enough. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from supervisor.config import RetentionConfig
    from supervisor.vm.vm import Vm

#: Age is looked at so often; the number of VMs, whenever one ends.
LOOK_S = 60.0


def surplus(vms: Iterable[Vm], limits: RetentionConfig, now: datetime) -> list[Vm]:
    """Those ended VMs that are too many or too old, oldest end first.

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
