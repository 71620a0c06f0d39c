"""What the control groups of this process leave of the host: memory and CPUs. Blocking.

QEMU is started in the supervisor's groups, so their limits are its own. A limit of an ancestor
holds for all below it: the least one counts.

Source: the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory; cgroups(7).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")
_OF_THIS_PROCESS = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """The most that all processes of our groups may take together; all of the host's at most."""
    limits = [limit for group in _groups("memory") if (limit := _memory_limit(group)) is not None]
    return min([psutil.virtual_memory().total, *limits])


def available_bytes() -> int:
    """How much of that processes can take now without anything being swapped out."""
    left = [
        limit - _memory_used(group)
        for group in _groups("memory")
        if (limit := _memory_limit(group)) is not None
    ]
    return max(0, min([psutil.virtual_memory().available, *left]))


def cpus() -> int:
    """CPUs that this process may run on, or whose time its groups may use, if that is less."""
    shares = [share for group in _groups("cpu") if (share := _cpu_limit(group)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *shares])))


def unified() -> Path | None:
    """The directory of this process's group of version 2; None if there is none."""
    return next(_groups(""), None)


def _groups(controller: str) -> Iterator[Path]:
    """The directories of our group and its ancestors, of version 2 and of version 1.

    :param controller: of version 1; empty for groups of version 2 alone
    """
    for line in _OF_THIS_PROCESS.read_text(errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [_ROOT / "unified", _ROOT]  # the former beside groups of version 1
        elif controller in controllers.split(","):
            mounts = [_ROOT / controllers, _ROOT / controller]
        else:
            continue
        mount = next((mount for mount in mounts if mount.is_dir()), _ROOT)
        # In a container the path may be the host's, and the mount shows the container's group.
        names = Path(path.lstrip("/")).parts
        inside = mount.joinpath(*names)
        names = names if ".." not in names and inside.is_dir() else ()
        for depth in range(len(names), -1, -1):
            yield mount.joinpath(*names[:depth])


def _memory_limit(group: Path) -> int | None:
    # Over memory.high, version 2 keeps processes waiting for as long as they stay over it.
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [number for name in names if (number := _number(group / name)) is not None]
    return min(limits, default=None)


def _memory_used(group: Path) -> int:
    """Without cached files that were not used lately: the kernel drops these first."""
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    statistics = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines())
    cached = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
    return used - int(cached)


def _cpu_limit(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max", or no such file
    return share if share > 0 else None  # -1: no limit


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
