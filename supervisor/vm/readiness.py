"""Waits for the agent of a guest that boots, and says why it will not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import channel
from supervisor.errors import AgentTimeout
from supervisor.qemu import ports
from supervisor.state.record import EventKind
from supervisor.state.status import VmState
from supervisor.vm.diagnosis import CONSOLE_BYTES, diagnose
from supervisor.vm.held_time import in_time
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from supervisor.agent.client import Agent
    from supervisor.agent.dialled import DialledAgent
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


async def wait_ready(vm: Vm, agent: Agent | DialledAgent) -> None:
    """Return when the agent is ready.

    :raises AgentTimeout: if it is not in time, or certainly never will be
    :raises HostError: if a certificate cannot be read
    """
    timeout_s = vm.config.agent.boot_timeout_s
    hopeless = ""

    async def look() -> None:
        nonlocal hopeless
        hopeless = await _find_cause(vm, agent)

    async with in_time(vm, timeout_s) as patience, move_on_when(look):
        await reach(vm, agent)
    if hopeless:
        raise AgentTimeout(
            vm.id,
            f"the agent of VM {vm.id} is not there: {hopeless}",
            advice=vm.dir.what_was_printed(),
        )
    if patience.cancelled_caught:
        late = f"was not ready {timeout_s:g} s after the guest's start"
        sign = f"; {vm.agent_problem}" if vm.agent_problem else ""
        raise AgentTimeout(
            vm.id,
            f"the agent of VM {vm.id} {late}{sign}",
            advice=f"see MANAGER_BOOT_TIMEOUT; {vm.dir.what_was_printed()}",
        )


async def reach(vm: Vm, agent: Agent | DialledAgent, attempt_s: float | None = None) -> None:
    """Return when the agent is ready, however long that takes.

    A guest that is paused meanwhile is left alone. It could not answer, and QEMU's user network
    forgets none of the connections that are tried.

    :param attempt_s: as of `Agent.wait_ready`
    :raises HostError: if a certificate cannot be read
    """
    while True:
        await vm.until(lambda: vm.status.state in (VmState.PRELAUNCH, VmState.RUNNING))
        async with move_on_when(lambda: vm.until(lambda: _is_paused(vm))) as attempts:
            await agent.wait_ready(attempt_s)
        if not attempts.cancelled_caught:
            return
        await agent.close()


async def _find_cause(vm: Vm, agent: Agent | DialledAgent) -> str:
    """Return once it is certain why the agent will not be there; tell of other signs of that.

    A guest may still be about to start its agent, or its network. So a sign must last.
    """
    timing = vm.config.timing
    forwards = vm.record.forwards or ports.in_namespace(vm.config.qemu.net)
    guest_port = channel.forward_to_agent(vm.config.agent, forwards).guest_port
    before, since = None, trio.current_time()
    while True:
        await trio.sleep(timing.agent_look_s)
        console = await trio.to_thread.run_sync(vm.dir.console, CONSOLE_BYTES)
        found = diagnose(console, guest_port, refused=agent.refused)
        if found != before or vm.status.state is not VmState.RUNNING:
            before, since = found, trio.current_time()
        lasted_s = trio.current_time() - since
        if found and found.certain and lasted_s >= timing.agent_verdict_s:
            return found.why
        if found and lasted_s >= timing.agent_doubt_s and vm.agent_problem != found.why:
            log.warning("agent late", vm=vm.id, why=found.why)
            vm.agent_problem = found.why
            await vm.commit(EventKind.AGENT_LATE, {"why": found.why})


def _is_paused(vm: Vm) -> bool:
    return vm.status.state is VmState.PAUSED
