"""Where a run goes that a caller asks for: to this host, or to whichever of the fleet takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.api import trace
from supervisor.api.callers import current
from supervisor.errors import InvalidRequest
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from supervisor.api.fleet.member import Member
    from supervisor.api.fleet.runs import Answered
    from supervisor.api.requests import RunRequest
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions


async def submit(
    service: Service,
    member: Member | None,
    wanted: RunRequest,
    options: RunOptions,
    *,
    waits: bool,
) -> Vm | Answered:
    """
    :param waits: whether the present caller waits for the agent's answer
    :return: the VM, if it is on this host
    :raises SupervisorError: if the run is not admitted
    """
    caller = current()
    if member and caller.claim:
        vm = await member.fleet.start(wanted.computation, options, caller, caller.claim)
    elif member and member.asks:
        found = await member.runs.run(wanted, options, waits=waits)
        if not isinstance(found, Vm):
            return found
        vm = found
    elif wanted.host:
        raise InvalidRequest("host needs a fleet, see MANAGER_FLEET", member="host")
    else:
        vm = await service.submit(wanted.computation, options, caller)
    trace.present().vm_id = vm.id
    return vm
