"""A control group for each VM: what a guest that has taken over QEMU can take of the host.

::

    the supervisor's group      whatever started the supervisor delegates it
        supervisor              the supervisor; a group with groups below it has no processes
        vm-<id>                 one QEMU

Everything here blocks.

Source: the kernel's admin-guide/cgroup-v2.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from supervisor.errors import LaunchError
from supervisor.qemu import cgroup

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import QemuConfig
    from supervisor.qemu.cmdline import Accel

_CONTROLLERS = ("cpu", "memory", "pids")
_SUPERVISOR = "supervisor"
_VM = "vm-"
_PERIOD_US = 100_000

#: What QEMU takes beside the guest's memory: 28 MB were measured before the guest runs (7.2). The
#: rest is for buffers, page tables and cached files.
_QEMU_BYTES = 256 << 20
#: QEMU translates a guest's code into a buffer of up to so many bytes, if it emulates.
_TRANSLATED_BYTES = 1 << 30
#: QEMU's threads beside the guest's processors: 64 for its disks at most, and a few more.
_THREADS = 128


@attrs.frozen
class Bounds:
    """The most that one QEMU may take.

    :param cpus: CPU seconds a second
    :param tasks: processes and threads
    """

    memory_bytes: int
    cpus: int
    tasks: int


def bounds(config: QemuConfig, accel: Accel) -> Bounds:
    """What a VM was given, and what QEMU needs for itself. Pure."""
    overhead = _QEMU_BYTES + (0 if accel.kvm else _TRANSLATED_BYTES)
    # QEMU's own threads have a CPU of their own, so that the guest has all of its own.
    return Bounds(
        config.memory_bytes + overhead, config.smp_count + 1, config.smp_maxcpus + _THREADS
    )


class Groups:
    """The control groups of one supervisor's VMs.

    :param base: the directory that they are in; None if the host offers none
    :param most: what each VM may take
    """

    def __init__(self, base: Path | None, most: Bounds) -> None:
        self.base = base
        self._most = most

    def make(self, vm_id: str) -> Path | None:
        """A new group for a QEMU that is about to be started; None if the host offers none.

        :raises LaunchError: if it cannot be made
        """
        if self.base is None:
            return None
        self.remove(vm_id)  # of the QEMU before: its counters must not be taken for the next one's
        group, most = self.base / f"{_VM}{vm_id}", self._most
        try:
            group.mkdir(exist_ok=True)
            _write(group / "memory.max", most.memory_bytes)
            # All of the group or nothing.
            _write(group / "memory.oom.group", 1)
            _write(group / "cpu.max", f"{most.cpus * _PERIOD_US} {_PERIOD_US}")
            _write(group / "pids.max", most.tasks)
        except OSError as error:
            self.remove(vm_id)
            raise LaunchError(
                f"the control group {group} cannot be made: {error.strerror}",
                advice="see that the supervisor's control group is delegated to it",
            ) from error
        return group

    def ran_out_of_memory(self, vm_id: str) -> bool:
        """Whether the kernel has killed the group's QEMU for want of memory."""
        if self.base is None:
            return False
        with suppress(OSError):
            lines = (self.base / f"{_VM}{vm_id}" / "memory.events").read_text().splitlines()
            return int(dict(line.split() for line in lines)["oom_kill"]) > 0
        return False

    def remove(self, vm_id: str) -> None:
        """Remove the group of a QEMU that has ended. A group that is in use stays."""
        if self.base is not None:
            with suppress(OSError):
                (self.base / f"{_VM}{vm_id}").rmdir()


def enter(group: Path, pid: int) -> None:
    """Move a process into a group.

    :raises OSError: if it cannot be moved
    """
    _write(group / "cgroup.procs", pid)


def delegated() -> Path | None:
    """The group that this process may make groups in, after it has moved to a group there.

    None if the host offers none. A group that other processes are in as well is not ours to change.
    """
    own = cgroup.unified()
    if own is None:
        return None
    base = own.parent if own.name == _SUPERVISOR else own
    try:
        offered = (base / "cgroup.controllers").read_text().split()
        # The host's root group has no such file, and is systemd's.
        if not set(_CONTROLLERS) <= set(offered) or not (base / "cgroup.events").exists():
            return None
        if own is base:
            if (base / "cgroup.procs").read_text().split() != [str(os.getpid())]:
                return None
            leaf = base / _SUPERVISOR
            leaf.mkdir(exist_ok=True)
            enter(leaf, os.getpid())
        _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))
    except OSError:
        return None  # it is not delegated to us
    return base


def _write(file: Path, value: object) -> None:
    file.write_text(f"{value}\n")
