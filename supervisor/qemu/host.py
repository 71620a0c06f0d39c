"""This host: its clocks, its boot, and what the supervisor found out about it at its start."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from supervisor.qemu.cmdline import Accel


class Clock:
    """The host's CLOCK_BOOTTIME. Nobody can set it, and it goes on while the host sleeps."""

    def boottime_s(self) -> float:
        """Seconds since the host's boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


@attrs.frozen
class Host:
    """
    :param qemu: path of QEMU's binary
    :param accel: what of the hardware VMs use
    """

    qemu: str
    accel: Accel
    clock: Clock


@functools.cache
def boot_id() -> str:
    """The kernel's name for this boot of the host: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
