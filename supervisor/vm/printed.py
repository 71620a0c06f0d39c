"""What a VM's algorithm prints while it runs, as a log of the VM."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import computing
from supervisor.agent.computing import Printed
from supervisor.config.qemu import size_in_bytes
from supervisor.errors import AgentError
from supervisor.vm.held_time import in_time
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.agent.client import Agent
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def kept(vm: Vm, agent: Agent) -> AsyncIterator[None]:
    """What the agent's algorithm prints during the block is added to the VM's log now and then.

    An agent that cannot be asked for it makes no difference to the block: it ends without a log.
    """
    follower = _Follower(vm, agent)
    # What another algorithm has printed is not of this one's log.
    if not await follower.look():
        yield
        return

    async def follow() -> None:
        while True:
            await trio.sleep(vm.config.timing.printed_look_s)
            await follower.look()

    async with move_on_when(follow):
        yield
    await follower.look()


class _Follower:
    def __init__(self, vm: Vm, agent: Agent) -> None:
        self._vm = vm
        self._agent = agent
        #: The algorithm before.
        self._before: int | None = None
        self._known = Printed()
        self._failed = False

    async def look(self) -> bool:
        """Add what is new; whether the agent has told it."""
        try:
            async with in_time(self._vm, self._vm.config.agent.timeout_s) as patience:
                found = await computing.printed(self._agent, self._known)
            if patience.cancelled_caught:
                return False
            if self._before is None:
                self._before = found.run
            elif found.run != self._before:
                await self._add(found)
            self._known = found
        except (AgentError, OSError) as error:
            if not self._failed:  # a guest may fail in many ways, and every second
                self._failed = True
                log.info("what an algorithm prints is lost", vm=self._vm.id, problem=str(error))
            return False
        return True

    async def _add(self, found: Printed) -> None:
        known = self._known.position if found.run == self._known.run else 0
        lost = found.position - len(found.data) - known
        gap = f"\n[{lost} bytes are left out]\n".encode() if lost > 0 else b""
        if found.data:
            limit = size_in_bytes(self._vm.config.life.log_size)
            await self._vm.dir.results.add_printed(gap + found.data, limit)
