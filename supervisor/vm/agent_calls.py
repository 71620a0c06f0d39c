"""A connection of its own to a VM's agent, for a call that somebody asks for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.agent import channel, client
from supervisor.errors import AgentError, AgentTimeout, Busy
from supervisor.state.status import VmState
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.agent.client import Agent
    from supervisor.vm.vm import Vm


@asynccontextmanager
async def connected(vm: Vm, reply_bytes: int) -> AsyncIterator[Agent]:
    """An agent that can be asked. The body is cut off when the guest is another one, or ends.

    Its connection would not notice: QEMU keeps it when the guest is reset. And when the VM is gone,
    another VM's agent may be at its port.

    :param reply_bytes: the largest message that is taken
    :raises Busy: if the agent cannot be asked now
    :raises AgentTimeout: if no connection can be made in time
    :raises AgentError: if the body was cut off
    """
    if not vm.agent_ready or vm.status.state is not VmState.RUNNING or vm.ending:
        why = f": {vm.agent_problem}" if vm.agent_problem else ""
        raise Busy(f"the agent of VM {vm.id} cannot be asked now: the VM is {vm.status}{why}")
    config, session, guests = vm.config, vm.session, vm.guests
    target = vm.record.agent_address or channel.address(config.agent, vm.record.forwards)
    credential = vm.secret.credential if vm.secret else None
    connecting = client.connect(vm.id, target, config.agent, config.timing, credential, reply_bytes)

    async def guest_is_gone() -> None:
        await vm.until(
            lambda: (
                vm.ended
                or vm.ending
                or vm.session is not session
                or session is None
                or session.qemu.gone
                or vm.guests != guests
            )
        )

    async with connecting as agent:
        async with move_on_when(guest_is_gone) as scope:
            with trio.move_on_after(config.agent.timeout_s) as patience:
                await agent.wait_ready()
            if patience.cancelled_caught:
                raise AgentTimeout(
                    vm.id,
                    f"no connection to the agent of VM {vm.id} within {config.agent.timeout_s:g} s",
                    advice="see MANAGER_AGENT_GRPC_TIMEOUT",
                )
            yield agent
        if scope.cancelled_caught:
            raise AgentError(vm.id, "UNAVAILABLE", "its guest was reset, or has ended")
