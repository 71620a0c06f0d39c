"""Keeps an algorithm away from the agent and the guest: namespaces, a user, a cgroup of its own.

The algorithm is the second process of a PID namespace. The first is a shell that waits for the end
of its input. Whatever ends it, even the agent's death, the kernel then kills all others there, and
the shell is not gone before they are. A thread of the agent enters the namespaces, starts both and
ends. Python 3.11 has no function for that, hence ctypes. The algorithm is the agent's child, so
its exit status is the kernel's word.

Of the guest, the algorithm sees the program files, a /proc with its own processes, a /dev with five
devices, /run with what it was given, and an empty /tmp. It has no network: no call of it reaches
the agent. Its user may write nowhere else and gains no rights by any program it runs. A filter of
system calls refuses what namespaces and cgroups do not cover.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .process import SH, Process, Shortage, kill_first, start_gated
from .refusal import Refusal, StatusCode
from .syscall_filter import filter_program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 29, 1 << 30
NAMESPACES = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
NOBODY = 65534
# The namespaces' first process, the only one that can mount their /proc. A process that ignores
# SIGCHLD need not wait for its children, and all orphans become this one's. With a user namespace,
# the algorithm could try much more of the kernel.
FIRST_PROCESS = """
mount -t proc -o nosuid,nodev,noexec proc /proc || exit
echo 0 >/proc/sys/user/max_user_namespaces
trap '' CHLD
echo ready
read -r _
"""
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # minor numbers; major 1
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND = 1, 2, 4, 8, 1 << 5, 1 << 12
UMOUNT_DETACH = 2
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
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

    def _kill(self) -> None:
        self._first.kill()

    def _reap(self) -> None:
        # The first process waits until the agent has reaped the algorithm.
        if self._popen.returncode is None:
            killed = self._popen.wait() == -signal.SIGKILL
            end_first(self._first)
            self.shortage = self._cgroup.shortage if killed else None
            self._cgroup.remove()


class Cgroup:
    """A new cgroup, which limits memory, processes and the share of the CPUs. OSError."""

    def __init__(self, memory_mib: int) -> None:
        self.memory_mib = memory_mib
        self._path = f"{CGROUPS}/algorithm-{os.getpid()}"
        _write(f"{CGROUPS}/cgroup.subtree_control", "+cpu +memory +pids")
        os.mkdir(self._path)
        try:
            _write(f"{self._path}/memory.max", str(memory_mib << 20))
            _write(f"{self._path}/memory.oom.group", "1")
            _write(f"{self._path}/pids.max", str(MAX_PROCESSES))
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        _write(f"{self._path}/cgroup.procs", str(pid))

    @property
    def shortage(self) -> Shortage | None:
        """Why the kernel has killed a process of it, if it has."""
        with open(f"{self._path}/memory.events", encoding="ascii") as file:
            events = dict(line.split() for line in file)
        if events["oom_kill"] == "0":
            return None
        # The kernel counts as oom only what this cgroup's own limit has refused.
        return Shortage.GUEST if events["oom"] == "0" else Shortage.LIMIT

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
                spawned = thread.submit(
                    _spawn, directory, command, {**ENVIRONMENT, **environment}, cgroup
                )
                process = spawned.result()
        except BaseException:
            cgroup.remove()
            raise
        try:
            cgroup.add(process.pid)
            kill_first(process.pid)
            process.let_go()
        except BaseException:
            process.__exit__()
            raise
        return process


class Libc:
    """Functions of the C library. They raise OSError if they return anything but 0."""

    def __init__(self) -> None:
        # Imported here because it takes long and the agent should answer before.
        import ctypes

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._errno = ctypes.get_errno
        self._buffer, self._address = ctypes.create_string_buffer, ctypes.addressof
        self.unshare = self._checked("unshare")
        self.prctl = self._checked("prctl")
        self.umount2 = self._checked("umount2")
        self._mount = self._checked("mount")

    def mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        self._mount(*(text.encode() for text in (source, target, kind)), flags, data.encode())

    def filter_system_calls(self, program: bytes) -> None:
        """Of this thread and all that it starts. It must have no way to new privileges."""
        instructions = self._buffer(program)
        filter_ = struct.pack("HP", len(program) // 8, self._address(instructions))
        self.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0)

    def _checked(self, name: str) -> Callable[..., None]:
        function = self._libc[name]

        def call(*arguments: bytes | int) -> None:
            if function(*arguments):
                number = self._errno()
                raise OSError(number, f"{name}: {os.strerror(number)}")

        return call


def _arrange(libc: Libc, directory: str) -> None:
    """Arranges the files that the algorithm sees, in this thread's mount namespace."""
    libc.umount2(b"/sys", UMOUNT_DETACH)
    libc.mount("tmpfs", "/dev", "tmpfs", NOSUID | NOEXEC, "mode=755")
    for name, minor in DEVICES.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR, os.makedev(1, minor))
        os.chmod(f"/dev/{name}", 0o666)
    os.symlink("/proc/self/fd", "/dev/fd")
    os.mkdir("/dev/shm")
    libc.mount("", "/dev", "", REMOUNT | RDONLY | NOSUID | NOEXEC, "mode=755")
    libc.mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777")
    libc.mount(directory, "/run", "", BIND)
    libc.mount("", "/run", "", REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    libc.mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "mode=1777")


def _bring_up_loopback() -> None:
    """Brings up ``lo`` in this thread's network namespace."""
    with socket.socket() as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _spawn(
    directory: str, command: Sequence[str | bytes], environment: Mapping[str, str], cgroup: Cgroup
) -> ConfinedProcess:
    """The algorithm's process, not yet in *cgroup*, of a thread that ends then."""
    libc = Libc()
    libc.unshare(NAMESPACES)
    _arrange(libc, directory)
    _bring_up_loopback()
    with ExitStack() as undo:
        first = subprocess.Popen(
            [SH, "-c", FIRST_PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        undo.callback(end_first, first)
        assert first.stdout
        said = first.stdout.readline()
        if said != b"ready\n":
            why = f"the algorithm cannot be confined: {said.decode(errors='replace').strip()}"
            raise Refusal(StatusCode.INTERNAL, why)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.filter_system_calls(filter_program())
        ids = {"user": NOBODY, "group": NOBODY, "extra_groups": ()}
        # On leaving, a process ends that was not let go: its input does.
        popen = undo.enter_context(start_gated(command, environment, cwd="/tmp", **ids))
        process = ConfinedProcess(popen, first, cgroup)
        undo.pop_all()
        return process


def end_first(first: subprocess.Popen[bytes]) -> None:
    """Returns when it has ended. It was killed, or ends because its input does.

    It ends after all others in its namespace are reaped. Any further child of the agent's is one
    of these, and nobody else would reap that.
    """
    for stream in (first.stdin, first.stdout):
        assert stream
        stream.close()
    while first.poll() is None:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended and ended.si_pid != first.pid:
            os.waitpid(ended.si_pid, 0)


def _available_mib() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return max(LEAST_MIB, kib // 1024 - AGENTS_MIB)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
