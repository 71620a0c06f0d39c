"""The QEMU process: started with its QMP socket as descriptor 0, waited for, ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psutil
import structlog
import trio

from supervisor.errors import LaunchError

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

log = structlog.stdlib.get_logger()

#: How long after its monitor a process that is exiting may still be seen alive.
EXIT_LAG_S = 2.0

#: How long a killed process may take to go; longer means it hangs in the kernel.
_KILL_GRACE_S = 10.0


class Qemu:
    """A running QEMU, or the sudo that runs it."""

    def __init__(self, process: trio.Process, *, sudo: bool) -> None:
        self._process = process
        self._sudo = sudo

    @property
    def pid(self) -> int:
        """The child's process id: QEMU's, or with ``USE_SUDO`` sudo's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Negative for the signal that ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """The exit code, once the process has ended and is reaped. Any number may wait."""
        return await self._process.wait()

    async def terminate(self) -> None:
        """Send SIGTERM, at which QEMU closes its disks and exits."""
        await self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL."""
        await self._signal(signal.SIGKILL)

    async def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is not None:
            return
        if not self._sudo:
            self._process.send_signal(number)
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
    argv: Sequence[str], listener: socket.socket, log_file: Path, *, sudo: bool = False
) -> AsyncIterator[Qemu]:
    """QEMU, in a session of its own so that a terminal's Ctrl-C does not reach it.

    Leaving the context kills it if it still runs, and reaps it.

    :param listener: the listening QMP socket, which QEMU gets as descriptor 0
    :param log_file: takes what QEMU prints; what an attempt before printed is gone
    :raises LaunchError: if the binary cannot be run
    """
    with log_file.open("wb") as output:
        try:
            process = await trio.lowlevel.open_process(
                list(argv), stdin=listener, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise LaunchError(
                f"{argv[0]} cannot be run: {error.strerror}; install the package"
                " qemu-system-x86, or set MANAGER_QEMU_BIN_PATH",
                argv=argv,
            ) from error
    qemu = Qemu(process, sudo=sudo)
    try:
        yield qemu
    finally:
        with trio.move_on_after(_KILL_GRACE_S, shield=True) as patience:
            with contextlib.suppress(OSError):
                await qemu.kill()
            await qemu.wait()
        if patience.cancelled_caught:
            log.error("process does not end", pid=qemu.pid, argv=list(argv))
