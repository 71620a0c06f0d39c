"""The QEMU process: started or found again, waited for, ended.

Source: pidfd_open(2), proc(5).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import psutil
import structlog
import trio

from supervisor.errors import LaunchError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Sequence

log = structlog.stdlib.get_logger()

#: How long after its monitor a process that is exiting may still be seen alive.
EXIT_LAG_S = 2.0

#: How long a killed process may take to go; longer means it hangs in the kernel.
_KILL_GRACE_S = 10.0


@attrs.frozen
class ProcessId:
    """What tells a process from a later one with the same pid.

    :param start_ticks: clock ticks from the host's boot to the process's start, as in proc(5)
    :param sudo: whether the process is the sudo that runs QEMU
    """

    pid: int
    start_ticks: int
    boot_id: str
    sudo: bool


class Qemu:
    """A running QEMU, or the sudo that runs it: our child, or an earlier supervisor's.

    :param pidfd: names the process for good, as its pid does not
    """

    def __init__(self, identity: ProcessId, pidfd: int, child: trio.Process | None) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._child = child
        #: Whether `kill` was needed.
        self.killed = False
        self._gone = False
        self._waiting = trio.Lock()

    @property
    def pid(self) -> int:
        """QEMU's process id, or with ``USE_SUDO`` sudo's."""
        return self.identity.pid

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def exit_code(self) -> int | None:
        """Negative for the signal that ended it; None while it runs, or if not our child."""
        return self._child.returncode if self._child else None

    async def wait(self) -> int | None:
        """The exit code, once the process has ended and, if ours, is reaped. Any number may wait.

        None of a process that is not our child: only its parent is told.
        """
        async with self._waiting:  # one task a descriptor, says trio
            if not self._gone:
                await trio.lowlevel.wait_readable(self._pidfd)
                if self._child:
                    await self._child.wait()
                self._gone = True
        return self.exit_code

    async def terminate(self) -> None:
        """Send SIGTERM, at which QEMU closes its disks and exits."""
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL."""
        self.killed = True
        await self._signal(signal.SIGKILL)

    async def _signal(self, number: signal.Signals) -> None:
        if self._gone:
            return
        if not self.identity.sudo:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass
            except PermissionError:
                # Root's, and the sudo that ran it is gone.
                await self._sudo_kill(number, self.pid)
            return
        # Not ours to signal, and to kill sudo itself would orphan QEMU.
        await self._sudo_kill(number, *self._below_sudo())
        # A sudo whose command was stopped stops itself, and would never see it end.
        await self._sudo_kill(signal.SIGCONT, self.pid)

    async def _sudo_kill(self, number: signal.Signals, *pids: int) -> None:
        await trio.run_process(
            ["sudo", "-n", "kill", f"-{number.name.removeprefix('SIG')}", *map(str, pids)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _below_sudo(self) -> list[int]:
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in children] or [self.pid]


@asynccontextmanager
async def start(
    argv: Sequence[str],
    listener: socket.socket,
    log_file: Path,
    *,
    leave: Callable[[], bool],
) -> AsyncIterator[Qemu]:
    """QEMU, in a session of its own so that no signal meant for us reaches it.

    Leaving the context kills it if it still runs, and reaps it; unless it is to be left.

    :param listener: the listening QMP socket, which QEMU gets as descriptor 0
    :param log_file: takes what QEMU prints; what an attempt before printed is gone
    :param leave: whether, on leaving, the process is to run on
    :raises LaunchError: if the binary cannot be run
    """
    # Appending, so that the file may be cut while QEMU writes to it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    with os.fdopen(os.open(log_file, flags, 0o600), "wb") as output:
        try:
            child = await trio.lowlevel.open_process(
                list(argv), stdin=listener, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise LaunchError(
                f"{argv[0]} cannot be run: {error.strerror}",
                advice="install the package qemu-system-x86, or set MANAGER_QEMU_BIN_PATH",
                argv=argv,
            ) from error
    try:
        # Not reaped yet, so the pid is its own even if it has ended already.
        pidfd = os.pidfd_open(child.pid)
        started = _start_ticks(child.pid) or 0
        identity = ProcessId(child.pid, started, boot_id(), _is_sudo(argv))
    except OSError as error:
        child.kill()
        raise LaunchError(
            f"QEMU cannot be watched: {error.strerror}",
            advice="see to the limit of open files",
            argv=argv,
        ) from error
    async with _held(Qemu(identity, pidfd, child), pidfd, leave) as qemu:
        yield qemu


@asynccontextmanager
async def adopt(
    identity: ProcessId, pidfd: int, *, leave: Callable[[], bool]
) -> AsyncIterator[Qemu]:
    """A QEMU that `find` found. Leaving the context ends it like one we started."""
    async with _held(Qemu(identity, pidfd, None), pidfd, leave) as qemu:
        yield qemu


@asynccontextmanager
async def _held(qemu: Qemu, pidfd: int, leave: Callable[[], bool]) -> AsyncIterator[Qemu]:
    try:
        yield qemu
    finally:
        if not leave():
            with trio.move_on_after(_KILL_GRACE_S, shield=True) as patience:
                with contextlib.suppress(OSError):
                    await qemu.kill()
                await qemu.wait()
            if patience.cancelled_caught:
                log.error("process does not end", pid=qemu.pid)
        os.close(pidfd)


def find(vm_id: str, recorded: ProcessId | None, running: Running) -> tuple[ProcessId, int] | None:
    """A VM's process and a pidfd of it, which is the caller's to close; None if it is gone.

    The one on record, if it is still that one: the host was not booted since, the pid has not
    been given to another process, and that is this VM's. Else one that has the VM's uuid on its
    command line, for the supervisor may have been killed before it could note the pid.
    """
    pids = [*([recorded.pid] if recorded else []), *running.get(vm_id, [])]
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        # From here on the pid cannot come to mean another process without our seeing it.
        started = _start_ticks(pid)
        words = command_line(pid)
        same = recorded is None or recorded.pid != pid or _matches(recorded, started)
        if started is not None and vm_id in words and same and _is_trusted(pid):
            return ProcessId(pid, started, boot_id(), _is_sudo(words)), pidfd
        os.close(pidfd)
    return None


#: Process ids by VM id; the outermost process first where there are several, as with sudo.
Running = dict[str, list[int]]


def running_below(tmp: Path) -> Running:
    """Every process whose command line has the uuid and the directory of a VM of this tmp/."""
    found: Running = {}
    directory = re.compile(re.escape(str(tmp)) + r"/([0-9a-f-]{36})/")
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        words = command_line(pid)
        if "-uuid" not in words[:-1] or not _is_trusted(pid):
            continue
        vm_id = words[words.index("-uuid") + 1]
        if any(vm_id in directory.findall(word) for word in words):
            found.setdefault(vm_id, []).append(pid)
    for pids in found.values():
        pids.sort(key=lambda pid: not _is_sudo(command_line(pid)))
    return found


def boot_id() -> str:
    """The kernel's name for this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boottime_s() -> float:
    """The host's CLOCK_BOOTTIME: it cannot be set, and goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def command_line(pid: int) -> list[str]:
    """A process's arguments; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _is_trusted(pid: int) -> bool:
    """Whether it runs for us or for root. Anybody can have any words on his command line."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    # The real user: programs that are root's by their mode run for whoever called them.
    real = int(status.partition("\nUid:")[2].split(maxsplit=1)[0])
    return real in (0, os.geteuid())


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None of a process that is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the name, in parentheses, and may hold anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _matches(recorded: ProcessId, started: int | None) -> bool:
    return recorded.boot_id == boot_id() and recorded.start_ticks == started


def _is_sudo(words: Sequence[str]) -> bool:
    return bool(words) and os.path.basename(words[0]) == "sudo"
