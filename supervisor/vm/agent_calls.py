"""A connection of its own to a VM's agent, for a call that somebody asks for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.agent import client
from supervisor.errors import AgentTimeout, Busy
from supervisor.state.status import VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.agent.client import Agent
    from supervisor.vm.vm import Vm


@asynccontextmanager
async def connected(vm: Vm) -> AsyncIterator[Agent]:
    """:raises Busy: if the agent cannot be asked now
    :raises AgentTimeout: if no connection can be made in time
    """
    if not vm.agent_ready or vm.status.state is not VmState.RUNNING or vm.ending:
        why = f": {vm.agent_problem}" if vm.agent_problem else ""
        raise Busy(f"the agent of VM {vm.id} cannot be asked now: the VM is {vm.status}{why}")
    config = vm.config
    target = vm.record.agent_address or client.address(config.agent, vm.record.forwards)
    credential = vm.secret.credential if vm.secret else None
    connecting = client.connect(vm.id, target, config.agent, config.timing, credential)
    async with connecting as agent:
        with trio.move_on_after(config.agent.timeout_s) as patience:
            await agent.wait_ready()
        if patience.cancelled_caught:
            raise AgentTimeout(
                vm.id,
                f"no connection to the agent of VM {vm.id} within {config.agent.timeout_s:g} s",
                advice="see MANAGER_AGENT_GRPC_TIMEOUT",
            )
        yield agent
