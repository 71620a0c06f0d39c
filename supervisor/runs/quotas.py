"""What one party may have at once, so that no party takes all the room.

Operators have no quota: they can end everybody's VMs anyway.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from supervisor.config.qemu import size_in_bytes
from supervisor.errors import AtCapacity
from supervisor.runs.admission import NONE, Refusal, Resources, in_mib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.caller import Caller
    from supervisor.config import LimitsConfig
    from supervisor.runs.vms import Vms


class Quotas:
    """The quotas of one supervisor's owners. The records of the VMs say what each has."""

    def __init__(self, limits: LimitsConfig, vms: Vms) -> None:
        memory = limits.max_memory_per_owner
        self._most_vms = limits.max_vms_per_owner
        self._most_bytes = size_in_bytes(memory) if memory else None
        self._vms = vms
        #: Runs that have no VM on record yet, by owner: those that wait for room.
        self._coming: Counter[str] = Counter()

    @contextmanager
    def claim(self, caller: Caller, need: Resources) -> Iterator[None]:
        """Count a run of the caller while the body puts its VM on record.

        :raises AtCapacity: if the caller would have more than its quota
        """
        if not caller.is_party:
            yield
            return
        owner = caller.name
        if error := self._over(self._has(owner, need), need):
            self._vms.admission.refused[Refusal.QUOTA] += 1
            raise error
        self._coming[owner] += 1
        try:
            yield
        finally:
            self._coming[owner] -= 1
            if not self._coming[owner]:
                del self._coming[owner]

    def _has(self, owner: str, need: Resources) -> Resources:
        mine = [
            Resources.on_record(vm.record)
            for vm in self._vms
            if vm.record.owner == owner and not vm.ended
        ]
        return sum([*mine, *[need] * self._coming[owner]], start=NONE)

    def _over(self, has: Resources, need: Resources) -> AtCapacity | None:
        wanted = has + need
        if self._most_vms is not None and wanted.vms > self._most_vms:
            detail = (
                f"you have {has.vms} of the {self._most_vms} VMs that one owner may have at once,"
                " runs that wait included (MANAGER_MAX_VMS_PER_OWNER)"
            )
        elif self._most_bytes is not None and wanted.memory_bytes > self._most_bytes:
            detail = (
                f"your VMs have {in_mib(has.memory_bytes)} of the {in_mib(self._most_bytes)} of"
                f" memory that one owner's may have, runs that wait included, and the next one"
                f" needs {in_mib(need.memory_bytes)} (MANAGER_MAX_MEMORY_PER_OWNER)"
            )
        else:
            return None
        # No time to try again: a VM of the caller's own must end first.
        return AtCapacity(detail, advice="end one of your VMs first", retry_after_s=None)
