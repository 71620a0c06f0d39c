"""What is asked of the computation of an agent that dials the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint

from supervisor.api.callers import current, needs
from supervisor.api.http import json_body, views
from supervisor.api.requests import NoMembers
from supervisor.caller import Right
from supervisor.vm import computation

if TYPE_CHECKING:
    from supervisor.runs.service import Service


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("computations", __name__, url_prefix="/vms")

    @routes.get("/<vm_id>/computation")
    @needs(Right.SEE)
    async def computation_state(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        state = await computation.state(vm, service.vms.dialled)
        return {"vm": vm.id, "state": state}

    @routes.post("/<vm_id>/computation/stop")
    @needs(Right.USE)
    async def stop_computation(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        await json_body.read_optional(NoMembers)
        await computation.stop(vm, service.vms.dialled)
        return views.status(vm)

    return routes
