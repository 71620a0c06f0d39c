"""What only the other members of the fleet ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response

from supervisor.api.callers import current, needs
from supervisor.api.fleet.runs import Posted
from supervisor.api.http import json_body
from supervisor.api.requests import RunRequest
from supervisor.caller import Right
from supervisor.errors import NotOwner

if TYPE_CHECKING:
    from supervisor.api.fleet.member import Calls, Member
    from supervisor.runs.service import Service


def blueprint(member: Member, calls: Calls, service: Service) -> Blueprint:
    routes = Blueprint("members", __name__)

    @routes.post("/runs/<run_id>/copy")
    @needs(Right.RUN)
    async def keep_copy(run_id: str) -> Response:
        caller, wanted = current(), await json_body.read(RunRequest)
        if caller.claim is None or caller.claim[0] != run_id:
            raise NotOwner(f"this member is not asked for run {run_id}")
        options = wanted.options(service.config, None)
        member.runs.keep(run_id, Posted(wanted, options, caller, waits=False))
        return Response("", 204)

    @routes.post("/rpc/<path:method>")
    @needs(Right.SEE)
    @json_body.takes_bytes
    async def call(method: str) -> Response:
        """The method may need more."""
        message = b"".join([piece async for piece in json_body.incoming()])
        return Response(await calls(method, message), mimetype="application/octet-stream")

    return routes
