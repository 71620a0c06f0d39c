"""What running VMs take of the host, looked up at most once a second, whoever asks how often."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.qemu import process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.qemu.process import ProcessId, Usage
    from supervisor.vm.vm import Vm

_FRESH_S = 1.0


@attrs.frozen
class Sample:
    """What the processes of VMs took at a time.

    :param vms: by VM id; without those whose process was gone
    """

    at: datetime
    vms: dict[str, Usage]


class Usages:
    """The last sample of a host's VMs."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._last = Sample(datetime.min.replace(tzinfo=UTC), {})
        self._looked_at = -_FRESH_S

    async def sample(self, vms: Iterable[Vm]) -> Sample:
        """:param vms: all of the host, whichever of them are asked for"""
        async with self._lock:
            if trio.current_time() - self._looked_at >= _FRESH_S:
                running = {
                    vm.id: vm.record.process for vm in vms if vm.record.process and not vm.ended
                }
                found = await trio.to_thread.run_sync(_look, running)
                self._last = Sample(datetime.now(UTC), found)
                self._looked_at = trio.current_time()
            return self._last


def _look(running: dict[str, ProcessId]) -> dict[str, Usage]:
    """Blocking: some 20 µs for each."""
    found = {vm_id: process.usage(identity) for vm_id, identity in running.items()}
    return {vm_id: usage for vm_id, usage in found.items() if usage}
