"""``POST /run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, request

from supervisor.api.http import json_body, views
from supervisor.api.requests import RunRequest

if TYPE_CHECKING:
    from supervisor.runs.service import Service


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("runs", __name__)

    @routes.post("/run")
    async def run() -> Any:
        wanted = await json_body.read(RunRequest)
        options = wanted.options(service.config, _idempotency_key())
        if _prefers_async():
            vm = await service.submit(wanted.computation, options)
            headers = {
                "Location": f"/vms/{vm.id}",
                "Preference-Applied": "respond-async",
            }
            return views.summary(vm), 202, headers
        vm = await service.run(wanted.computation, options)
        return views.answer(vm), 200, {"Server-Timing": views.server_timing(vm)}

    return routes


def _prefers_async() -> bool:
    """RFC 7240: commas separate preferences, semicolons their parameters."""
    given = ",".join(request.headers.getlist("Prefer")).lower()
    return any(one.split(";")[0].strip() == "respond-async" for one in given.split(","))


def _idempotency_key() -> str | None:
    """The header's value as it was sent: the draft wants a quoted string, most send a word."""
    return request.headers.get("Idempotency-Key")
