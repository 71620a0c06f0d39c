"""One VM's life: its directory, process, monitor, events and agent.

`Vm.run` is the VM's one task and the sole writer of its state. Requests hold a `Vm`, read
it, wait on it and ask for its end; they never own it.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor import agent, machine, runstate
from supervisor.ending import EndMode, EndRequest, end_when_asked
from supervisor.errors import (
    AgentError,
    AgentTimeout,
    Busy,
    MonitorError,
    PortsTaken,
    VmEnded,
    single,
)
from supervisor.launch import Launch, ports_taken
from supervisor.process import EXIT_LAG_S
from supervisor.race import CutShort, unless
from supervisor.rundir import Rundir
from supervisor.runstate import Change, IllegalTransition, Status, Trigger, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.agent import Agent
    from supervisor.config import Config
    from supervisor.launch import Host
    from supervisor.machine import Forward
    from supervisor.monitor import Event, Facts, Monitor
    from supervisor.ports import PortPool
    from supervisor.process import Qemu

log = structlog.stdlib.get_logger()

#: How often a VM is started anew because somebody took one of its ports meanwhile.
_PORT_ATTEMPTS = 4
#: How long events that QEMU sent before its end may take to be read.
_DRAIN_S = 1.0


class RelayState(enum.StrEnum):
    """How far the computation has come. Beside the VM's state, not part of it."""

    NONE = "none"
    WAITING = "waiting"
    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"


class Vm:
    """A VM, from the decision to start it until long after its end.

    :param notify: called after every change of state
    """

    def __init__(
        self,
        vm_id: str,
        config: Config,
        host: Host,
        ports: PortPool,
        notify: Callable[[Change], None],
    ) -> None:
        self.id = vm_id
        self.rundir = Rundir(config.qemu.tmp / vm_id)
        self.status = Status(VmState.PRELAUNCH, "prelaunch")
        self.forwards: Sequence[Forward] = ()
        #: QEMU's command line as a person can run it; empty before the first attempt.
        self.command: Sequence[str] = ()
        #: What went wrong, for a person.
        self.error: str | None = None
        self.created_at = datetime.now(UTC)
        self.ended_at: datetime | None = None
        #: When each step was reached, in seconds after ``created_at``.
        self.phases: dict[str, float] = {}
        self.facts: Facts | None = None
        self.relay_state = RelayState.NONE
        #: ``host:port`` of the agent, once that is known.
        self.agent_address: str | None = None
        #: The agent's answer to the computation.
        self.reply: str | None = None

        self._config = config
        self._host = host
        self._ports = ports
        self._notify = notify
        self._born = trio.current_time()
        self._changed = trio.Event()
        self._ended = trio.Event()
        self._end = EndRequest()
        self._qemu: Qemu | None = None
        self._monitor: Monitor | None = None
        self._agent: Agent | None = None
        self._agent_ready = trio.Event()

    # --- what others may ask ----------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the process is gone and nothing of the VM but its directory is left."""
        return self._ended.is_set()

    @property
    def pid(self) -> int | None:
        """QEMU's process id, or with ``USE_SUDO`` sudo's; None before there is one."""
        return self._qemu.pid if self._qemu else None

    @property
    def exit_code(self) -> int | None:
        """Negative for the signal that ended the process; None before that."""
        return self._qemu.exit_code if self._qemu else None

    @property
    def agent_ready(self) -> bool:
        return self._agent_ready.is_set() and not self.ended

    @property
    def uptime_s(self) -> float | None:
        """Seconds since the guest first ran; None before that and after the end."""
        if self.ended or "running" not in self.phases:
            return None
        return trio.current_time() - self._born - self.phases["running"]

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def ask_to_end(self, mode: EndMode) -> None:
        """Begin to end the VM; ``FORCE`` also hurries an end that was begun gracefully."""
        self._end.ask(mode)

    async def ask_now(self) -> Facts:
        """QEMU's answers of this moment.

        :raises Busy: if there is no QEMU to ask
        :raises MonitorError: if it does not answer
        """
        if self._monitor is None or self.ended:
            raise Busy(f"VM {self.id} cannot be asked: it is {self.status}")
        self.facts = await self._monitor.ask()
        return self.facts

    async def relay(self, computation: bytes) -> str:
        """The agent's answer, once it is there to give one.

        :raises AgentTimeout: if it is not ready ``boot_timeout_s`` after the VM's start, or
            does not answer
        :raises AgentError: if its answer is an error
        :raises VmEnded: if the VM ends first
        """
        self.relay_state = RelayState.WAITING
        try:
            await self._wait_agent()
            self.relay_state = RelayState.SENT
            if self._agent is None:
                raise CutShort  # ready, and ended before we looked
            self.reply = await unless(self._ended.wait, self._call, self._agent, computation)
        except CutShort:
            self.relay_state = RelayState.FAILED
            ended = self._ended_error()
            self.error = self.error or str(ended)
            raise ended from None
        except Exception as error:
            self.relay_state = RelayState.FAILED
            self.error = str(error)
            raise
        except BaseException:
            self.relay_state = RelayState.FAILED
            self.error = "the caller went away before the agent's answer"
            raise
        self.relay_state = RelayState.ANSWERED
        self._reached("relay")
        return self.reply

    async def _wait_agent(self) -> None:
        timeout_s = self._config.agent.boot_timeout_s
        with trio.move_on_at(self._born + timeout_s):
            return await unless(self._ended.wait, self._agent_ready.wait)
        raise AgentTimeout(
            self.id,
            f"the agent of VM {self.id} was not ready {timeout_s:g} s after the VM's start;"
            f" what the guest printed is in {self.rundir.serial_log}, the time allowed is"
            " MANAGER_BOOT_TIMEOUT",
        )

    async def _call(self, guest_agent: Agent, computation: bytes) -> str:
        try:
            return await guest_agent.run(computation)
        except AgentError as error:
            if error.code == "UNAVAILABLE":
                # Ports close a moment before the process that held them is seen to be gone.
                with trio.move_on_after(EXIT_LAG_S):
                    await self._ended.wait()
                    raise CutShort from None
                hint = f"; what the guest printed is in {self.rundir.serial_log}"
                raise AgentError(self.id, error.code, error.text, hint) from error
            raise

    def _ended_error(self) -> VmEnded:
        status = self.status
        return VmEnded(self.id, status.state, status.reason, self.rundir.log_tail())

    # --- the VM's task ----------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[Vm] = trio.TASK_STATUS_IGNORED) -> None:
        """The VM's whole life. ``started`` once its guest runs.

        When it returns or raises, process, ports and sockets are gone; the directory stays.

        :raises LaunchError: if QEMU does not come up
        """
        try:
            await self._launch(task_status)
        except Exception as error:
            cause = single(error)
            self.error = str(cause)
            raise cause from None
        except BaseException:
            self.error = self.error or "its start was called off: the caller went away"
            raise
        finally:
            self._monitor = self._agent = None
            self.ended_at = datetime.now(UTC)
            if not self.status.state.ended:
                code = "none" if self.exit_code is None else self.exit_code
                self._set(Status(VmState.CRASHED, f"exit:{code}"))
            self._ended.set()

    async def _launch(self, task_status: trio.TaskStatus[Vm]) -> None:
        await self.rundir.prepare(self._config.qemu.disk, self._config.qemu.firmware)
        self._reached("prepared")
        taken: set[int] = set()
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            with self._ports.reserve(taken) as forwards:
                try:
                    await self._live(forwards, task_status)
                    return
                except PortsTaken as error:
                    if not attempts_left:
                        raise
                    taken |= ports_taken(error.log_tail)
                    log.warning("port taken, trying others", vm=self.id, ports=sorted(taken))

    async def _live(self, forwards: Sequence[Forward], task_status: trio.TaskStatus[Vm]) -> None:
        config = self._config.qemu
        made = machine.Machine(
            vm_id=self.id,
            qemu=self._host.qemu,
            accel=self._host.accel,
            forwards=forwards,
            overlay=self.rundir.overlay,
            firmware_vars=self.rundir.firmware_vars,
            serial_log=self.rundir.serial_log,
            qmp_socket=self.rundir.qmp_socket,
        )
        self.forwards = forwards
        self.command = machine.command(config, made)
        log.info(machine.shell_line(self.command), vm=self.id)
        attempt = Launch(
            config=config,
            machine=made,
            rundir=self.rundir,
            unwanted=self._end.any,
            deadline=self._born + self._config.agent.boot_timeout_s,
            spawned=self._spawned,
            reached=self._reached,
        )
        async with attempt.guest() as (self._monitor, self.facts):
            await self._follow(self._monitor, task_status)

    def _spawned(self, qemu: Qemu) -> None:
        self._qemu = qemu

    async def _follow(self, link: Monitor, task_status: trio.TaskStatus[Vm]) -> None:
        """From the guest's first instruction to the process's exit."""
        assert self._qemu is not None
        drained = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, self._qemu, link, drained)
            grace = self._config.shutdown
            nursery.start_soon(end_when_asked, self._end, self._qemu, link, grace, self._going_down)
            nursery.start_soon(self._watch_agent)
            while self.status.state is VmState.PRELAUNCH and not drained.is_set():
                await self._changed.wait()
            if self.status.state is not VmState.PRELAUNCH:
                self._reached("running")
                task_status.started(self)
            exit_code = await self._qemu.wait()
            # What QEMU said last decides how its exit is judged.
            with trio.move_on_after(_DRAIN_S):
                await drained.wait()
            nursery.cancel_scope.cancel()
        if not self.status.state.ended:
            self._set(runstate.after(self.status, Trigger.EXIT, "", exit_code=exit_code))
        if self.status.state is VmState.CRASHED and self.error is None:
            self.error = self.rundir.log_tail() or f"QEMU ended: {self.status.reason}"
        if "running" not in self.phases:
            raise self._ended_error()

    async def _pump(self, qemu: Qemu, link: Monitor, drained: trio.Event) -> None:
        async for event in link.events:
            log.debug("event", vm=self.id, qmp_event=event.name, data=event.data)
            try:
                await self._hear(event, link)
            except IllegalTransition as error:
                log.error("unexpected event", vm=self.id, problem=str(error))
            if self.status.state is VmState.CRASHED:
                await qemu.kill()
        drained.set()
        self._wake()
        with trio.move_on_after(EXIT_LAG_S):
            await qemu.wait()
            return
        self.error = "QEMU closed its monitor and lived on; without it nobody knows what it does"
        log.error("monitor lost, ending the VM", vm=self.id, pid=qemu.pid)
        self._end.ask(EndMode.FORCE)

    async def _hear(self, event: Event, link: Monitor) -> None:
        if self.status.state.ended or event.name not in Trigger.__members__:
            return
        trigger, reason = Trigger(event.name), event.name.lower()
        match trigger:
            case Trigger.SHUTDOWN:
                reason = event.data.get("reason", reason)
            case Trigger.RESUME | Trigger.WAKEUP:
                reason = "running"
            case Trigger.GUEST_PANICKED:
                reason = "guest-panicked"
            case Trigger.STOP | Trigger.SUSPEND:
                # The event does not say why; a KVM that gave up stops its guest like a user.
                reason = await self._runstate(link)
                if runstate.from_runstate(reason).state is VmState.CRASHED:
                    trigger = Trigger.INTERNAL_ERROR
        self._set(runstate.after(self.status, trigger, reason))
        if trigger in (Trigger.RESUME, Trigger.WAKEUP):
            await self._runstate(link)  # for those who ask; nothing depends on it

    async def _runstate(self, link: Monitor) -> str:
        """QEMU's present RunState, after an event that says less; ``paused`` if it is gone."""
        try:
            self.facts = await link.ask()
        except MonitorError:
            return "paused"
        reason = self.facts.run_status.status
        if not runstate.is_known(reason):
            log.warning("unknown RunState, taken for paused", vm=self.id, runstate=reason)
        return reason

    async def _watch_agent(self) -> None:
        config = self._config.agent
        target = agent.address(config, self.forwards)
        async with agent.connect(self.id, target, config) as guest_agent:
            self._agent, self.agent_address = guest_agent, target
            await guest_agent.wait_ready()
            self._reached("agent")
            self._agent_ready.set()
            log.info("agent ready", vm=self.id, after_s=round(self.phases["agent"], 3))
            # The channel is the relay's for as long as the VM lives.
            await trio.sleep_forever()

    async def _going_down(self) -> None:
        while self.status.state is not VmState.SHUTDOWN:
            await self._changed.wait()

    # --- bookkeeping ------------------------------------------------------------------------

    def _reached(self, phase: str) -> None:
        self.phases[phase] = trio.current_time() - self._born

    def _set(self, status: Status) -> None:
        if status == self.status:
            return
        log.info("state", vm=self.id, state=status.state, reason=status.reason)
        self.status = status
        self._wake()
        self._notify(Change(self.id, status, datetime.now(UTC)))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
