"""The QEMU process: starts it, finds it after a restart, waits for it and ends it.

Source: pidfd_open(2), proc(5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import psutil
import structlog
import trio

from supervisor.errors import LaunchError
from supervisor.qemu import confine, groups, users
from supervisor.qemu.host import boot_id
from supervisor.qemu.option import escape

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from supervisor.qemu.users import User

log = structlog.stdlib.get_logger()

#: How long after its QMP socket has closed an exiting process may still seem alive.
EXIT_LAG_S = 2.0

#: A killed process that takes longer than this to end hangs in the kernel.
_KILL_GRACE_S = 10.0

#: Errors of pidfd_open(2) that are about the host's resources, not about the process.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@attrs.frozen
class ProcessId:
    """Identifies a process. A later process with the same pid has another ProcessId.

    :param start_ticks: clock ticks from the host's boot to the process's start, as in proc(5)
    :param sudo: whether the process is a sudo that runs QEMU
    """

    pid: int
    start_ticks: int
    boot_id: str
    sudo: bool


class Qemu:
    """A running QEMU, or the sudo that runs it. An earlier supervisor may have started it.

    :param pidfd: always means this process; the kernel can give a pid to another process
    :param child: None if an earlier supervisor started the process
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
        """The process id of QEMU, or of sudo with ``USE_SUDO``."""
        return self.identity.pid

    @property
    def pidfd(self) -> int:
        """It is open for as long as the context that has started or adopted QEMU."""
        return self._pidfd

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while the process runs, or if it is not our child."""
        return self._child.returncode if self._child else None

    async def wait(self) -> int | None:
        """Wait until the process has ended and, if it is our child, is reaped. Any task may wait.

        :returns: the exit code; None if the process is not our child: only its parent learns it
        """
        async with self._waiting:  # trio lets one task wait for a descriptor
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
                # QEMU runs as root, and the sudo that ran it is gone.
                await self._sudo_kill(number, self.pid)
            return
        # We may not signal root's process, and killing sudo itself would orphan QEMU.
        await self._sudo_kill(number, *self._below_sudo())
        # A sudo stops itself when its command is stopped, and would then never see the end.
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
    passed: Sequence[int] = (),
    user: User | None = None,
    group: Path | None = None,
) -> AsyncIterator[Qemu]:
    """Start QEMU in a session of its own, so that no signal meant for us reaches it.

    Leaving the context kills QEMU if it still runs, and reaps it, unless ``leave()`` is true.

    :param listener: the listening QMP socket, which QEMU gets as descriptor 0
    :param log_file: takes what QEMU prints; the output of an earlier attempt is removed
    :param leave: whether QEMU should run on when the context is left
    :param passed: more descriptors that the command gets
    :param user: that QEMU runs as; None for the supervisor's own
    :param group: the control group that QEMU is put into; None to leave it in the supervisor's
    :raises LaunchError: if the binary cannot be run, or not in the group
    """
    # QEMU appends, so that the file may be cut while QEMU writes to it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    opened = await trio.to_thread.run_sync(os.open, log_file, flags, 0o600)
    with os.fdopen(opened, "wb") as output:
        try:
            child = await trio.lowlevel.open_process(
                [*users.run_as(user), *argv],
                stdin=listener,
                stdout=output,
                stderr=output,
                pass_fds=passed,
                start_new_session=True,
                env=confine.environment(),
            )
        except OSError as error:
            raise LaunchError(
                f"{argv[0]} cannot be run: {error.strerror}",
                advice="install the package qemu-system-x86, or set MANAGER_QEMU_BIN_PATH",
                argv=argv,
            ) from error
    try:
        # The child is not reaped yet, so its pid is its own even if it has ended already.
        pidfd = os.pidfd_open(child.pid)
        started = _start_ticks(child.pid) or 0
        identity = ProcessId(child.pid, started, boot_id(), _is_sudo(argv))
    except OSError as error:
        child.kill()
        raise LaunchError(
            f"the new QEMU process cannot be watched: {error.strerror}",
            advice="raise the supervisor's limit of open files",
            argv=argv,
        ) from error
    async with _killed_at_exit(Qemu(identity, pidfd, child), pidfd, leave) as qemu:
        if group:
            await _enter(group, child.pid, argv)
        yield qemu


async def _enter(group: Path, pid: int, argv: Sequence[str]) -> None:
    try:
        await trio.to_thread.run_sync(groups.enter, group, pid)
    except ProcessLookupError:
        pass  # it has ended already
    except OSError as error:
        raise LaunchError(
            f"QEMU cannot be put into the control group {group}: {error.strerror}",
            advice="see that the supervisor's control group is delegated to it",
            argv=argv,
        ) from error


@asynccontextmanager
async def adopt(
    identity: ProcessId, pidfd: int, *, leave: Callable[[], bool]
) -> AsyncIterator[Qemu]:
    """Take over a QEMU that `find` found. Leaving the context ends QEMU as `start` does."""
    async with _killed_at_exit(Qemu(identity, pidfd, None), pidfd, leave) as qemu:
        yield qemu


@asynccontextmanager
async def _killed_at_exit(qemu: Qemu, pidfd: int, leave: Callable[[], bool]) -> AsyncIterator[Qemu]:
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


def find(
    directory: Path, recorded: ProcessId | None, running: Running
) -> tuple[ProcessId, int] | None:
    """A VM's process and a pidfd of it, which the caller must close; None if the process is gone.

    The process on record comes first, if the host has not rebooted since and the pid still means
    that process. Then comes any process that has the VM's uuid on its command line: the
    supervisor may have been killed before it recorded the pid.

    :param directory: the VM's, named by its id
    :param recorded: the process on record, if any
    :param running: from `running_below`
    :raises OSError: if no file descriptor is left; the process may be running
    """
    if recorded and recorded.boot_id != boot_id():
        recorded = None  # the pid belonged to a process of another boot
    vm_id = directory.name
    pids = [*([recorded.pid] if recorded else []), *running.get(vm_id, [])]
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                raise
            continue  # gone, or a thread's id now: EINVAL or ENOENT, by the kernel's version
        # While the pidfd is open, a reuse of the pid cannot go unnoticed.
        started = _start_ticks(pid)
        words = command_line(pid)
        same = recorded is None or recorded.pid != pid or recorded.start_ticks == started
        if started is not None and vm_id in words and same and _is_trusted(pid, directory):
            return ProcessId(pid, started, boot_id(), _is_sudo(words)), pidfd
        os.close(pidfd)
    return None


#: Process ids by VM id. If a VM has several, as with sudo, the outermost process comes first.
Running = dict[str, list[int]]


def running_below(tmp: Path) -> Running:
    """Every process whose command line has the uuid and the directory of a VM of this tmp/."""
    running: Running = {}
    # QEMU's options have commas doubled.
    directory = re.compile(re.escape(escape(tmp)) + r"/([0-9a-f-]{36})/")
    for pid in psutil.pids():
        words = command_line(pid)
        if "-uuid" not in words[:-1]:
            continue
        vm_id = words[words.index("-uuid") + 1]
        named = any(vm_id in directory.findall(word) for word in words)
        if named and _is_trusted(pid, tmp / vm_id):
            running.setdefault(vm_id, []).append(pid)
    for pids in running.values():
        pids.sort(key=lambda pid: not _is_sudo(command_line(pid)))
    return running


# These three functions read /proc as bytes: another user's process may have any bytes there.


def command_line(pid: int) -> list[str]:
    """A process's arguments; none if the process is gone."""
    # Not by psutil: it splits a single argument at its spaces.
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _is_trusted(pid: int, directory: Path) -> bool:
    """Whether our user, root or the VM's own user runs the process.

    Any user can give a process any arguments. The VM's own user has some of the files in the VM's
    directory, and cannot make any.
    """
    # Not by psutil: it takes a process that names itself "Uid:\t0\t0\t0" for root's.
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False
    # The kernel escapes newlines in the name. The first id is the real user: that of the caller,
    # if the program is set-uid.
    real = int(status.partition(b"\nUid:")[2].split(maxsplit=1)[0])
    if real in (0, os.geteuid()):
        return True
    with contextlib.suppress(OSError):
        return any(file.lstat().st_uid == real for file in directory.iterdir())
    return False


def _start_ticks(pid: int) -> int | None:
    """None if the process is gone or a zombie."""
    # Not by psutil: it gives seconds of a clock that can be set.
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/<pid>/stat from the third one; None if the process is gone or a zombie."""
    try:
        stat = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The second field is the name, in parentheses, and may hold anything.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields


@attrs.frozen
class Usage:
    """What a QEMU takes of the host.

    :param cpu_s: CPU time, of all its threads, since it was started
    :param memory_bytes: resident, with what it shares with other processes
    :param disk_read_bytes, disk_written_bytes: what reached the host's disks; None if this process
        may not know
    """

    cpu_s: float
    memory_bytes: int
    disk_read_bytes: int | None
    disk_written_bytes: int | None


def _below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and theirs."""
    # Not by psutil: it looks at every process of the host.
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split():
            yield int(child)
            yield from _below(int(child))


def usage(identity: ProcessId) -> Usage | None:
    """None if the process is gone. Blocking. Source: proc(5), /proc/pid/stat"""
    pids = [identity.pid, *(_below(identity.pid) if identity.sudo else ())]
    first, *others = [_stat(pid) for pid in pids]
    if first is None or int(first[19]) != identity.start_ticks:
        return None
    found = [first, *(fields for fields in others if fields)]
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in found)
    pages = sum(int(fields[21]) for fields in found)
    read, written = _io(pids)
    cpu_s, memory = ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")
    return Usage(cpu_s, memory, read, written)


def _read(file: str) -> bytes:
    """Of /proc, which answers whole: a scrape reads two files of each VM."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


#: The two are always there, in this order; cancelled_write_bytes is no third.
_BYTES = re.compile(rb"^(?:read|write)_bytes: (\d+)$", re.MULTILINE)


def _io(pids: Iterable[int]) -> tuple[int | None, int | None]:
    """Bytes from disks and to them. Source: proc_pid_io(5)."""
    sums = [0, 0]
    try:
        for pid in pids:
            found = _BYTES.findall(_read(f"/proc/{pid}/io"))
            sums = [had + int(size) for had, size in zip(sums, found, strict=True)]
    except (OSError, ValueError):
        return None, None
    read, written = sums
    return read, written


def _is_sudo(words: Sequence[str]) -> bool:
    return bool(words) and os.path.basename(words[0]) == "sudo"
