"""``POST /run`` with a form: the run, the algorithm, the data and the result in one request."""

from __future__ import annotations

import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from quart import request

from supervisor.agent.computing import MOST_DATASETS, Part
from supervisor.api import trace
from supervisor.api.callers import current, who
from supervisor.api.fleet.asked import Asked
from supervisor.api.http import compute as computing
from supervisor.api.http import elsewhere, json_body, views
from supervisor.api.http.form import Form
from supervisor.api.requests import ComputeRequest, RunRequest, Then
from supervisor.api.submit import submit
from supervisor.config import MAX_COMPUTATION
from supervisor.errors import FleetError, InvalidRequest, MemberBroke
from supervisor.state.record import EndCause, EndMode
from supervisor.vm import compute
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

    from supervisor.api.budget import Budget
    from supervisor.api.fleet.member import Member
    from supervisor.api.fleet.others import Others
    from supervisor.api.fleet.runs import Answered
    from supervisor.caller import Caller
    from supervisor.runs.service import Service

#: Parts by their names, with the most bytes of each.
_FIRST = {"run": 64 * 1024, "computation": MAX_COMPUTATION, "compute": 64 * 1024}
_FILES = ("algorithm", "data")


class _Vm(Protocol):
    """The one that a form's run has got, on this host or on another member's."""

    async def send(self, part: Part, content: AsyncIterator[bytes]) -> None: ...

    async def compute(self, wishes: bytes) -> Any:
        """Have the algorithm run, and return what the client is answered."""

    def end(self) -> None: ...


async def run(service: Service, budget: Budget, member: Member | None) -> Any:
    """Small parts come first, for the VM is started before the files are taken."""
    if "Idempotency-Key" in request.headers or "Prefer" in request.headers:
        raise InvalidRequest("a form excludes Idempotency-Key and Prefer: send its parts singly")
    body = json_body.incoming()
    body.allow(computing.ANY_LENGTH)
    form = Form(body, request.mimetype_params.get("boundary", ""))
    async with budget.reserve(who(), None) as keep:
        name, first = await _first(form)
        computation, wishes = first.get("computation", b"{}"), first.get("compute", b"{}")
        wanted = json_body.parse(RunRequest, first.get("run", b"{}"), computation=computation)
        json_body.parse(ComputeRequest, wishes)
        keep(len(computation))
        options = wanted.options(service.config, None, trace.present().id)
        if wanted.parties:
            raise InvalidRequest("a form excludes parties: each sends its part singly")
        found = await submit(service, member, wanted, options, waits=True)
    if isinstance(found, Vm):
        await service.wait_answered(found, options)
        vm: _Vm = _Here(found)
    elif found.response.status_code != HTTPStatus.OK or member is None:
        return elsewhere.passed_on(found.response, found.content)
    else:
        vm = await _there(service, member.others, found)
    with _ending_otherwise(vm):
        await _send(vm, form, name)
        return await vm.compute(wishes)


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


async def _send(vm: _Vm, form: Form, name: str | None) -> None:
    sent = dict.fromkeys(_FILES, 0)
    while name is not None:
        if name not in _FILES:
            raise InvalidRequest(f"the part {name[:64]!r} must come before algorithm and data")
        part = Part() if name == "algorithm" else Part(sent[name])
        if sent[name] >= (1 if name == "algorithm" else MOST_DATASETS):
            raise InvalidRequest(f"the form has too many parts {name!r}")
        sent[name] += 1
        async with contextlib.aclosing(form.content()) as content:
            await vm.send(part, content)
        name = await form.next()


@contextlib.contextmanager
def _ending_otherwise(vm: _Vm) -> Iterator[None]:
    """Nobody has the VM's id if its caller is gone, or is told of an error."""
    try:
        yield
    except BaseException:
        vm.end()
        raise


@attrs.frozen
class _Here:
    _vm: Vm

    async def send(self, part: Part, content: AsyncIterator[bytes]) -> None:
        await compute.send(self._vm, part, content, None, "")

    async def compute(self, wishes: bytes) -> Any:
        vm, then = self._vm, json_body.parse(ComputeRequest, wishes)
        outcome = await compute.run(vm, computing.wishes(then), then_end=then.then is Then.END)
        if computing.wants_bytes() and outcome["state"] == "succeeded":
            return await computing.result_of(vm)
        answer = {**views.answer(vm, await vm.read_reply()), "outcome": outcome}
        return answer, 200, {"Server-Timing": views.server_timing(vm)}

    def end(self) -> None:
        why = "its caller went away, or was refused"
        self._vm.request_end(EndMode.FORCE, EndCause.CALLER_LEFT, why)


async def _there(service: Service, others: Others, found: Answered) -> _There:
    """:raises MemberBroke: if its answer does not come, or is none; then its TTL ends its VM"""
    timing = found.response.headers.get("Server-Timing", "")
    content = await others.read(found.host, found.response)
    try:
        answer = json.loads(content)
        at = f"/vms/{answer['id']}"
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise MemberBroke(f"the member {found.host} answers with no run: {error!r}") from error
    return _There(service, others, current(), found.host, at, answer, timing)


@attrs.frozen
class _There:
    """As its host's own callers would ask for it, one request after another."""

    _service: Service
    _others: Others
    _caller: Caller
    _host: str
    _at: str
    _answer: dict[str, Any]
    _timing: str

    async def send(self, part: Part, content: AsyncIterator[bytes]) -> None:
        name = "algorithm" if part.number is None else f"data/{part.number}"
        await self._read("PUT", name, content=content)

    async def compute(self, wishes: bytes) -> Any:
        of_json = {"Content-Type": "application/json"}
        outcome = json.loads(await self._read("POST", "compute", of_json, wishes))
        del outcome["vm"]
        if computing.wants_bytes() and outcome["state"] == "succeeded":
            return elsewhere.passed_on(await self._ask("GET", "result"))
        return {**self._answer, "outcome": outcome}, 200, {"Server-Timing": self._timing}

    def end(self) -> None:
        self._service.vms.spawn(self._end)

    async def _end(self) -> None:
        """If its host cannot be asked, its TTL ends it, as that of a run whose caller crashed."""
        of_json = {"Content-Type": "application/json"}
        with contextlib.suppress(FleetError):
            await self._read("POST", "shutdown", of_json, b'{"mode": "force"}')

    async def _read(self, *asked: Any, **named: Any) -> bytes:
        return await self._others.read(self._host, await self._ask(*asked, **named))

    async def _ask(
        self, method: str, name: str, headers: dict[str, str] | None = None, content: Any = b""
    ) -> httpx.Response:
        return await self._others.ask(
            self._host,
            Asked(
                self._caller,
                method,
                f"{self._at}/{name}",
                headers or {},
                content,
                trace.present().id,
            ),
        )
