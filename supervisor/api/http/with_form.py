"""``POST /run`` with a form: the run, the algorithm, the data and the result in one request."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from quart import request

from supervisor.agent.computing import MOST_DATASETS, Part
from supervisor.api import trace
from supervisor.api.callers import current, who
from supervisor.api.http import compute as computing
from supervisor.api.http import json_body, views
from supervisor.api.http.form import Form
from supervisor.api.requests import ComputeRequest, RunRequest, Then
from supervisor.config import MAX_COMPUTATION
from supervisor.errors import InvalidRequest
from supervisor.state.record import EndCause, EndMode
from supervisor.vm import compute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.api.budget import Budget
    from supervisor.runs.service import Service
    from supervisor.vm.vm import Vm

#: Parts by their names, with the most bytes of each.
_FIRST = {"run": 64 * 1024, "computation": MAX_COMPUTATION, "compute": 64 * 1024}
_FILES = ("algorithm", "data")


async def run(service: Service, budget: Budget) -> Any:
    """Small parts come first, for the VM is started before the files are taken."""
    if "Idempotency-Key" in request.headers or "Prefer" in request.headers:
        raise InvalidRequest("a form excludes Idempotency-Key and Prefer: send its parts singly")
    body = json_body.incoming()
    body.allow(computing.ANY_LENGTH)
    form = Form(body, request.mimetype_params.get("boundary", ""))
    async with budget.reserve(who(), None):
        name, first = await _first(form)
        computation = first.get("computation", b"{}")
        wanted = json_body.parse(RunRequest, first.get("run", b"{}"), computation=computation)
        then = json_body.parse(ComputeRequest, first.get("compute", b"{}"))
        options = wanted.options(service.config, None, trace.present().id)
        if wanted.parties:
            raise InvalidRequest("a form excludes parties: each sends its part singly")
        vm = await service.submit(wanted.computation, options, current())
        trace.present().vm_id = vm.id
    await service.wait_answered(vm, options)
    with _ending_otherwise(vm):
        await _send(vm, form, name)
        outcome = await compute.run(vm, computing.wishes(then), then_end=then.then is Then.END)
    if computing.wants_bytes() and outcome["state"] == "succeeded":
        return await computing.result_of(vm)
    reply = await vm.read_reply()
    answer = {**views.answer(vm, reply), "outcome": outcome}
    return answer, 200, {"Server-Timing": views.server_timing(vm)}


async def _first(form: Form) -> tuple[str, dict[str, bytes]]:
    """The name of the first file, and all parts before it."""
    found: dict[str, bytes] = {}
    while (name := await form.next()) is not None and name not in _FILES:
        if name not in _FIRST or name in found:
            known = ", ".join((*_FIRST, *_FILES))
            raise InvalidRequest(f"the form has a part {name[:64]!r} too many; known are {known}")
        found[name] = await form.collect(_FIRST[name])
    if name is None:
        raise InvalidRequest("the form has no algorithm and no data")
    return name, found


async def _send(vm: Vm, form: Form, name: str | None) -> None:
    sent = dict.fromkeys(_FILES, 0)
    while name is not None:
        if name not in _FILES:
            raise InvalidRequest(f"the part {name[:64]!r} must come before algorithm and data")
        part = Part() if name == "algorithm" else Part(sent[name])
        if sent[name] >= (1 if name == "algorithm" else MOST_DATASETS):
            raise InvalidRequest(f"the form has too many parts {name!r}")
        sent[name] += 1
        async with contextlib.aclosing(form.content()) as content:
            await compute.send(vm, part, content, None, "")
        name = await form.next()


@contextlib.contextmanager
def _ending_otherwise(vm: Vm) -> Iterator[None]:
    """Nobody has the VM's id if its caller is gone, or is told of an error."""
    try:
        yield
    except BaseException:
        vm.request_end(EndMode.FORCE, EndCause.CALLER_LEFT, "its caller went away, or was refused")
        raise
