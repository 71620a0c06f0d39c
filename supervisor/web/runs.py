"""``POST /run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, request

from supervisor.web import bodies, views

if TYPE_CHECKING:
    from supervisor.service import Service


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("runs", __name__)

    @routes.post("/run")
    async def run() -> Any:
        wanted = await bodies.read(bodies.RunRequest)
        if _prefers_async():
            vm = service.submit(wanted.computation)
            headers = {
                "Location": f"/vms/{vm.id}",
                "Preference-Applied": "respond-async",
            }
            return views.summary(vm), 202, headers
        return views.answer(await service.run(wanted.computation))

    return routes


def _prefers_async() -> bool:
    """RFC 7240: preferences are separated by commas, parameters by semicolons."""
    given = ",".join(request.headers.getlist("Prefer")).lower()
    return any(one.split(";")[0].strip() == "respond-async" for one in given.split(","))
