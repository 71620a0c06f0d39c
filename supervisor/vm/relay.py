"""A VM's computation on its way to the agent and back.

The computation is sent once. It is sent again only after a restart that the run asked for.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import channel, client
from supervisor.agent.dialled import DialledAgent
from supervisor.config import RestartPolicy
from supervisor.errors import AgentError, AgentTimeout, CloneFailed, HostError, SupervisorError
from supervisor.state import file_errors
from supervisor.state.record import EndCause, EndMode, EventKind, Phase, Purpose, RelayState
from supervisor.state.status import VmState
from supervisor.vm.agent_watch import AgentWatch, StreamWatch
from supervisor.vm.clone import Clone
from supervisor.vm.diagnosis import CONSOLE_BYTES, how_agent_ended
from supervisor.vm.held_time import in_time
from supervisor.vm.readiness import reach, wait_ready
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    import socket

    from supervisor.agent.client import Agent
    from supervisor.agent.dialled_server import Dialled
    from supervisor.agent.line import Line
    from supervisor.templates.registry import Templates
    from supervisor.vm.ownership import Ownership
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm

    AnyAgent = Agent | DialledAgent
    AnyWatch = AgentWatch | StreamWatch

log = structlog.stdlib.get_logger()

#: Characters of an answer that is not read from the disk again by the one who waits for it.
_SHORT = 1 << 16

#: The agent has not got the computation yet, if there is one.
_BEFORE_SENDING = (RelayState.IDLE, RelayState.WAITING)


class Relay:
    """One VM's. Its task makes it, and has it `run` beside each QEMU.

    :ivar clone_failure: why a guest from a template did not come up; QEMU was killed for it
    """

    def __init__(
        self, vm: Vm, templates: Templates, dialled: Dialled, ownership: Ownership
    ) -> None:
        self.clone_failure: CloneFailed | None = None
        self._vm = vm
        self._templates = templates
        self._dialled = dialled
        self._ownership = ownership
        self._reset = trio.Event()
        self._interrupting = trio.Lock()
        #: Whether the answer is here, and at most on its way to the disk.
        self._has_answer = False

    async def run(self, session: Session) -> None:
        """Wait for the agent and send the computation; again after each reset.

        Cancelled at QEMU's exit.
        """
        vm = self._vm
        # QEMU takes a connection for a guest that is about to run, and it is made meanwhile.
        await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH or vm.is_let_go)
        if vm.record.purpose is Purpose.CVM:
            # Its agent answers nobody before another service has told it what to do.
            await trio.sleep_forever()
        try:
            while True:
                self._reset = trio.Event()
                try:
                    async with move_on_when(self._reset.wait) as meeting:
                        await self._meet(session)
                except CloneFailed as error:
                    log.warning("clone failed", vm=vm.id, problem=str(error))
                    self.clone_failure = error
                    await session.qemu.kill()  # the VM's task decides what follows
                except SupervisorError as error:
                    await self._fail(error)
                else:
                    if meeting.cancelled_caught:
                        if session.line:
                            await session.line.close()  # it led to the agent before the reset
                        await self.interrupt()  # it may have been sent just then
                        await vm.write_deferred()  # that it is no clone any more
                        continue
                await self._reset.wait()
        finally:
            vm.forget_agent()

    async def interrupt(self) -> None:
        """Give up on a computation that the agent has, if its answer can no longer arrive.

        The supervisor that sent it is gone, or the guest was reset.
        """
        async with self._interrupting:  # a second caller finds the work done
            if self._vm.record.relay is RelayState.SENT and not self._has_answer:
                log.warning("relay interrupted", vm=self._vm.id)
                error = "the computation was with the agent when the way back was cut off"
                await self._give_up(RelayState.INTERRUPTED, error)

    async def guest_was_reset(self) -> None:
        """Wait for the agent again. After a reset the guest is no longer a clone."""
        vm = self._vm
        vm.forget_phases(Phase.AGENT)
        vm.prepared = False
        vm.guests += 1
        vm.defer_untold(sent=())
        if vm.record.template and not vm.record.renewed:
            vm.defer(EventKind.RENEWED, {}, renewed=True)
        vm.forget_agent()
        # Before any write: a slow disk must not let the broken call count as a failed run.
        self._reset.set()
        vm.notify()
        await self.interrupt()

    async def again(self) -> None:
        """Prepare for another boot: the agent gets the computation again, as the run asked for."""
        self._vm.forget_phases(Phase.AGENT)
        self._vm.defer_untold(sent=())
        if self._vm.record.relay is not RelayState.FAILED:
            await self._commit(RelayState.WAITING, error=None)

    async def _meet(self, session: Session) -> None:
        """All there is to do with one guest's agent. Returns only if the VM becomes a template."""
        vm, record = self._vm, self._vm.record
        target = record.agent_address or channel.address(vm.config.agent, record.forwards)
        if record.options.dials:
            await self._meet_dialled(session, target)
        if vm.was_reached(Phase.AGENT) and record.relay not in _BEFORE_SENDING:
            # It was ready when the VM was adopted, and nobody waits for it.
            await AgentWatch(vm, target).run()
        credential = vm.secret.credential if vm.secret else None
        config = vm.config
        connecting = client.connect(vm.id, target, config.agent, config.timing, credential)
        async with connecting as agent:
            clone = await self._reach_first(agent, session)
            if vm.ending:
                await trio.sleep_forever()  # too late for a computation; QEMU's exit cancels this
            if vm.opens_agent and record.relay not in _BEFORE_SENDING:
                await self._open(agent)
            # After an adoption the phase is on record already, and the event was sent.
            is_new = vm.reached(Phase.AGENT)
            if is_new:
                vm.defer(EventKind.AGENT, {"address": target})
                log.info("agent ready", vm=vm.id, agent=target)
            if vm.record.purpose is Purpose.POOL:
                await vm.write_deferred()
                if not (clone and clone.line):
                    with trio.move_on_after(config.timing.agent_warm_up_s):
                        async with move_on_when(self._wait_assigned):
                            await agent.warm_up()
            vm.note_agent(problem="")
            if vm.record.purpose is not Purpose.TEMPLATE:
                # Copies inherit what became of their template's agents.
                has_no_past = is_new and record.template is None
                watch = AgentWatch(vm, target, is_new=is_new, has_no_past=has_no_past)
                async with move_on_when(watch.run):
                    await self._serve(agent, session, watch, clone)
                    await agent.close()
                    if clone and clone.line:
                        await clone.line.close()
                    await trio.sleep_forever()
            await agent.prepare()
        vm.prepared = True
        vm.notify()

    async def _reach_first(self, agent: Agent, session: Session) -> Clone | None:
        """Find the agent of a guest that was just started, or that nobody has asked yet.

        :returns: None if it is no clone, or is one no more
        """
        vm, record = self._vm, self._vm.record
        if record.template and not record.renewed:
            clone = Clone(vm, self._templates, session)
            await clone.renew(agent)
            return clone
        await self._reach(agent)
        return None

    async def _reach(self, agent: AnyAgent) -> None:
        if self._vm.record.relay in _BEFORE_SENDING:
            await wait_ready(self._vm, agent)
        else:
            await reach(self._vm, agent)  # nobody waits for an answer

    async def _meet_dialled(self, session: Session, target: str) -> None:
        """The same for an agent that dials the supervisor. Does not return."""
        vm = self._vm
        agent = DialledAgent(vm.id, target, vm.config.agent.dials, vm.commit)
        async with self._dialled.expect(vm.id, await self._listen(), agent):
            await self._reach(agent)
            if vm.ending:
                await trio.sleep_forever()  # too late for a computation
            if vm.reached(Phase.AGENT):
                vm.defer(EventKind.AGENT, {"address": target})
                log.info("agent ready", vm=vm.id, agent=target)
            vm.note_agent(problem="")
            watch = StreamWatch(vm, agent)
            async with move_on_when(watch.run):
                await self._serve(agent, session, watch)
                await trio.sleep_forever()

    async def _listen(self) -> socket.socket:
        """What an agent that dials comes out at.

        :raises HostError: if this host lacks something for that, and a run waits for its answer. A
            VM that has answered does without, until the host has it
        """
        vm = self._vm
        while True:
            try:
                return await trio.to_thread.run_sync(vm.dir.listen_dialled)
            except OSError as error:
                what, advice = file_errors.describe(error, vm.dir.path)
                if vm.record.awaits_answer:
                    raise HostError(what, advice=advice) from error
                log.warning("an agent cannot dial", vm=vm.id, problem=what)
                vm.note_agent(problem=what)
            await trio.sleep(vm.config.timing.housekeeping_retry_s)

    async def _open(self, agent: Agent) -> None:
        """Let everybody call the agent of a guest that was reset. No computation does it there."""
        with suppress(AgentError, HostError):  # the watch tries again
            await agent.check(self._vm.config.life.answer_s, open_to_all=True)

    async def _serve(
        self, agent: AnyAgent, session: Session, watch: AnyWatch, clone: Clone | None = None
    ) -> None:
        """Send the computation, once there is one."""
        vm = self._vm
        if vm.record.relay is not RelayState.WAITING:
            await vm.write_deferred()
        if vm.record.relay is RelayState.IDLE:
            await self._wait_assigned()
        if vm.record.relay is RelayState.WAITING:
            if isinstance(agent, DialledAgent):
                await wait_ready(vm, agent)  # its stream may have broken since
            await self._send(agent, session, watch, clone)

    async def _wait_assigned(self) -> None:
        await self._vm.until(lambda: self._vm.record.relay is not RelayState.IDLE)

    async def _send(
        self, agent: AnyAgent, session: Session, watch: AnyWatch, clone: Clone | None
    ) -> None:
        vm = self._vm
        first = clone.take_first() if clone else None
        is_first = first is not None
        computation = await vm.dir.read_computation() if first is None else first
        line = clone.line if clone else None
        if line and not line.takes(computation):
            if is_first:
                raise CloneFailed(vm.id, "its guest has closed its line")
            line = None
            await wait_ready(vm, agent)
        # Not while it is not on record that the guest runs: it would count as one that never ran.
        await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH)
        # A copy may be renewed and have the computation from now on, whatever its answer will be.
        await self._commit(RelayState.SENT, **({"renewed": True} if is_first else {}))
        if vm.record.options.restart is RestartPolicy.NEVER:
            await vm.dir.drop_computation()
        if vm.opens_agent:
            vm.agent_protected = False  # from the agent's answer on, whether it ever asked or not
        has_come_up = False
        try:
            reply = await self._call(line or agent, session, watch, computation)
            has_come_up = True
        except AgentError as error:
            if is_first and error.code == "FAILED_PRECONDITION":
                await vm.dir.write_computation(computation)
                await self._commit(RelayState.WAITING, renewed=False)
                why = f"its guest is not renewed: {error.text}"
                raise CloneFailed(vm.id, why) from error
            if clone and line and is_first and line.has_answer:
                has_come_up = True  # to refuse the computation
                clone.is_renewed()
            raise
        finally:
            if is_first and not has_come_up:
                self._templates.doubt(vm.record.template or "")
        if clone and is_first:
            clone.is_renewed()
        await self._keep(reply)

    async def _keep(self, reply: str) -> None:
        vm = self._vm
        self._has_answer = True
        try:
            await self._ownership.prove(vm, RelayState.ANSWERED)
            vm.reached(Phase.RELAY)
            vm.fresh_reply = reply if vm.waited_for and len(reply) <= _SHORT else None
            await vm.commit_with(
                partial(vm.dir.keep_reply, reply),
                EventKind.RELAY,
                {"state": RelayState.ANSWERED},
                relay=RelayState.ANSWERED,
                answered=True,
            )
        finally:
            # If a reset came before it was on record, the answer is lost: see `interrupt`.
            self._has_answer = False

    async def _call(
        self, agent: AnyAgent | Line, session: Session, watch: AnyWatch, computation: bytes
    ) -> str:
        vm, timeout_s = self._vm, self._vm.config.agent.timeout_s
        try:
            async with in_time(vm, timeout_s):
                # The connection of an agent that has died may hang, as may that of a guest.
                async with move_on_when(watch.wait_death):
                    return await agent.run(computation, open_to_all=vm.opens_agent)
                raise AgentError(vm.id, "UNAVAILABLE", watch.death)
        except AgentError as error:
            if error.code != "UNAVAILABLE":
                raise
            await session.let_the_end_decide(ending=vm.ending)
            ended = how_agent_ended(vm.dir.console(CONSOLE_BYTES))
            text = f"the agent ended: {ended}" if ended else error.text
            hint = vm.dir.what_was_printed()
            raise AgentError(vm.id, error.code, text, advice=hint) from error
        raise AgentTimeout(
            vm.id,
            f"the agent of VM {vm.id} at {agent.address} did not answer Run within {timeout_s:g} s",
            advice=f"see MANAGER_AGENT_GRPC_TIMEOUT{_said_by(agent)}",
        )

    async def _fail(self, error: SupervisorError) -> None:
        """Put the failure on record, and end the VM: nobody can use it any more."""
        vm = self._vm
        log.warning("run failed", vm=vm.id, problem=str(error))
        async with self._interrupting:
            await self._give_up(RelayState.FAILED, str(error))
            # Not before: QEMU's exit may cancel this, and a restart may follow.
            if not vm.record.answered:
                vm.failure, vm.fresh_reply = error, None
        vm.request_end(EndMode.FORCE, EndCause.RUN_FAILED, "its run failed")

    async def _give_up(self, state: RelayState, error: str) -> None:
        """Put on record that no answer comes; an answer before a restart stays the run's answer."""
        if self._vm.record.answered:
            await self._commit(RelayState.ANSWERED)
        else:
            await self._commit(state, error=error)

    async def _commit(self, state: RelayState, **changes: object) -> None:
        if state in (RelayState.WAITING, RelayState.SENT):
            await self._ownership.prove(self._vm, state)
        await self._vm.commit(EventKind.RELAY, {"state": state}, relay=state, **changes)


def _said_by(agent: AnyAgent) -> str:
    return f"; its last words: {agent.last_words}" if agent.last_words else ""
