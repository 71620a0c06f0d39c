"""One QEMU, from its first QMP connection to its exit, and all that goes on meanwhile."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import MonitorError, MonitorFlooded, SocketGone
from supervisor.qemu import process
from supervisor.qemu.connection import Link, MonitorState
from supervisor.state.record import EndMode
from supervisor.state.status import (
    Status,
    VmState,
    status_after_exit,
    status_of_runstate,
)
from supervisor.vm import qmp_events, ttl
from supervisor.vm.shutdown import end
from supervisor.waiting import CutShort, unless

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qmp import Monitor
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: How long events that QEMU sent before its end may take to be read.
_DRAIN_S = 5.0

#: A QEMU that is well is met within this time, and asked even where its end is to be hurried.
_MEET_S = 2.5


class Session:
    """Follows one QEMU of a VM. `to_the_end` is called once.

    :param new: whether it was just started, and its guest has yet to run
    :param state: of devices, to be restored before that
    """

    def __init__(self, vm: Vm, qemu: Qemu, *, new: bool, state: Path | None = None) -> None:
        #: Why it had to be killed before its guest ran.
        self.hung = ""
        self._vm = vm
        self._qemu = qemu
        self._new = new
        self._state = state
        self._told_lost = False
        self._link = Link(
            vm.id,
            vm.dir.qmp_socket,
            vm.config.life,
            met=self._met,
            hear=partial(qmp_events.hear, vm),
            beat=partial(qmp_events.compare, vm),
            turned=self._turned,
            refused=self._refused,
        )

    async def to_the_end(self) -> Status:
        """What the VM has come to; a guest that never ran is still in PRELAUNCH then."""
        vm, qemu = self._vm, self._qemu
        vm.qemu, vm.link = qemu, self._link
        vm.watchdog_ended_it = False
        heard = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, heard)
            nursery.start_soon(self._end_when_asked)
            nursery.start_soon(vm.relay.run)
            nursery.start_soon(ttl.watch, vm)
            nursery.start_soon(self._run_in_time)
            await qemu.wait()
            # What QEMU said last decides how its exit is judged.
            with trio.move_on_after(_DRAIN_S):
                await heard.wait()
            nursery.cancel_scope.cancel()
        vm.link = None
        if qemu.identity.sudo:
            await self._end_what_sudo_left()
        if vm.status.state in (VmState.PRELAUNCH, VmState.CRASHED):
            return vm.status
        if vm.watchdog_ended_it:
            return Status(VmState.CRASHED, "watchdog")
        asked = vm.record.ending is not None and not qemu.killed
        return status_after_exit(vm.status, qemu.exit_code, asked=asked)

    async def _end_what_sudo_left(self) -> None:
        """Had sudo been killed, QEMU would live on, nobody's child."""
        tmp = self._vm.config.qemu.tmp
        running = await trio.to_thread.run_sync(process.running_below, tmp)
        found = process.find(self._vm.id, None, running)
        if found:
            log.warning("sudo has gone without its QEMU", vm=self._vm.id, pid=found[0].pid)
            async with process.adopt(*found, leave=lambda: self._vm.leaving):
                pass  # leaving ends it

    async def _run_in_time(self) -> None:
        config = self._vm.config
        timeout_s, setting = config.life.start_timeout_s, "MANAGER_START_TIMEOUT"
        if self._state:
            timeout_s, setting = config.start.clone_timeout_s, "MANAGER_CLONE_TIMEOUT"
        with trio.move_on_after(timeout_s):
            await self._vm.until(lambda: self._vm.status.state is not VmState.PRELAUNCH)
            return
        self.hung = (
            f"its guest did not run within {timeout_s:g} s, see {setting}; {self._link.problem}"
        )
        await self._qemu.kill()

    async def _met(self, monitor: Monitor) -> None:
        """QEMU is there: ask what must be asked before the guest's first instruction."""
        vm = self._vm
        vm.reached("greeting")
        await monitor.set_actions(**qmp_events.ACTIONS)
        vm.facts = await monitor.ask()
        found = status_of_runstate(vm.facts.run_status.status)
        if not self._is_unborn(found):
            await qmp_events.correct(vm, found)
        elif not self._new:
            await self._qemu.kill()  # its launch was interrupted
        else:
            if self._state and found.state is VmState.PRELAUNCH:
                await self._restore(monitor, self._state)
            await monitor.cont()

    def _is_unborn(self, found: Status) -> bool:
        """Whether the guest of this QEMU is still before its first instruction."""
        record = self._vm.record
        if record.status.state is not VmState.PRELAUNCH:
            return False
        # What was restored is held as if it had run.
        copy = self._state is not None or (record.template is not None and not record.renewed)
        held = copy and found.state is VmState.PAUSED
        return held or found.state is VmState.PRELAUNCH

    async def _restore(self, monitor: Monitor, state: Path) -> None:
        try:
            with state.open("rb") as opened:
                await monitor.give("state", opened.fileno())
        except OSError as error:
            raise MonitorError(f"{state}: {error.strerror}", error_class="GenericError") from error
        await monitor.migrate("migrate-incoming", "fd:state", x_ignore_shared=True)
        self._vm.reached("restore")

    async def _refused(self, error: MonitorError) -> None:
        """A QEMU that says no before its guest has run would say so again."""
        if self._new and self._vm.status.state is VmState.PRELAUNCH:
            self.hung = str(error)
            await self._qemu.kill()

    async def _turned(self, state: MonitorState) -> None:
        if self._new and self._vm.status.state is VmState.PRELAUNCH:
            return  # it is tried again until its time is up, for somebody waits for it
        if state is not MonitorState.LOST and not self._told_lost:
            return  # that it was lost was no news, so that it is back is none
        self._told_lost = state is MonitorState.LOST
        log.warning("monitor", vm=self._vm.id, monitor=state)
        await self._vm.commit("monitor", {"monitor": state})

    async def _listen(self, heard: trio.Event) -> None:
        try:
            await self._link.keep(self._qemu)
        except (SocketGone, MonitorFlooded) as error:
            log.error("monitor of no use, ending the VM", vm=self._vm.id, problem=str(error))
            gone = isinstance(error, SocketGone)
            why = "its QMP socket is gone" if gone else "its guest floods the monitor with events"
            self._vm.ask_to_end(EndMode.FORCE, why)
        heard.set()

    async def _end_when_asked(self) -> None:
        vm = self._vm
        await vm.end_request.any.wait()
        mode = vm.end_request.mode
        if mode is not vm.record.ending and vm.status.state is not VmState.SHUTDOWN:
            why = vm.end_request.why
            log.info("ending", vm=vm.id, mode=mode, why=why)
            await vm.commit("ending", {"mode": mode, "why": why}, ending=mode)
        if vm.status.state is VmState.PRELAUNCH:
            await self._qemu.kill()  # nothing has run that could be lost
            return
        await self._wait_connected()
        grace = vm.config.shutdown
        await end(vm.end_request, self._qemu, self._link, grace, self._press, self._going_down)

    async def _wait_connected(self) -> None:
        """Return when QEMU can be asked to end, or has had its time to be met for the first time.

        That is one that was taken up with its end on record.
        """
        with trio.move_on_after(_MEET_S):
            await self._link.tried.wait()
            return
        with trio.move_on_after(self._vm.config.life.answer_s), contextlib.suppress(CutShort):
            await unless(self._vm.end_request.force.wait, self._link.tried.wait)

    async def _press(self) -> None:
        """The power button, which a held guest does not hear; it may be held since the last."""
        monitor = self._link.monitor()
        if self._vm.status.state is VmState.PAUSED:
            with contextlib.suppress(MonitorError):
                await monitor.cont()
        await monitor.powerdown()

    async def _going_down(self) -> None:
        await self._vm.until(lambda: self._vm.status.state is VmState.SHUTDOWN)
