"""This host: its clock, its boot id, and what the supervisor found out about it at its start."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from supervisor.qemu.cmdline import Accel


class Clock:
    """The host's CLOCK_BOOTTIME. It cannot be set, and it counts while the host sleeps."""

    def boottime_s(self) -> float:
        """Seconds since the host's boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


@attrs.frozen
class Host:
    """What the supervisor found out about this host at its start.

    :param qemu: path of QEMU's binary
    :param accel: whether VMs use KVM and SEV
    """

    qemu: str
    accel: Accel
    clock: Clock


@functools.cache
def boot_id() -> str:
    """The kernel's random UUID for this boot of the host: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
