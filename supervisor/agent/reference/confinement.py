"""Keeps an algorithm away from the agent and the guest: namespaces, a user, a cgroup of its own.

The algorithm is the second process of a PID namespace. The first is a shell that waits for the end
of its input. Whatever ends it, even the agent's death, the kernel then kills all others there, and
the shell is not gone before they are. A thread of the agent enters the namespaces, starts both and
ends. Python 3.11 has no function for that, hence ctypes. The algorithm is the agent's child, so
its exit status is the kernel's word.

Of the guest, the algorithm sees the program files, a /proc with its own processes, a /dev with five
devices, /run with what it was given, and an empty /tmp. It has no network: no call of it reaches
the agent. Its user may write nowhere else and gains no rights by any program it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .process import SH, Process, kill_first, start_gated
from .refusal import Refusal, StatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 29, 1 << 30
NAMESPACES = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
PR_SET_NO_NEW_PRIVS = 38
NOBODY = 65534
# The namespaces' first process. $1 is the algorithm's directory. A process that ignores SIGCHLD
# need not wait for its children, and all orphans become this one's.
FIRST_PROCESS = """
set -e
mount -t proc -o nosuid,nodev,noexec proc /proc
umount -l /sys
mount -t tmpfs -o nosuid,noexec,mode=755 tmpfs /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/full c 1 7
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
ln -s /proc/self/fd /dev/fd
mkdir /dev/shm
mount -o remount,ro /dev
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
mount --bind "$1" /run
mount -o remount,bind,ro,nosuid,nodev /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
ip link set lo up
trap '' CHLD
echo ready
read -r _
"""
ENVIRONMENT = {"PATH": "/usr/bin:/usr/sbin", "HOME": "/tmp"}
CGROUPS = "/sys/fs/cgroup"
MAX_PROCESSES = 1024
# Of the memory that is available, the agent's part. The algorithm has the rest by default.
AGENTS_MIB = 48
LEAST_MIB = 32


class ConfinedProcess(Process):
    """An algorithm in its namespaces, whose first process is *first*, and in its cgroup."""

    def __init__(
        self, popen: subprocess.Popen[bytes], first: subprocess.Popen[bytes], cgroup: Cgroup
    ) -> None:
        super().__init__(popen, cgroup.memory_mib)
        self._first = first
        self._cgroup = cgroup
        self._was_short_of_memory = False

    @property
    def was_short_of_memory(self) -> bool:
        return self._was_short_of_memory

    def _kill(self) -> None:
        self._first.kill()

    def _reap(self) -> None:
        # The first process waits until the agent has reaped the algorithm.
        if self._popen.returncode is None:
            killed = self._popen.wait() == -signal.SIGKILL
            end_first(self._first)
            self._was_short_of_memory = killed and self._cgroup.has_killed
            self._cgroup.remove()


class Cgroup:
    """A new cgroup, which limits memory, processes and the share of the CPUs. OSError."""

    def __init__(self, memory_mib: int) -> None:
        self.memory_mib = memory_mib
        self._path = f"{CGROUPS}/algorithm-{os.getpid()}"
        _write(f"{CGROUPS}/cgroup.subtree_control", "+cpu +memory +pids")
        os.mkdir(self._path)
        _write(f"{self._path}/memory.max", str(memory_mib << 20))
        _write(f"{self._path}/memory.oom.group", "1")
        _write(f"{self._path}/pids.max", str(MAX_PROCESSES))

    def add(self, pid: int) -> None:
        _write(f"{self._path}/cgroup.procs", str(pid))

    @property
    def has_killed(self) -> bool:
        """Whether the kernel has killed a process of it for want of memory."""
        with open(f"{self._path}/memory.events", encoding="ascii") as file:
            events = dict(line.split() for line in file)
        return events["oom_kill"] != "0"

    def remove(self) -> None:
        """No process may be left in it."""
        os.rmdir(self._path)


class Confinement:
    """Use it only in a guest of ours, as root: /init has mounted the cgroups."""

    def seen(self, _: str) -> str:
        return "/run"

    def start(
        self,
        directory: str,
        command: Sequence[str | bytes],
        environment: Mapping[str, str],
        memory_mib: int,
    ) -> Process:
        cgroup = Cgroup(memory_mib or _available_mib())
        try:
            with ThreadPoolExecutor(1) as thread:
                spawned = thread.submit(_spawn, directory, command, {**ENVIRONMENT, **environment})
                popen, first = spawned.result()
        except BaseException:
            cgroup.remove()
            raise
        process = ConfinedProcess(popen, first, cgroup)
        try:
            cgroup.add(popen.pid)
            kill_first(popen.pid)
            process.let_go()
        except BaseException:
            process.__exit__()
            raise
        return process


def _spawn(
    directory: str, command: Sequence[str | bytes], environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """The algorithm's process and the namespaces' first, of a thread that ends then."""
    # Imported here because it takes long and the agent should answer before.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NAMESPACES):
        raise OSError(ctypes.get_errno(), "no namespaces for the algorithm")
    first = subprocess.Popen(
        [SH, "-c", FIRST_PROCESS, "sh", directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert first.stdout
        said = first.stdout.readline()
        if said != b"ready\n":
            why = f"the algorithm cannot be confined: {said.decode(errors='replace').strip()}"
            raise Refusal(StatusCode.INTERNAL, why)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the algorithm might gain rights")
        ids = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
        return start_gated(command, environment, cwd="/tmp", **ids), first
    except BaseException:
        first.kill()
        end_first(first)
        raise


def end_first(first: subprocess.Popen[bytes]) -> None:
    """Returns when it has ended. It was killed, or ends because its input does."""
    for stream in (first.stdin, first.stdout):
        assert stream
        stream.close()
    first.wait()


def _available_mib() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return max(LEAST_MIB, kib // 1024 - AGENTS_MIB)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
