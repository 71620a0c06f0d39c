"""What only the other members of the fleet ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response, request

from supervisor.api import trace
from supervisor.api.callers import current, needs, who
from supervisor.api.fleet.runs import Posted
from supervisor.api.http import json_body
from supervisor.api.requests import RunRequest
from supervisor.caller import Right
from supervisor.errors import NotOwner

if TYPE_CHECKING:
    from uuid import UUID

    from supervisor.api.budget import Budget
    from supervisor.api.fleet.member import Calls, Member
    from supervisor.runs.service import Service

#: Of a call that is passed on, in bytes: as the server takes of callers.
_LONGEST_MESSAGE = 512 * 1024


def blueprint(member: Member, calls: Calls, service: Service, budget: Budget) -> Blueprint:
    routes = Blueprint("members", __name__)

    @routes.post("/runs/<uuid:run_id>/copy")
    @needs(Right.RUN)
    async def keep_copy(run_id: UUID) -> Response:
        caller, key = current(), request.headers.get("Idempotency-Key")
        if caller.claim is None or caller.claim[0] != str(run_id):
            raise NotOwner(f"this member is not asked for run {run_id}")
        async with budget.reserve(who(), json_body.incoming().announced) as keep:
            wanted = await json_body.read(RunRequest)
            keep(len(wanted.computation))
            options = wanted.options(service.config, key, trace.present().id)
            await member.runs.keep(str(run_id), Posted(wanted, options, caller, waits=False))
        return Response("", 204)

    @routes.post("/rpc/<path:method>")
    @needs(Right.SEE)
    @json_body.takes_bytes
    async def call(method: str) -> Response:
        """The method may need more."""
        body = json_body.incoming()
        body.allow(_LONGEST_MESSAGE)
        message = b"".join([piece async for piece in body])
        return Response(await calls(method, message), mimetype="application/octet-stream")

    return routes
