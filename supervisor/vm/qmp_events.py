"""What QEMU's events, and its answers when asked, mean for a VM.

Source: QEMU's QAPI, ``run-state.json`` and ``migration.json``; qemu-qmp-ref(7).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import line
from supervisor.config.qemu import size_in_bytes
from supervisor.errors import MonitorError, SocketGone
from supervisor.qemu.connection import MonitorState
from supervisor.qemu.qapi import RunStatus
from supervisor.state.record import EndCause, EndMode, EventKind, Launch, Phase, Purpose
from supervisor.state.status import (
    IllegalTransition,
    RunState,
    Status,
    Trigger,
    VmState,
    corrected_status,
    is_known_runstate,
    next_status,
    status_of_runstate,
)
from supervisor.vm import attestation
from supervisor.waiting import Budget

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.qemu.qapi import QmpEvent
    from supervisor.qemu.qmp import Monitor
    from supervisor.vm.relay import Relay
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: QEMU stays until it is told to quit, so that a supervisor that comes late finds out how the
#: guest ended. A reboot is an end, for a reboot would keep the process and lose the record.
ACTIONS = {"reboot": "shutdown", "shutdown": "pause", "panic": "pause"}

#: What QEMU does at the end of a watchdog's time that ends the guest as well.
_WATCHDOG_ENDS = ("reset", "shutdown", "poweroff")

#: QEMU's word for a reboot of the guest's own.
_BY_GUEST = "guest-reset"


class QmpEvents:
    """Takes in all that the connection to one QEMU tells: a `qemu.connection.Handler`.

    :param new: whether QEMU was just started, and its guest has yet to run
    :param template_state: devices' state to restore before the guest runs; None for a cold boot
    """

    def __init__(
        self,
        vm: Vm,
        session: Session,
        relay: Relay,
        *,
        new: bool,
        template_state: Path | None = None,
    ) -> None:
        self._vm = vm
        self._session = session
        self._relay = relay
        self._new = new
        self._template_state = template_state
        self._lost_was_told = False
        timing = vm.config.timing
        #: A guest may suspend itself, be woken by its clock, and so on without end.
        self._budget = Budget(timing.guest_events, timing.guest_event_interval_s)
        #: Events that the guest has caused since, beyond its budget.
        self._untold = 0
        #: On trio's clock: until then, failures of the disk are no news.
        self._disk_quiet_until = -math.inf

    # --- the connection ---------------------------------------------------------------------

    async def on_connect(self, monitor: Monitor) -> None:
        """Ask what must be asked before the guest's first instruction; then let a new guest run."""
        vm, session = self._vm, self._session
        vm.reached(Phase.GREETING)
        # What was said and asked before the guest's first instruction need not be again: a
        # thousand VMs are adopted a second sooner.
        is_known = not self._new and vm.record.first_ran_s is not None
        if not is_known:
            await monitor.set_actions(**ACTIONS)
        if vm.record.template or self._template_state:
            await vm.dir.drop_renewal()  # QEMU has read it: it takes no command before
        is_plain = vm.record.options.technology is None
        session.facts = await monitor.query(sev=not (is_known and is_plain))
        found = status_of_runstate(session.facts.run_status.status)
        if not self._is_before_first_instruction(found):
            await self._correct(found)
        elif vm.record.launch is Launch.RELEASED:
            await monitor.cont()  # its owner has said so, and whoever was told did not come to it
        elif vm.record.launch is not Launch.PLAIN:
            await attestation.begin(vm)
        elif not self._new:
            await session.qemu.kill()  # its launch was interrupted
        else:
            if found.state is VmState.PRELAUNCH:
                await self._make(monitor)
            if vm.record.purpose is Purpose.HELD:
                await self._hold()
            else:
                await monitor.cont()

    async def _make(self, monitor: Monitor) -> None:
        """Do what belongs to a copy's machine, or a template's, before its guest is there."""
        is_new = self._session.line is None  # else this is another connection to the same QEMU
        if is_new and (self._template_state or self._vm.record.purpose is Purpose.TEMPLATE):
            self._session.line = await line.connect(self._vm.id, monitor)
        if self._template_state:
            await self._restore(monitor, self._template_state)

    def _is_before_first_instruction(self, found: Status) -> bool:
        record = self._vm.record
        if record.status.state is not VmState.PRELAUNCH:
            return False
        # QEMU says of a restored guest that it is paused, as if it had run.
        never_renewed = record.template is not None and not record.renewed
        clone = self._template_state is not None or never_renewed
        return found.state is VmState.PRELAUNCH or (clone and found.state is VmState.PAUSED)

    async def _restore(self, monitor: Monitor, state: Path) -> None:
        try:
            with state.open("rb") as opened:
                await monitor.load_state(opened)
        except OSError as error:
            raise MonitorError(f"{state}: {error.strerror}", error_class="GenericError") from error
        self._vm.reached(Phase.RESTORE)

    async def _hold(self) -> None:
        """Have runs know of a clone that waits for one of them; `run_when_taken` does the rest."""
        await self._vm.write_deferred()  # a supervisor that comes after us must find its QEMU
        self._vm.restored = True
        self._vm.notify()

    async def on_state(self, state: MonitorState) -> None:
        """Tell that QEMU does not answer, and that it answers again."""
        if self._new and self._vm.status.state is VmState.PRELAUNCH:
            return  # it is tried again until its time is up, for somebody waits for it
        if state is not MonitorState.LOST and not self._lost_was_told:
            return  # that it was lost was no news, so that it is back is none
        self._lost_was_told = state is MonitorState.LOST
        log.warning("monitor", vm=self._vm.id, monitor=state)
        await self._vm.commit(EventKind.MONITOR, {"monitor": state})

    async def on_error(self, error: MonitorError) -> None:
        """Give up on a QEMU that refuses to run its guest, or can never be reached again."""
        vm = self._vm
        if self._new and vm.status.state is VmState.PRELAUNCH:
            # A refusal would only be repeated. A socket that is gone is the exit of a QEMU that
            # failed, with the process late: its log says why, and another start may help.
            self._session.refusal = str(error)
            await self._session.qemu.kill()
            return
        if error.error_class is not None:
            return
        log.error("monitor of no use, ending the VM", vm=vm.id, problem=str(error))
        if isinstance(error, SocketGone):
            vm.request_end(EndMode.FORCE, EndCause.SOCKET_GONE, "its QMP socket is gone")
        else:
            why = "its guest floods the monitor with events"
            vm.request_end(EndMode.FORCE, EndCause.FLOOD, why)

    # --- events -----------------------------------------------------------------------------

    async def on_event(self, event: QmpEvent) -> None:
        """Take in one event. What means nothing now is logged, and changes nothing."""
        vm = self._vm
        log.debug("event", vm=vm.id, qmp_event=event.name, data=event.data)
        if vm.status.state.ended:
            return
        try:
            match event.name:
                case "RESET" if event.data.get("reason") == _BY_GUEST and not vm.resetting.locked():
                    # A supervisor was killed in the middle of a reset, so QEMU has no order yet to
                    # take the guest's own reboot for its end.
                    await self._move(Trigger.SHUTDOWN, event)
                case "RESET":
                    await self._relay.guest_was_reset()
                    await vm.commit(EventKind.RESET, {})
                    self._session.resets += 1  # who waits for it may look at the record
                    vm.notify()
                case "WATCHDOG":
                    action = event.data.get("action")
                    log.warning("watchdog fired", vm=vm.id, action=action)
                    self._session.watchdog_fired |= action in _WATCHDOG_ENDS
                    if self._may_tell():
                        await vm.commit(EventKind.WATCHDOG, {"action": action})
                case "VSERPORT_CHANGE" if self._session.line and event.data.get("open") is False:
                    self._session.line.guest_has_closed()
                case "BLOCK_IO_ERROR":
                    await self._tell_disk_error(event)
                case name if name in Trigger.__members__:
                    await self._move(Trigger(name), event)
        except IllegalTransition as error:
            log.error("unexpected event", vm=vm.id, problem=str(error))

    async def _move(self, trigger: Trigger, event: QmpEvent) -> None:
        vm, reason = self._vm, event.name.lower()
        match trigger:
            case Trigger.SHUTDOWN:
                reason = event.data.get("reason", reason)
            case Trigger.GUEST_PANICKED:
                reason = RunState.GUEST_PANICKED
            case Trigger.RESUME | Trigger.WAKEUP:
                reason = RunState.RUNNING
                await self._note_running()
            case Trigger.STOP | Trigger.SUSPEND:
                # The event does not say why; a KVM that gave up stops its guest like a user.
                reason = await self._runstate()
                if status_of_runstate(reason).state is VmState.CRASHED:
                    trigger = Trigger.INTERNAL_ERROR
        await self._enter(next_status(vm.status, trigger, reason))

    async def _enter(self, status: Status) -> None:
        vm = self._vm
        if status.state is VmState.RUNNING and vm.status.state is VmState.PAUSED:
            vm.resumes += 1
        if status.state is VmState.RUNNING and vm.record.running_since_s is None:
            vm.reached(Phase.RUNNING)
            now_s = vm.clock.boottime_s()
            first_s = vm.record.first_ran_s or now_s
            await vm.set_status(status, running_since_s=now_s, first_ran_s=first_s)
        elif status.state not in (VmState.RUNNING, VmState.PAUSED):
            self._tell_how_many()  # it is told in any case
            await vm.set_status(status)
        elif status == vm.status or self._may_tell():
            await vm.set_status(status)
        else:
            await vm.set_status_untold(status)
        if status.state is VmState.CRASHED:
            await self._session.qemu.kill()

    def _may_tell(self) -> bool:
        """Whether an event that the guest has caused is told. It is counted if it is not."""
        if not self._budget.spend():
            self._untold += 1
            return False
        self._tell_how_many()
        return True

    def _tell_how_many(self) -> None:
        """Have the next commit tell how many events have not been told, if any."""
        if self._untold:
            self._vm.defer(EventKind.DROPPED, {"count": self._untold})
            self._untold = 0

    async def _note_running(self) -> None:
        """For those who ask; nothing depends on it."""
        facts = self._session.facts
        if facts and not facts.sev.enabled:
            # The event says it all. To ask would keep the run waiting whose VM this is.
            self._session.note(RunStatus(RunState.RUNNING, running=True))
        else:
            await self._runstate()

    async def _runstate(self) -> str:
        """QEMU's present RunState, after an event that says less; ``paused`` if it is gone."""
        try:
            facts = await self._session.query()
        except MonitorError:
            return RunState.PAUSED
        reason = facts.run_status.status
        if not is_known_runstate(reason):
            log.warning("unknown RunState, taken for paused", vm=self._vm.id, runstate=reason)
        return reason

    async def _tell_disk_error(self, event: QmpEvent) -> None:
        now = trio.current_time()
        if now < self._disk_quiet_until:
            return  # a guest may try without end
        self._disk_quiet_until = now + self._vm.config.timing.disk_error_interval_s
        data = {name: event.data.get(name) for name in ("operation", "action", "nospace", "reason")}
        log.error("the VM's disk fails on the host", vm=self._vm.id, **data)
        await self._vm.commit(EventKind.IO_ERROR, data)

    # --- answers ----------------------------------------------------------------------------

    async def on_heartbeat(self, answer: RunStatus | None) -> None:
        """See to the logs, and take in the answer, if it is still of any interest."""
        vm = self._vm
        try:
            limit = size_in_bytes(vm.config.life.log_size)
            await trio.to_thread.run_sync(vm.dir.look_at_logs, limit)
        except OSError as error:
            log.warning("logs cannot be looked at", vm=vm.id, problem=str(error))
        if answer is not None:
            self._session.note(answer)
            found = status_of_runstate(answer.status)
            if not self._is_before_first_instruction(found):
                await self._correct(found)
        if self._untold:
            # Whoever reads the events learns the state of this moment, if not each one before it.
            self._tell_how_many()
            data = {"state": vm.status.state, "reason": vm.status.reason}
            await vm.commit(EventKind.STATE, data)

    async def _correct(self, found: Status) -> None:
        """Enter the state that QEMU says it is in, if the events that told of it were missed."""
        vm = self._vm
        corrected = corrected_status(vm.status, found)
        if corrected is not None:
            log.info("missed", vm=vm.id, was=str(vm.status), found=str(corrected))
            await self._enter(corrected)
