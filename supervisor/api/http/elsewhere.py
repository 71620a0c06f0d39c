"""What other members of the fleet serve: runs that they take, and their VMs."""

from __future__ import annotations

import json
import uuid
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import httpx
import structlog
import trio
from quart import Response, request

from supervisor.api import trace
from supervisor.api.callers import current
from supervisor.api.http import json_body
from supervisor.caller import Right
from supervisor.config import RestartPolicy
from supervisor.errors import HandedBack, InvalidRequest, MemberBroke, nearest
from supervisor.fleet.ledger import Run
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from supervisor.api.requests import RunRequest
    from supervisor.caller import Caller
    from supervisor.fleet.entry import Claim
    from supervisor.fleet.fleet import Fleet
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

_CONNECT_S = 3.0
#: The longest time that a list waits for a member.
_LIST_S = 5.0
_HANDED_BACK = "urn:qmp-supervisor:problem:handed-back"
#: Headers of a request that its handler reads, and of an answer that its caller does. All others
#: are of one connection, or this member's own.
_ASKED = ("accept", "content-type", "content-length", "prefer", "idempotency-key", "last-event-id")
_ANSWERED = (
    "content-type",
    "content-length",
    "content-disposition",
    "cache-control",
    "etag",
    "location",
    "preference-applied",
    "retry-after",
    "server-timing",
)


@attrs.frozen
class Member:
    """What a server knows of the fleet.

    :param elsewhere: what asks the other members; None on the server that they ask
    """

    fleet: Fleet
    elsewhere: Elsewhere | None


class Elsewhere:
    """This member as a client of the others."""

    def __init__(self, fleet: Fleet, service: Service, client: httpx.AsyncClient) -> None:
        self.fleet = fleet
        self._service = service
        self._client = client

    # --- runs -------------------------------------------------------------------------------

    async def run(self, wanted: RunRequest, options: RunOptions, *, waits: bool) -> Vm | Response:
        """Have a host run a computation. It may be this one: then the VM.

        :param waits: whether the caller waits for the agent's answer
        :raises SupervisorError:
        """
        caller = current()
        run = Run(
            id=str(uuid.uuid4()),
            entry=self.fleet.name,
            needs=wanted.needs(),
            repeats=options.restart is not RestartPolicy.NEVER,
            moves=wanted.host is None or wanted.host.moves,
        )
        await self.fleet.entry.check(run.needs, tells_hosts=caller.may(Right.HOST))
        key, before = options.idempotency_key, None
        if key is not None:
            before = await self.fleet.keys.claim(run, caller.name, key, options.request_hash)
        entry = self.fleet.entry
        waiting = entry.join(before, caller.name) if before else entry.post(run, caller.name)
        async with waiting as posting:
            while True:
                claim = await posting.wait_claimed()
                try:
                    if claim.host == self.fleet.name:
                        return await self._here(claim, wanted, options, caller, waits)
                    return await self._there(claim, wanted, caller)
                except HandedBack as error:
                    log.info("run handed back", run=run.id, host=claim.host, problem=str(error))
                    await posting.handed_back()
                except MemberBroke as error:
                    log.warning("member broke", run=run.id, host=claim.host, problem=str(error))
                    await posting.after_break(claim)

    async def _here(
        self, claim: Claim, wanted: RunRequest, options: RunOptions, caller: Caller, waits: bool
    ) -> Vm:
        service = self._service
        vm = await self.fleet.start(
            wanted.computation, options, caller, (claim.run_id, claim.epoch)
        )
        if waits:
            await service.wait_answered(vm, options)
        return vm

    async def _there(self, claim: Claim, wanted: RunRequest, caller: Caller) -> Response:
        headers = {"Content-Type": "application/json"}
        for name in ("Prefer", "Idempotency-Key"):
            if name in request.headers:
                headers[name] = request.headers[name]
        body = json.dumps(wanted.to_json()).encode()
        token = self._sign(caller, claim.host, "POST", "/run", claim.run_id, claim.epoch)
        lost = partial(self.fleet.members.wait_lost, claim.host)
        answer, has_left = None, True
        try:
            async with move_on_when(lost):
                answer = await self._send(claim.address, "POST", "/run", headers, body, token)
            has_left = False
        except MemberBroke:
            has_left = False
            raise
        finally:
            if has_left:
                told = claim.host, claim.run_id, claim.epoch
                self._service.vms.spawn(self.fleet.tell_left, *told)
        if answer is None:
            raise MemberBroke(f"host {claim.host} is lost")
        if answer.status_code == 503 and _kind(answer) == "application/problem+json":
            problem = json.loads(await answer.aread())
            await answer.aclose()
            if problem.get("type") == _HANDED_BACK:
                raise HandedBack(str(problem.get("detail", "")))
            return Response(json.dumps(problem), 503, content_type="application/problem+json")
        return _passed_on(answer)

    # --- VMs --------------------------------------------------------------------------------

    async def answer(self, vm_id: str) -> Response | None:
        """What the member answers that has a VM; None if none says that it has it."""
        name = await self.fleet.find(vm_id)
        if name is None or name == self.fleet.name:
            return None
        body = json_body.incoming()
        content = body if body.announced or body.announced is None else b""
        return await self.ask(name, request.method, _target(), content)

    async def list(
        self, here: dict[str, Any], host: str | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """What each host lists for the present request, and who has not answered in time.

        :param here: what this one lists
        :param host: the name of one member, ``self`` for this one, None for all
        :raises InvalidRequest: if there is no such member
        """
        others = [name for name in self.fleet.members.hosts if name != self.fleet.name]
        if host in ("self", self.fleet.name):
            return [here], []
        if host is not None and host not in others:
            raise InvalidRequest(
                f"no member of the fleet is {host[:64]!r}{nearest(host, others)}", member="host"
            )
        pages: dict[str, dict[str, Any]] = {}
        asked = [host] if host else others

        async def ask(name: str) -> None:
            with suppress(MemberBroke, ValueError):
                pages[name] = await self._ask_json(name, _target(without="host"))

        with trio.move_on_after(_LIST_S):
            async with trio.open_nursery() as nursery:
                for name in asked:
                    nursery.start_soon(ask, name)
        missing = sorted(set(asked) - set(pages))
        return [*([] if host else [here]), *pages.values()], missing

    async def _ask_json(self, name: str, target: str) -> dict[str, Any]:
        """:raises ValueError: if it answers with something else"""
        facts = self.fleet.members.hosts[name]
        token = self._sign(current(), name, "GET", target)
        answer = await self._send(facts.address, "GET", target, {}, b"", token)
        content = await answer.aread()
        await answer.aclose()
        if answer.status_code != HTTPStatus.OK:
            raise ValueError(answer.status_code)
        return dict(json.loads(content))

    async def ask(self, name: str, method: str, target: str, content: Any = b"") -> Response:
        """The answer of another member to the present caller.

        :param target: path and query
        :raises MemberBroke:
        """
        facts = self.fleet.members.hosts[name]
        headers = {one: request.headers[one] for one in _ASKED if one in request.headers}
        token = self._sign(current(), name, method, target)
        return _passed_on(await self._send(facts.address, method, target, headers, content, token))

    def _sign(
        self, caller: Caller, to: str, method: str, target: str, run_id: str = "", epoch: int = 0
    ) -> str:
        return self.fleet.identity.sign(caller, to, method, target, run_id, epoch)

    async def _send(
        self,
        address: str,
        method: str,
        target: str,
        headers: dict[str, str],
        content: Any,
        token: str,
    ) -> httpx.Response:
        headers |= {"Authorization": f"Bearer {token}", "X-Request-Id": trace.present().id}
        asked = self._client.build_request(
            method, f"https://{address}{target}", headers=headers, content=content
        )
        try:
            return await self._client.send(asked, stream=True)
        except httpx.TransportError as error:
            raise MemberBroke(
                f"the member at {address}: {error or type(error).__name__}"
            ) from error


def _target(without: str = "") -> str:
    """The present request's path and query, without the values of one name."""
    raw: bytes = request.scope["raw_path"]
    path: str = raw.decode("latin-1").partition("?")[0]
    query: str = request.query_string.decode("latin-1")
    if without:
        query = urlencode([one for one in request.args.items(multi=True) if one[0] != without])
    return f"{path}?{query}" if query else path


def _kind(answer: httpx.Response) -> str:
    kind: str = answer.headers.get("content-type", "")
    return kind.partition(";")[0]


def _passed_on(answer: httpx.Response) -> Response:
    """The other member's answer as ours, piece by piece."""

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()

    headers = {one: answer.headers[one] for one in _ANSWERED if one in answer.headers}
    response = Response(pieces(), answer.status_code, headers)
    response.timeout = None
    return response


@asynccontextmanager
async def open_elsewhere(
    fleet: Fleet, service: Service, tls: ssl.SSLContext
) -> AsyncIterator[Elsewhere]:
    """:param tls: what this member shows to the others, and whom it believes"""
    async with httpx.AsyncClient(
        verify=tls,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
    ) as client:
        yield Elsewhere(fleet, service, client)
