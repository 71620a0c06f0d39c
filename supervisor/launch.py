"""From a prepared directory to a guest that runs: QEMU, its monitor, the first instruction."""

from __future__ import annotations

import contextlib
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor import machine, monitor, process
from supervisor.errors import LaunchError, MonitorError, PortsTaken, SupervisorError, VmEnded
from supervisor.process import EXIT_LAG_S
from supervisor.race import CutShort, unless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from supervisor.config import QemuConfig
    from supervisor.machine import Accel, Machine
    from supervisor.monitor import Facts, Monitor
    from supervisor.process import Qemu
    from supervisor.rundir import Rundir

_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '[^']*:(\d+)-[^']*'")


@attrs.frozen
class Host:
    """What the supervisor found out about this host when it started."""

    qemu: str
    accel: Accel


@attrs.frozen(kw_only=True)
class Launch:
    """One attempt to start a VM.

    :param unwanted: set when the VM is to end; before its guest runs nobody need be asked
    :param deadline: on trio's clock, for the guest to run
    :param spawned: called with the process as soon as there is one
    :param reached: called with the name of each step that is done
    """

    config: QemuConfig
    machine: Machine
    rundir: Rundir
    unwanted: trio.Event
    deadline: float
    spawned: Callable[[Qemu], None]
    reached: Callable[[str], None]

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[tuple[Monitor, Facts]]:
        """A guest that runs, and what QEMU said before its first instruction.

        On leaving, the process is gone and so is its socket.

        :raises LaunchError: PortsTaken where another attempt may help
        :raises VmEnded: if its end was asked for first
        """
        async with AsyncExitStack() as stack:
            stack.callback(self.rundir.qmp_socket.unlink, missing_ok=True)
            with self.rundir.listen_qmp() as listener:
                argv = machine.argv(self.config, self.machine)
                sudo = self.config.use_sudo
                qemu = await stack.enter_async_context(
                    process.start(argv, listener, self.rundir.qemu_log, sudo=sudo)
                )
            self.spawned(qemu)
            self.reached("qemu")
            try:
                with trio.fail_at(self.deadline):
                    yielded = await unless(lambda: self._over(qemu), self._bring_up, stack)
            except (CutShort, MonitorError, trio.TooSlowError) as error:
                raise await self._failure(qemu, error) from error
            yield yielded

    async def _bring_up(self, stack: AsyncExitStack) -> tuple[Monitor, Facts]:
        link = await stack.enter_async_context(
            monitor.connect(self.machine.vm_id, self.rundir.qmp_socket)
        )
        self.reached("monitor")
        facts = await link.ask()
        await link.cont()
        return link, facts

    async def _over(self, qemu: Qemu) -> None:
        with contextlib.suppress(CutShort):
            await unless(self.unwanted.wait, qemu.wait)

    async def _failure(self, qemu: Qemu, cause: Exception) -> SupervisorError:
        if self.unwanted.is_set():
            return VmEnded(self.machine.vm_id, "prelaunch", "its end was asked for")
        if not isinstance(cause, trio.TooSlowError):
            with trio.move_on_after(EXIT_LAG_S):
                await qemu.wait()
        tail = self.rundir.log_tail()
        kind = PortsTaken if ports_taken(tail) else LaunchError
        if qemu.exit_code is not None:
            how = f"ended with exit code {qemu.exit_code}"
        elif isinstance(cause, MonitorError):
            how = f"failed ({cause})"
        else:
            how = "hung"
        return kind(
            f"QEMU of VM {self.machine.vm_id} {how} before its guest ran;"
            f" its log is {self.rundir.qemu_log}",
            argv=machine.command(self.config, self.machine),
            exit_code=qemu.exit_code,
            log_tail=tail,
        )


def ports_taken(log_tail: str) -> set[int]:
    """The host ports that QEMU says it could not have."""
    return {int(port) for port in _PORT_TAKEN.findall(log_tail)}
