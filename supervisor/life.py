"""One VM's task: from the decision to start it, or to take it up, to its last words on record."""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor import expiry, hearing, launch, machine, process, runstate
from supervisor.ending import end
from supervisor.errors import (
    MonitorError,
    MonitorFlooded,
    PortsTaken,
    SocketGone,
    SupervisorError,
    VmEnded,
    single,
)
from supervisor.link import Link, LinkState
from supervisor.record import EndMode
from supervisor.runstate import Status, VmState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from supervisor.launch import Host
    from supervisor.machine import Forward
    from supervisor.monitor import Monitor
    from supervisor.ports import PortPool
    from supervisor.process import Qemu
    from supervisor.record import ProcessId
    from supervisor.vm import Vm

log = structlog.stdlib.get_logger()

#: How often a VM is started anew because somebody took one of its ports meanwhile.
_PORT_ATTEMPTS = 4
#: How long events that QEMU sent before its end may take to be read.
_DRAIN_S = 1.0
#: How long the removal of an ended VM's disk may have to wait.
_BURIAL_S = 10.0


class Life:
    """The task of one VM. Either of `run` and `take_up` is called, once."""

    def __init__(self, vm: Vm, host: Host, ports: PortPool) -> None:
        self._vm = vm
        self._host = host
        self._ports = ports
        #: Why a QEMU had to be killed before its guest ran.
        self._hung = ""

    async def run(self) -> None:
        """A new VM's whole life. When it returns, nothing of the VM is left but what is to be.

        That is its record and logs, a disk that is to be kept, and all of a VM that is left to
        the next supervisor.
        """
        await self._live(self._launch)

    async def take_up(self, found: tuple[ProcessId, int] | None) -> None:
        """The rest of the life of a VM that another supervisor began.

        :param found: its process and a pidfd of that, which is closed here; None if it is gone
        """
        await self._live(partial(self._adopt, found))

    async def _live(self, begin: Callable[[], Awaitable[Status]]) -> None:
        verdict = None
        try:
            with self._vm.scope:
                verdict = await begin()
                while self._vm.restarts.wanted(self._vm.record, verdict):
                    if not await self._vm.restarts.wait(self._vm, verdict):
                        break
                    verdict = None  # of this boot
                    verdict = await self._boot()
        except Exception as error:
            cause = single(error)
            if not isinstance(cause, SupervisorError):
                log.error("bug in a VM's task", vm=self._vm.id, exc_info=error)
                cause = SupervisorError(f"VM {self._vm.id} failed: {cause!r}")
            log.warning("VM failed", vm=self._vm.id, problem=str(cause))
            cause.vm_id = self._vm.id
            self._vm.failure = cause
        finally:
            try:
                await self._finish(verdict)
            except Exception as error:
                log.error("bug at a VM's end", vm=self._vm.id, exc_info=error)
            finally:
                self._vm.close()

    async def _launch(self) -> Status:
        config = self._vm.config.qemu
        await self._vm.rundir.prepare(config.disk, config.firmware)
        self._vm.reached("prepared")
        return await self._boot()

    async def _boot(self) -> Status:
        """One QEMU, from its start to its end.

        :raises LaunchError: if its guest never runs
        """
        taken: set[int] = set()
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            with self._ports.reserve(taken) as forwards:
                try:
                    return await self._start(forwards)
                except PortsTaken as error:
                    taken |= launch.ports_taken(error.log_tail)
                    if not attempts_left:
                        raise
                    log.warning("port taken, trying others", vm=self._vm.id, ports=sorted(taken))
        raise AssertionError

    async def _start(self, forwards: Sequence[Forward]) -> Status:
        config = self._vm.config.qemu
        made = machine.Machine(
            vm_id=self._vm.id,
            qemu=self._host.qemu,
            accel=self._host.accel,
            forwards=forwards,
            overlay=self._vm.rundir.overlay,
            firmware_vars=self._vm.rundir.firmware_vars,
            serial_log=self._vm.rundir.serial_log,
            qmp_socket=self._vm.rundir.qmp_socket,
        )
        command = machine.command(config, made)
        log.info(machine.shell_line(command), vm=self._vm.id)
        async with AsyncExitStack() as stack:
            with self._vm.rundir.listen_qmp() as listener:
                argv = machine.argv(config, made)
                started = process.start(argv, listener, self._vm.rundir.qemu_log, leave=self._left)
                qemu = await stack.enter_async_context(started)
            self._vm.reached("qemu")
            # Not worth a write of its own: who comes after us finds the process by its uuid.
            self._vm.defer(
                "launched",
                {"pid": qemu.pid},
                process=qemu.identity,
                forwards=tuple(forwards),
                command=tuple(command),
                agent_address=self._vm.relay.address(forwards),
                exit_code=None,
            )
            verdict = await self._follow(qemu, new=True)
            if verdict.state is VmState.PRELAUNCH:
                raise self._never_ran(qemu, command)
            return verdict

    async def _adopt(self, found: tuple[ProcessId, int] | None) -> Status:
        """What a VM has come to that another supervisor began, once that has ended."""
        if found is None:
            asked = self._vm.record.ending is not None
            same_boot = self._same_boot()
            return runstate.missed_end(self._vm.status, same_boot=same_boot, asked=asked)
        identity, pidfd = found
        if self._vm.record.ending:
            self._vm.ask_to_end(self._vm.record.ending, "asked of the supervisor before")
        if self._vm.status.state is VmState.SHUTDOWN:
            # It waits to be told to quit, and no event tells of it again.
            self._vm.see_off()
        with self._ports.hold(self._vm.record.forwards):
            async with process.adopt(identity, pidfd, leave=self._left) as qemu:
                if self._vm.status.state.ended:
                    return self._vm.status  # of what is on record as crashed, the rest
                await self._vm.relay.interrupt()
                if identity != self._vm.record.process:
                    await self._vm.commit("launched", {"pid": identity.pid}, process=identity)
                verdict = await self._follow(qemu, new=False)
        if verdict.state is VmState.PRELAUNCH:
            return runstate.missed_end(self._vm.status, same_boot=True)
        return verdict

    def _same_boot(self) -> bool:
        return not self._vm.record.process or self._vm.record.process.boot_id == process.boot_id()

    async def _follow(self, qemu: Qemu, *, new: bool) -> Status:
        """From a process to its exit; a guest that never ran is still in PRELAUNCH then."""
        self._vm.qemu = qemu
        self._hung = ""
        self._vm.watchdog_ended_it = False
        self._vm.link = Link(
            self._vm.id,
            self._vm.rundir.qmp_socket,
            self._vm.config.life,
            met=partial(self._met, launching=new),
            hear=partial(hearing.hear, self._vm),
            beat=partial(hearing.compare, self._vm),
            turned=partial(self._turned, launching=new),
        )
        heard = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, self._vm.link, qemu, heard)
            nursery.start_soon(self._end_when_asked, self._vm.link, qemu)
            nursery.start_soon(self._vm.relay.run)
            nursery.start_soon(expiry.watch, self._vm)
            nursery.start_soon(self._run_in_time, qemu)
            await qemu.wait()
            # What QEMU said last decides how its exit is judged.
            with trio.move_on_after(_DRAIN_S):
                await heard.wait()
            nursery.cancel_scope.cancel()
        self._vm.link = None
        if qemu.identity.sudo:
            await self._end_what_sudo_left()
        if self._vm.status.state in (VmState.PRELAUNCH, VmState.CRASHED):
            return self._vm.status
        if self._vm.watchdog_ended_it:
            return Status(VmState.CRASHED, "watchdog")
        asked = self._vm.record.ending is not None and not qemu.killed
        return runstate.after_exit(self._vm.status, qemu.exit_code, asked=asked)

    async def _end_what_sudo_left(self) -> None:
        """Had sudo been killed, QEMU would live on, nobody's child."""
        tmp = self._vm.config.qemu.tmp
        running = await trio.to_thread.run_sync(process.running_below, tmp)
        found = process.find(self._vm.id, None, running)
        if found:
            log.warning("sudo has gone without its QEMU", vm=self._vm.id, pid=found[0].pid)
            async with process.adopt(*found, leave=self._left):
                pass  # leaving ends it

    async def _run_in_time(self, qemu: Qemu) -> None:
        timeout_s = self._vm.config.life.start_timeout_s
        with trio.move_on_after(timeout_s):
            await self._vm.until(lambda: self._vm.status.state is not VmState.PRELAUNCH)
            return
        problem = self._vm.link.problem if self._vm.link else ""
        self._hung = (
            f"its guest did not run within {timeout_s:g} s, see MANAGER_START_TIMEOUT; {problem}"
        )
        await qemu.kill()

    async def _met(self, link: Monitor, *, launching: bool) -> None:
        """QEMU is there: ask what must be asked before the guest's first instruction."""
        self._vm.reached("monitor")
        await link.set_actions(**hearing.ACTIONS)
        self._vm.facts = await link.ask()
        found = runstate.from_runstate(self._vm.facts.run_status.status)
        if {found.state, self._vm.status.state} != {VmState.PRELAUNCH}:
            await hearing.correct(self._vm, found)
        elif launching:
            await link.cont()
        elif self._vm.qemu:
            await self._vm.qemu.kill()  # its launch was interrupted

    async def _turned(self, state: LinkState, *, launching: bool) -> None:
        link, qemu = self._vm.link, self._vm.qemu
        if launching and self._vm.status.state is VmState.PRELAUNCH and link and qemu:
            # Somebody waits for it: it is tried again until its time is up.
            if link.refused:
                self._hung = link.problem
                await qemu.kill()
            return
        log.warning("monitor", vm=self._vm.id, monitor=state)
        await self._vm.commit("monitor", {"monitor": state})

    async def _listen(self, link: Link, qemu: Qemu, heard: trio.Event) -> None:
        try:
            await link.keep(qemu)
        except (SocketGone, MonitorFlooded) as error:
            log.error("monitor of no use, ending the VM", vm=self._vm.id, problem=str(error))
            gone = isinstance(error, SocketGone)
            why = "its QMP socket is gone" if gone else "its guest floods the monitor with events"
            self._vm.ask_to_end(EndMode.FORCE, why)
        heard.set()

    async def _end_when_asked(self, link: Link, qemu: Qemu) -> None:
        await self._vm.end_request.any.wait()
        mode = self._vm.end_request.mode
        if mode is not self._vm.record.ending and self._vm.status.state is not VmState.SHUTDOWN:
            why = self._vm.end_request.why
            log.info("ending", vm=self._vm.id, mode=mode, why=why)
            await self._vm.commit("ending", {"mode": mode, "why": why}, ending=mode)
        if self._vm.status.state is VmState.PRELAUNCH:
            await qemu.kill()  # nothing has run that could be lost
            return
        if mode is EndMode.GRACEFUL and self._vm.status.state is VmState.PAUSED:
            # A held guest hears no power button.
            with contextlib.suppress(MonitorError):
                await link.monitor().cont()
        await link.tried.wait()  # of one that was taken up with its end on record
        await end(self._vm.end_request, qemu, link, self._vm.config.shutdown, self._going_down)

    async def _going_down(self) -> None:
        await self._vm.until(lambda: self._vm.status.state is VmState.SHUTDOWN)

    def _left(self) -> bool:
        return self._vm.leaving

    def _never_ran(self, qemu: Qemu, command: Sequence[str]) -> SupervisorError:
        if self._vm.end_request.mode:
            return VmEnded(self._vm.id, "prelaunch", self._vm.end_request.why)
        return launch.failure(self._vm.id, qemu, self._vm.rundir, command, self._hung)

    # --- the end ----------------------------------------------------------------------------

    async def _finish(self, verdict: Status | None) -> None:
        if self._vm.leaving:
            await self._vm.relay.interrupt()
            return
        clear = partial(self._vm.rundir.clear, disks=not self._vm.record.wishes.keep_disk)
        with trio.move_on_after(_BURIAL_S, shield=True):
            await trio.to_thread.run_sync(clear)
        await self._bury(verdict)

    async def _bury(self, verdict: Status | None) -> None:
        """The last words on record."""
        qemu, record = self._vm.qemu, self._vm.record
        exit_code = qemu.exit_code if qemu else record.exit_code
        if verdict is None and qemu and qemu.gone and record.status.state is VmState.SHUTDOWN:
            verdict = runstate.after_exit(record.status, exit_code)
        if verdict is None or not verdict.state.ended:
            code = "none" if exit_code is None else exit_code
            verdict = Status(VmState.CRASHED, f"exit:{code}")
        tail = self._vm.rundir.log_tail()
        if self._vm.failure is None and self._vm.relay.pending:
            why = self._vm.end_request.why or tail
            self._vm.failure = VmEnded(self._vm.id, verdict.state, verdict.reason, why)
        error = self._vm.record.error or (str(self._vm.failure) if self._vm.failure else None)
        if error is None and verdict.state is VmState.CRASHED:
            error = tail or f"QEMU ended: {verdict.reason}"
        await self._vm.set_status(
            verdict,
            exit_code=exit_code,
            error=error,
            relay=self._vm.relay.final(),
            ended_at=datetime.now(UTC),
        )
