"""Whether a VM's agent, once it was ready, still answers; and its guest's clock after a pause."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import client
from supervisor.errors import AgentError, HostError
from supervisor.state.record import EventKind
from supervisor.state.status import VmState
from supervisor.waiting import Budget, move_on_when, sleep_in_step

if TYPE_CHECKING:
    from supervisor.agent.client import Agent, Life
    from supervisor.agent.dialled import DialledAgent
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: How often in a row an agent is asked before its heartbeat, after a pause.
_MOST_EARLY = 4


class AgentWatch:
    """Of one guest's agent. The relay has it `run` from when the agent is ready.

    :ivar death: how the agent was last found to be gone, or to be another one than before
    """

    def __init__(
        self, vm: Vm, target: str, *, is_new: bool = False, has_no_past: bool = False
    ) -> None:
        """
        :param is_new: whether the agent was not ready before, for another supervisor either
        :param has_no_past: whether there can have been no agent before this one
        """
        self._vm = vm
        self._target = target
        self._is_new = is_new
        self._has_no_past = has_no_past
        #: Of the last agent that answered.
        self._instance = ""
        self._resumes = vm.resumes
        self._clock_is_late = vm.resumes > 0
        #: A guest may suspend itself and wake without end.
        self._early = Budget(_MOST_EARLY, vm.config.life.heartbeat_s)
        self._died = trio.Event()
        self.death = ""

    async def wait_death(self) -> None:
        """Return at the next `death`.

        What the agent had been sent is lost then. An agent that is only silent may still answer.
        """
        await self._died.wait()

    async def run(self) -> None:
        """Ask the agent at each heartbeat, and after each pause. Does not return."""
        vm, config = self._vm, self._vm.config
        pause_s = 0.0 if self._clock_is_late else self._first_pause_s()
        credential = vm.secret.credential if vm.secret else None
        connecting = client.connect(
            *(vm.id, self._target, config.agent, config.timing, credential, client.CHECK_BYTES)
        )
        async with connecting as agent:
            while True:
                async with move_on_when(self._wait_resumed):
                    await sleep_in_step(pause_s)
                pause_s = config.life.heartbeat_s
                # A paused guest cannot answer, and is not lost.
                await vm.until(lambda: vm.status.state is VmState.RUNNING)
                async with move_on_when(lambda: vm.until(lambda: not _runs(vm))):
                    await self._look(agent)

    def _first_pause_s(self) -> float:
        heartbeat_s = self._vm.config.life.heartbeat_s
        if self._is_new:
            # Soon, for a later agent is known by its other instance; not while a run is served.
            return min(self._vm.config.timing.agent_first_look_s, heartbeat_s)
        # VMs that were adopted together must not all be asked together.
        return random.uniform(0, heartbeat_s)

    async def _wait_resumed(self) -> None:
        """Return after a pause, unless there are so many that the next heartbeat will do."""
        vm = self._vm
        while True:
            await vm.until(lambda: vm.resumes != self._resumes)
            self._resumes, self._clock_is_late = vm.resumes, True
            if self._early.spend():
                return

    async def _look(self, agent: Agent) -> None:
        vm = self._vm
        try:
            life = await self._ask(agent)
        except AgentError as error:
            if error.code == "DEADLINE_EXCEEDED":
                await self._tell_lost("silent", f"the agent gave {error.text}")
            else:
                await self._tell_lost("refused", "nothing listens on the agent's port any more")
            return
        except HostError as error:
            log.warning("agent cannot be asked", vm=vm.id, problem=str(error))
            return
        if self._is_another(life):
            end = f"; the one before ended: {life.last_end}" if life.last_end else ""
            await self._tell_lost("restarted", f"the agent was started again{end}")
        self._instance, self._has_no_past = life.instance or self._instance, False
        vm.agent_protected = life.protected
        was_lost = vm.agent_lost
        vm.note_agent(problem="")
        if was_lost:
            log.info("agent is back", vm=vm.id)
            await vm.commit(EventKind.AGENT, {"address": self._target})
        if self._clock_is_late:
            await self._set_clock(agent)

    async def _ask(self, agent: Agent) -> Life:
        timeout_s = self._vm.config.life.answer_s
        try:
            return await agent.check(timeout_s, open_to_all=self._vm.opens_agent)
        except AgentError as error:
            if error.code == "DEADLINE_EXCEEDED":
                raise
        # The agent may have closed a connection that was idle for long, and take another.
        return await agent.check(timeout_s, open_to_all=self._vm.opens_agent)

    def _is_another(self, life: Life) -> bool:
        """Whether the agent was started again since it last answered."""
        unseen = self._has_no_past and bool(life.last_end)
        before = self._instance or life.instance
        return unseen or (bool(life.instance) and life.instance != before)

    async def _tell_lost(self, reason: str, why: str) -> None:
        vm, was_lost = self._vm, self._vm.agent_lost
        if vm.ending:
            return  # its agent ends before the guest does
        vm.note_agent(problem=why)
        if reason != "silent":
            self.death = why
            self._died.set()
            self._died = trio.Event()
        if not was_lost:
            log.warning("agent lost", vm=vm.id, reason=reason, why=why)
            await vm.commit(EventKind.AGENT_LOST, {"reason": reason, "why": why})

    async def _set_clock(self, agent: Agent) -> None:
        self._clock_is_late = False
        with trio.move_on_after(self._vm.config.life.answer_s) as patience:
            try:
                moved_s = await self._clock_moved(agent)
            except AgentError as error:
                log.warning("the guest's clock is not set", vm=self._vm.id, problem=str(error))
                return
            if moved_s is not None:
                log.info("the guest's clock is set", vm=self._vm.id, moved_s=round(moved_s, 3))
        if patience.cancelled_caught:
            log.warning("the guest's clock is not set", vm=self._vm.id, problem="no answer")

    async def _clock_moved(self, agent: Agent) -> float | None:
        """By how many seconds. A copy whose first call went with its supervisor is let go."""
        vm = self._vm
        try:
            return await agent.set_clock()
        except AgentError as error:
            if error.code != "FAILED_PRECONDITION" or not (vm.record.template and vm.secret):
                raise
            await agent.renew(vm.secret.entropy)
            return None


class StreamWatch:
    """The same for an agent that dials the supervisor: it lives as long as its stream.

    :ivar death: that its stream was last found to have ended
    """

    def __init__(self, vm: Vm, agent: DialledAgent) -> None:
        self._vm = vm
        self._agent = agent
        self.death = ""

    async def wait_death(self) -> None:
        """Return when its stream is not there. Its answers came over that stream."""
        await self._agent.wait_lost()
        self.death = "its stream ended"

    async def run(self) -> None:
        """Tell of the end of each of its streams, and of the next. Does not return."""
        vm = self._vm
        while True:
            await self._agent.wait_lost()
            if vm.ending:
                await trio.sleep_forever()
            vm.note_agent(problem="its stream ended")
            log.warning("agent lost", vm=vm.id, reason="disconnected")
            data = {"reason": "disconnected", "why": "the agent's stream ended"}
            await vm.commit(EventKind.AGENT_LOST, data)
            await self._agent.wait_ready()
            vm.note_agent(problem="")
            log.info("agent is back", vm=vm.id)
            await vm.commit(EventKind.AGENT, {"address": self._agent.address})


def _runs(vm: Vm) -> bool:
    return vm.status.state is VmState.RUNNING
