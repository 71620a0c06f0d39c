"""``POST /run``, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request
from quart_trio.wrappers.response import TrioFileBody

from supervisor.api import trace
from supervisor.api.callers import current, needs, who
from supervisor.api.http import elsewhere, json_body, views, with_form
from supervisor.api.requests import RunRequest
from supervisor.api.submit import submit
from supervisor.caller import Right
from supervisor.fleet.members import LEASE_S
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from supervisor.api.budget import Budget
    from supervisor.api.fleet.member import Member
    from supervisor.fleet.fleet import Fleet
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions


def blueprint(service: Service, budget: Budget, member: Member | None) -> Blueprint:
    routes = Blueprint("runs", __name__)

    @routes.post("/run")
    @needs(Right.RUN)
    @json_body.takes_forms
    async def run() -> Any:
        if request.mimetype == json_body.FORM:
            return await with_form.run(service, budget, member)
        submitted = await _submit()
        if isinstance(submitted, Response):
            return submitted
        vm, options = submitted
        where = {"host": member.fleet.name} if member else {}
        if _prefers_async():
            headers = {
                "Location": f"/vms/{vm.id}",
                "Preference-Applied": "respond-async",
            }
            return {**views.summary(vm), **where, "credential": vm.credential}, 202, headers
        by, patience_s = _answering(service, member)
        await by.wait_answered(vm, options, patience_s)
        reply = await vm.read_reply()
        timing = {"Server-Timing": views.server_timing(vm)}
        return {**views.answer(vm, reply), **where}, 200, timing

    async def _submit() -> tuple[Vm, RunOptions] | Response:
        """Nothing of the computation stays in memory once its VM has it on disk.

        :returns: the answer of another member of the fleet, if that one has the VM
        """
        async with budget.reserve(who(), json_body.incoming().announced) as keep:
            wanted = await json_body.read(RunRequest)
            keep(len(wanted.computation))
            options = wanted.options(service.config, _idempotency_key(), trace.present().id)
            waits = not _prefers_async()
            found = await submit(service, member, wanted, options, waits=waits)
            if isinstance(found, Vm):
                return found, options
            return elsewhere.passed_on(found.response, found.content)

    @routes.get("/vms/<vm_id>/reply")
    @needs(Right.USE)
    async def reply(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        try:
            body = TrioFileBody(vm.reply_file, buffer_size=2**18)
        except OSError as error:
            raise vm.unreadable(error) from error
        return Response(
            body,
            content_type="text/plain; charset=utf-8",
            headers={
                "Content-Length": str(body.size),
                # Else a browser might run what a guest wrote.
                "X-Content-Type-Options": "nosniff",
            },
        )

    return routes


def _answering(service: Service, member: Member | None) -> tuple[Service | Fleet, float]:
    """Who knows when a run is answered, and how long its caller may be gone, in seconds."""
    if member and current().claim:
        # Another member's connection may break, and be made again for the same caller.
        return member.fleet, LEASE_S
    return service, 0.0


def _prefers_async() -> bool:
    """RFC 7240: commas separate preferences, semicolons their parameters."""
    given = ",".join(request.headers.getlist("Prefer")).lower()
    return any(one.split(";")[0].strip() == "respond-async" for one in given.split(","))


def _idempotency_key() -> str | None:
    """The header's value as it was sent: the draft wants a quoted string, most send a word."""
    return request.headers.get("Idempotency-Key")
