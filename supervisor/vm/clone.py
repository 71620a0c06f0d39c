"""A guest from a template, from its first instruction to the moment when it is a VM of its own.

A clone that renews itself is called over its line, if it has one. Its computation is its first call
then. A clone of the pool has no computation yet: it rehearses, and its line is kept for later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.errors import AgentError, CloneFailed
from supervisor.state.record import EventKind, Phase, Purpose, RelayState
from supervisor.state.secret import Secret
from supervisor.vm.held_time import in_time
from supervisor.vm.readiness import reach

if TYPE_CHECKING:
    from supervisor.agent.client import Agent
    from supervisor.agent.line import Line
    from supervisor.templates.registry import Templates
    from supervisor.vm.session import Session
    from supervisor.vm.vm import Vm


class Clone:
    """One VM's, that nobody has spoken to yet.

    :ivar line: to its agent; None if that is called at its port
    :ivar first: the computation that will be its first call; None if it needs none
    """

    def __init__(self, vm: Vm, templates: Templates, session: Session) -> None:
        self.line: Line | None = None
        self.first: bytes | None = None
        self._vm = vm
        self._templates = templates
        self._session = session

    async def renew(self, agent: Agent) -> None:
        """Wait until the clone has its own identity and entropy, or give it both.

        One whose computation is its first call is not renewed before that is sent.

        :raises CloneFailed: if it does not come up
        :raises SupervisorError: if its computation cannot be read
        """
        vm, timeout_s = self._vm, self._vm.config.start.clone_timeout_s
        await self._choose_line()
        try:
            async with in_time(vm, timeout_s) as patience:
                await self._renew(agent, timeout_s)
        except AgentError as error:
            await self._session.let_the_end_decide(ending=vm.ending)
            why = f"its agent does not renew itself: {error.code}, {error.text}"
            raise CloneFailed(vm.id, why) from error
        if patience.cancelled_caught:
            why = f"its agent did not answer within {timeout_s:g} s, see MANAGER_CLONE_TIMEOUT"
            raise CloneFailed(vm.id, why)
        if self.first is None:
            vm.reached(Phase.RENEW)
            self.is_renewed()
        if not self.line and self._session.line:
            await self._session.line.close()

    async def _choose_line(self) -> None:
        vm, line = self._vm, self._session.line
        if not (line and vm.renews_itself and vm.config.agent.is_direct):
            return
        if self._templates.is_doubted(vm.record.template or ""):
            return
        if vm.record.relay is RelayState.WAITING:
            computation = await vm.dir.read_computation()
            if line.takes(computation):
                self.line, self.first = line, computation
        elif vm.record.purpose is Purpose.POOL:
            self.line = line

    async def _renew(self, agent: Agent, timeout_s: float) -> None:
        if self.line:
            await self.line.wait_renewed()
            if self.first is None:
                await self.line.rehearse()
        else:
            # A clone listens at once. If many start together, it only answers slowly.
            await reach(self._vm, agent, timeout_s / 3)
            # A clone of an earlier version may have had another one.
            await agent.renew((self._vm.secret or Secret.new()).entropy)

    def take_first(self) -> bytes | None:
        """`first`, which is not kept."""
        first, self.first = self.first, None
        return first

    def is_renewed(self) -> None:
        """Have the next commit say so, and the template be known as good."""
        self._vm.defer(EventKind.RENEWED, {}, renewed=True)
        self._templates.came_up(self._vm.record.template or "")
