"""This host: its clock, its boot id, and what the supervisor found out about it at its start."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.qemu import trial

if TYPE_CHECKING:
    from supervisor.qemu.cmdline import Accel
    from supervisor.qemu.groups import Groups
    from supervisor.qemu.scopes import Scopes
    from supervisor.qemu.users import Users
    from supervisor.qemu.version import Binary


#: systemd answers in some milliseconds.
_ANSWER_S = 5.0


class Clock:
    """The host's CLOCK_BOOTTIME. It cannot be set, and it counts while the host sleeps."""

    def boottime_s(self) -> float:
        """Seconds since the host's boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


@attrs.frozen
class Host:
    """What the supervisor found out about this host at its start.

    :param qemu: path of QEMU's binary
    :param sudo: whether QEMU runs as root, by sudo
    :param accel: whether VMs use KVM and SEV
    :param users: the users that QEMUs run as
    :param groups: the control groups that QEMUs run in
    :param scopes: the systemd scopes that they are put into
    """

    qemu: str
    sudo: bool
    accel: Accel
    users: Users
    groups: Groups
    scopes: Scopes
    clock: Clock

    def look_at_qemu(self) -> Binary:
        """What QEMU's binary can do now: it may be upgraded while the supervisor runs. Blocking.

        :raises LaunchError: if the binary is gone, or does not run
        """
        return trial.look_at(self.qemu, sudo=self.sudo, user=self.users.shared)


async def is_shutting_down() -> bool:
    """Whether systemd is shutting the host down. False if there is no systemd, or no answer.

    Source: systemctl(1), ``is-system-running``.
    """
    ask = ["systemctl", "is-system-running"]
    with trio.move_on_after(_ANSWER_S), contextlib.suppress(OSError):
        answer = await trio.run_process(
            ask, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
        )
        return answer.stdout.strip() == b"stopping"
    return False


@functools.cache
def boot_id() -> str:
    """The kernel's random UUID for this boot of the host: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
