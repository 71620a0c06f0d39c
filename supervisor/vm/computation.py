"""What can be asked of the computation of an agent that dials the supervisor."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from google.protobuf import json_format

from supervisor.errors import AgentTimeout, Busy
from supervisor.pb import cvms_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.agent.dialled import DialledAgent
    from supervisor.agent.dialled_server import Dialled
    from supervisor.vm.vm import Vm


async def state(vm: Vm, dialled: Dialled) -> str:
    """In the agent's words, such as ``ReceivingData``.

    :raises Busy: if the VM has no such agent now
    :raises AgentError: if its stream is not there, or ends before; AgentTimeout if not in time
    """
    with _in_time(vm, "the state of its computation"):
        return await _agent_of(vm, dialled).state()


async def stop(vm: Vm, dialled: Dialled) -> None:
    """Have the agent stop it. The VM runs on.

    :raises Busy: if the agent has none, or the VM has no such agent now
    :raises AgentError: if the agent cannot, its stream is not there, or ends before; AgentTimeout
        if not in time
    """
    agent = _agent_of(vm, dialled)
    if not vm.record.answered:
        raise Busy(f"VM {vm.id} has no computation to stop: it is {vm.record.relay}")
    taken = json_format.Parse(await vm.read_reply(), cvms_pb2.RunResponse())
    with _in_time(vm, "StopComputation"):
        await agent.stop(taken.computation_id)


def _agent_of(vm: Vm, dialled: Dialled) -> DialledAgent:
    agent = dialled.of(vm.id)
    if not vm.record.options.dials:
        why = "its agent does not dial"
    elif agent is None or vm.status.is_held:
        why = f"it is {vm.status}"
    elif not vm.agent_ready:
        why = f"its agent has not dialled{' again' if vm.agent_lost else ' yet'}"
    else:
        return agent
    raise Busy(f"VM {vm.id} cannot be asked for its computation: {why}")


@contextmanager
def _in_time(vm: Vm, what: str) -> Iterator[None]:
    timeout_s = vm.config.agent.timeout_s
    with trio.move_on_after(timeout_s) as patience:
        yield
    if patience.cancelled_caught:
        raise AgentTimeout(
            vm.id,
            f"the agent of VM {vm.id} did not answer {what} within {timeout_s:g} s",
            advice="see MANAGER_AGENT_GRPC_TIMEOUT",
        )
