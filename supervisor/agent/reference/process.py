"""A running algorithm as the agent sees it: how it starts, how it is ended, why it ended."""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The program begins when a line comes: by then its limits are set.
GATE = 'read -r _ && exec "$@" </dev/null'
SH = "/bin/sh"
VMSTAT = "/proc/vmstat"


class Shortage(enum.Enum):
    """What was used up when the kernel killed an algorithm for want of memory."""

    LIMIT = enum.auto()
    GUEST = enum.auto()


class Isolation(Protocol):
    """What separates algorithms from the agent."""

    def seen(self, directory: str) -> str:
        """The path under which an algorithm sees its *directory*."""

    def start(
        self,
        directory: str,
        command: Sequence[str | bytes],
        environment: Mapping[str, str],
        memory_mib: int,
    ) -> Process:
        """Starts *command*; *memory_mib*: 0 for the default. OSError."""


class Process:
    """A process and those it has started, which end with the block.

    :ivar memory_mib: its limit; 0 if it has none
    :ivar shortage: of a process that has ended, if the kernel killed it for want of memory
    """

    def __init__(self, popen: subprocess.Popen[bytes], memory_mib: int) -> None:
        self.memory_mib = memory_mib
        self.shortage: Shortage | None = None
        self._popen = popen
        self._kills_before = kernels_kills()
        self._lock = threading.Lock()
        self.pidfd = os.pidfd_open(popen.pid)
        assert popen.stdin
        assert popen.stdout
        assert popen.stderr
        self.pid = popen.pid
        self._gate = popen.stdin
        self.stdout, self.stderr = popen.stdout, popen.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        os.close(self.pidfd)
        for stream in (self._gate, self.stdout, self.stderr):
            stream.close()

    def let_go(self) -> None:
        """Lets the program begin."""
        self._gate.write(b"\n")
        self._gate.close()

    def kill(self) -> None:
        """Kills them all and does not wait. For any thread, also when they have ended."""
        if self._lock.acquire(blocking=False):  # else they are being killed, or are gone
            try:
                if self._popen.returncode is None:
                    self._kill()
            finally:
                self._lock.release()

    def end(self) -> int:
        """Kills what still runs and returns when it is gone; the status, -N for signal N."""
        self.kill()
        with self._lock:
            self._reap()
            return self._popen.wait()

    def _kill(self) -> None:
        # Until the leader is reaped, its number cannot mean another group.
        os.killpg(self._popen.pid, signal.SIGKILL)

    def _reap(self) -> None:
        killed = self._popen.wait() == -signal.SIGKILL
        # No cgroup says whom the kernel has killed: this process was to be the first.
        if killed and kernels_kills() > self._kills_before:
            self.shortage = Shortage.GUEST


class NoIsolation:
    """Algorithms run as the agent itself does, each in a process group of its own."""

    def seen(self, directory: str) -> str:
        return directory

    def start(
        self,
        directory: str,
        command: Sequence[str | bytes],
        environment: Mapping[str, str],
        memory_mib: int,
    ) -> Process:
        import resource

        with ExitStack() as undo:
            # On leaving, a process ends that was not let go: its input does.
            popen = undo.enter_context(start_gated(command, {**os.environ, **environment}))
            process = Process(popen, memory_mib)
            undo.pop_all()
        try:
            kill_first(process.pid)
            if memory_mib:
                resource.prlimit(process.pid, resource.RLIMIT_AS, (memory_mib << 20,) * 2)
            process.let_go()
        except BaseException:
            process.__exit__()
            raise
        return process


def kernels_kills() -> int:
    """How many processes the kernel has killed for want of memory. See proc(5), /proc/vmstat."""
    with open(VMSTAT, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))


def kill_first(pid: int) -> None:
    """Has the kernel kill this process before any other if it is short of memory."""
    with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def start_gated(
    command: Sequence[str | bytes], environment: Mapping[str, str], **options: Any
) -> subprocess.Popen[bytes]:
    """*command*, which begins when its stdin gets a line and then has none; OSError."""
    return subprocess.Popen(
        [SH, "-c", GATE, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        **options,
    )
