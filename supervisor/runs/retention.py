"""Which ended VMs have been kept for long enough, and their removal."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.qemu.host import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from supervisor.config import RetentionConfig
    from supervisor.runs.vms import Vms
    from supervisor.state.record import Record
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: An earlier date is that of a clock that nobody has set.
_FIRST_DATE = datetime(2023, 1, 1, tzinfo=UTC)


async def keep_within_limits(vms: Vms) -> None:
    """Forget ended VMs, oldest first, and their replies, beyond what is to be kept."""
    while True:
        ended = vms.ended.next()
        await look(vms)
        with trio.move_on_after(vms.config.timing.retention_look_s):
            await ended.wait()


async def look(vms: Vms) -> None:
    """Do it once, by what has ended by now."""
    now = Now(datetime.now(UTC), vms.host.clock.boottime_s(), boot_id())
    limits = vms.config.retention
    for vm in old_replies(vms.staying, limits, now):
        vm.fresh_reply = None
        await vm.dir.drop_reply()
        await vm.dir.results.drop()
        await vm.dir.results.drop_printed()
    sizes = {vm: vm.dir.results.size() for vm in vms.staying if vm.ended and vm.record.computed}
    for vm in surplus_results(sizes, limits, now):
        await vm.dir.results.drop()
    for vm in surplus(vms.staying, limits, now):
        log.info("forgetting an ended VM", vm=vm.id)
        await vms.forget(vm)


@attrs.frozen
class Now:
    """This moment on the two clocks.

    :param boottime_s: CLOCK_BOOTTIME, in this boot of the host
    """

    date: datetime
    boottime_s: float
    boot_id: str

    def since_end_s(self, record: Record) -> float:
        """Seconds since a VM has ended.

        In the same boot of the host nobody can set the clock that counts. Of an end in an earlier
        boot there is only the date. It is not believed if a clock was plainly wrong; then the time
        since the host's boot counts, which is less.
        """
        if record.ended_boot == self.boot_id:
            return self.boottime_s - record.ended_s
        if record.ended_at is None or record.ended_at < _FIRST_DATE:
            return self.boottime_s
        since_s = (self.date - record.ended_at).total_seconds()
        return since_s if since_s >= 0 else self.boottime_s


def old_replies(vms: Iterable[Vm], limits: RetentionConfig, now: Now) -> list[Vm]:
    """Those ended VMs whose reply is not kept any longer. Pure."""
    longest_s = limits.replies_s
    if longest_s is None:
        return []
    return [vm for vm in vms if vm.ended and now.since_end_s(vm.record) > longest_s]


def surplus_results(sizes: Mapping[Vm, int], limits: RetentionConfig, now: Now) -> list[Vm]:
    """Those ended VMs whose results are too much: the oldest of the owner who has the most. Pure.

    :param sizes: of the results of ended VMs, in bytes
    """
    kept = dict(sorted(sizes.items(), key=lambda one: now.since_end_s(one[0].record), reverse=True))
    found = []
    while sum(kept.values()) > limits.results_bytes:
        held: Counter[str] = Counter()
        for vm, size in kept.items():
            held[vm.record.owner] += size
        ((most, _),) = held.most_common(1)
        oldest = next(vm for vm, size in kept.items() if size and vm.record.owner == most)
        del kept[oldest]
        found.append(oldest)
    return found


def surplus(vms: Iterable[Vm], limits: RetentionConfig, now: Now) -> list[Vm]:
    """Those ended VMs that are too many or too old. Pure.

    A VM whose disk is kept does not become too old, and is counted apart.
    """
    ages = [(now.since_end_s(vm.record), vm) for vm in vms if vm.ended]
    ages.sort(key=lambda pair: pair[0], reverse=True)
    with_disk = [vm for _, vm in ages if vm.record.options.keep_disk]
    others = [(age_s, vm) for age_s, vm in ages if not vm.record.options.keep_disk]
    old = [vm for age_s, vm in others if age_s > limits.age_s]
    young = [vm for age_s, vm in others if age_s <= limits.age_s]
    return [*old, *_beyond(limits.count, young), *_beyond(limits.most_disks, with_disk)]


def _beyond(most: int, vms: list[Vm]) -> list[Vm]:
    """The VMs that are too many: again and again the first of the owner who has the most.

    Else an owner of many short runs would have others' answers removed.
    """
    of: dict[str, deque[Vm]] = {}
    for vm in vms:
        of.setdefault(vm.record.owner, deque()).append(vm)
    return [max(of.values(), key=len).popleft() for _ in range(len(vms) - most)]
