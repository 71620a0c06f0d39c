"""What other members of the fleet answer, asked in the name of the present caller."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import httpx
import trio
from quart import Response, request

from supervisor.api import trace
from supervisor.api.callers import current
from supervisor.api.http import json_body
from supervisor.errors import InvalidRequest, MemberBroke, nearest

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from supervisor.caller import Caller
    from supervisor.fleet.fleet import Fleet

_CONNECT_S = 3.0
#: The longest time that a list waits for a member.
_LIST_S = 5.0
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
class Asked:
    """One request to another member.

    :param caller: in whose name
    :param target: path and query
    :param content: the body, or what it is read from
    :param claim: of the run that it is about: its id, and the epoch
    """

    caller: Caller
    method: str
    target: str
    headers: dict[str, str] = attrs.field(factory=dict)
    content: Any = b""
    request_id: str = ""
    claim: tuple[str, int] = ("", 0)


class Elsewhere:
    """This member as a client of the others."""

    def __init__(self, fleet: Fleet, client: httpx.AsyncClient) -> None:
        self.fleet = fleet
        self._client = client

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
        asked = Asked(current(), "GET", target, request_id=trace.present().id)
        answer = await self.send(name, facts.address, asked)
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
        asked = Asked(current(), method, target, headers, content, trace.present().id)
        return passed_on(await self.send(name, facts.address, asked))

    async def send(self, name: str, address: str, asked: Asked) -> httpx.Response:
        """What a member answers, as soon as its headers are here. Whoever asks closes it.

        :raises MemberBroke:
        """
        identity, target = self.fleet.identity, asked.target
        token = identity.sign(asked.caller, name, asked.method, target, *asked.claim)
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": asked.request_id}
        request = self._client.build_request(
            asked.method,
            f"https://{address}{target}",
            headers=asked.headers | headers,
            content=asked.content,
        )
        try:
            answer = await self._client.send(request, stream=True)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            problem = str(error) or type(error).__name__
            raise MemberBroke(f"the member {name} at {address}: {problem}") from error
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            # Our callers are known here already: it does not know us, as one that has just started.
            await answer.aclose()
            raise MemberBroke(f"the member {name} at {address} takes this one for none")
        return answer


def _target(without: str = "") -> str:
    """The present request's path and query, without the values of one name."""
    raw: bytes = request.scope["raw_path"]
    path: str = raw.decode("latin-1").partition("?")[0]
    query: str = request.query_string.decode("latin-1")
    if without:
        query = urlencode([one for one in request.args.items(multi=True) if one[0] != without])
    return f"{path}?{query}" if query else path


def answered_headers(answer: httpx.Response) -> dict[str, str]:
    """Those that the caller gets."""
    return {one: answer.headers[one] for one in _ANSWERED if one in answer.headers}


def passed_on(answer: httpx.Response) -> Response:
    """The other member's answer as ours, piece by piece."""

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()

    response = Response(pieces(), answer.status_code, answered_headers(answer))
    response.timeout = None
    return response


@asynccontextmanager
async def open_elsewhere(fleet: Fleet, tls: ssl.SSLContext) -> AsyncIterator[Elsewhere]:
    """:param tls: what this member shows to the others, and whom it believes"""
    async with httpx.AsyncClient(
        verify=tls,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
    ) as client:
        yield Elsewhere(fleet, client)
