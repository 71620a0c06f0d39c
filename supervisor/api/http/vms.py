"""``/vms`` and the paths below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request

from supervisor.api.callers import current, needs
from supervisor.api.http import json_body, listing, views
from supervisor.api.http.elsewhere import Elsewhere
from supervisor.api.requests import NoMembers, ShutdownRequest
from supervisor.caller import Right
from supervisor.errors import InvalidRequest
from supervisor.state.record import Purpose
from supervisor.vm import control

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.api.fleet.member import Member
    from supervisor.runs.service import Service
    from supervisor.vm.vm import Vm


def blueprint(service: Service, member: Member | None) -> Blueprint:
    routes = Blueprint("vms", __name__, url_prefix="/vms")

    @routes.get("")
    @needs(Right.SEE)
    async def list_vms() -> Any:
        here = await _of_this_host(service, member)
        return await _of_all(Elsewhere(member.others), here) if member and member.asks else here

    @routes.get("/<vm_id>")
    @needs(Right.SEE)
    async def show(vm_id: str) -> Any:
        return await _everything(service, member, service.vms.see(vm_id, current()))

    @routes.get("/<vm_id>/status")
    @needs(Right.SEE)
    async def status(vm_id: str) -> Any:
        vm = service.vms.see(vm_id, current())
        if request.args.get("live") == "1":
            await vm.query_now()
        return views.status(vm)

    @routes.post("/<vm_id>/shutdown")
    @needs(Right.USE)
    async def shutdown(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        wanted = await json_body.read_optional(ShutdownRequest)
        await service.end(vm, wanted.mode)
        return await _everything(service, member, vm)

    @routes.post("/<vm_id>/pause")
    @needs(Right.USE)
    async def pause(vm_id: str) -> Any:
        return await _control(control.pause, vm_id)

    @routes.post("/<vm_id>/resume")
    @needs(Right.USE)
    async def resume(vm_id: str) -> Any:
        return await _control(control.resume, vm_id)

    @routes.post("/<vm_id>/reset")
    @needs(Right.USE)
    async def reset(vm_id: str) -> Any:
        return await _control(control.reset, vm_id)

    async def _control(act: Callable[[Vm], Awaitable[None]], vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        await json_body.read_optional(NoMembers)
        await act(vm)
        return views.status(vm)  # the rest is as it was

    @routes.delete("/<vm_id>")
    @needs(Right.USE)
    async def delete(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        await json_body.read_optional(NoMembers)
        await service.vms.delete(vm)
        answer = Response("", 204)
        del answer.headers["Content-Type"]  # of nothing
        return answer

    return routes


async def _of_all(elsewhere: Elsewhere, here: dict[str, Any]) -> dict[str, Any]:
    """A page of all members' VMs."""
    pages, missing = await elsewhere.list(here, request.args.get("host"), listing.check)
    rows, following = listing.merged(request.args, pages)
    for row in rows:
        del row["place"]
    return {"vms": rows, "next": following, "missing": missing}


async def _of_this_host(service: Service, member: Member | None) -> dict[str, Any]:
    """A page of its VMs. In a fleet each has its place among those of all hosts."""
    asks_for_held = Purpose.HELD in request.args.getlist("purpose")
    listed = service.vms.seen_by if asks_for_held else service.vms.listed_for
    found, following = listing.page(listed(current()), request.args)
    rows = [views.summary(vm) for vm in found]
    if listing.wants_usage(request.args):
        await _add_usage(service, *rows)
    if member:
        for vm, row in zip(found, rows, strict=True):
            row |= {"host": member.fleet.name, "place": listing.place(vm)}
    elif "host" in request.args:
        raise InvalidRequest("host needs a fleet, see MANAGER_FLEET", member="host")
    return {"vms": rows, "next": following}


async def _everything(service: Service, member: Member | None, vm: Vm) -> dict[str, Any]:
    answer = views.everything(vm)
    if member:
        answer["host"] = member.fleet.name
    await _add_usage(service, answer)
    return answer


async def _add_usage(service: Service, *answers: dict[str, Any]) -> None:
    sample = await service.usages.sample(service.vms)
    for answer in answers:
        # It may have ended since.
        answer["usage"] = None if answer["ended"] else views.usage(sample, answer["id"])
