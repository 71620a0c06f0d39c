"""What VMs take of the host, looked up at most once a second, whoever asks how often."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.qemu import process
from supervisor.runs.metrics import Disk

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from supervisor.qemu.process import ProcessId, Usage
    from supervisor.state.vm_dir import VmDir
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
    """The last sample of a host's VMs, and of its disk.

    :ivar last: the last sample of VMs
    :ivar disk: of the disk
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self.last = Sample(datetime.min.replace(tzinfo=UTC), {})
        self._looked_at = -_FRESH_S
        self.disk = Disk()
        self._disk_looked_at = -_FRESH_S

    async def sample(self, vms: Iterable[Vm]) -> Sample:
        """:param vms: all of the host, whichever of them are asked for"""
        async with self._lock:
            if trio.current_time() - self._looked_at >= _FRESH_S:
                running = {
                    vm.id: vm.record.process for vm in vms if vm.record.process and not vm.ended
                }
                found = await trio.to_thread.run_sync(_look, running)
                self.last = Sample(datetime.now(UTC), found)
                self._looked_at = trio.current_time()
            return self.last

    async def look_at_disk(self, tmp: Path, vms: Iterable[Vm]) -> None:
        """:param vms: all on record"""
        async with self._lock:
            if trio.current_time() - self._disk_looked_at >= _FRESH_S:
                directories = [vm.dir for vm in vms]
                self.disk = await trio.to_thread.run_sync(_disk, tmp, directories)
                self._disk_looked_at = trio.current_time()


def _disk(tmp: Path, directories: Iterable[VmDir]) -> Disk:
    """Blocking: some 20 µs for each VM on record."""
    system = os.statvfs(tmp)
    directories = list(directories)
    logs = [tmp / "events.jsonl", *(one.events for one in directories)]
    return Disk(
        size=system.f_frsize * system.f_blocks,
        free=system.f_frsize * system.f_bavail,
        event_logs=sum(_size(log) for log in logs),
        results=sum(one.results.size() for one in directories),
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _look(running: dict[str, ProcessId]) -> dict[str, Usage]:
    """Blocking: some 20 µs for each."""
    found = {vm_id: process.usage(identity) for vm_id, identity in running.items()}
    return {vm_id: usage for vm_id, usage in found.items() if usage}
