"""What other members of the fleet answer, asked in the name of the present caller."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import trio
from quart import Response, request

from supervisor.api import trace
from supervisor.api.callers import current, standing
from supervisor.api.fleet.asked import Asked
from supervisor.api.http import json_body
from supervisor.api.http.at_end import close_at_end
from supervisor.errors import (
    FleetError,
    InvalidRequest,
    MemberBroke,
    Unauthenticated,
    UnknownCertificate,
    nearest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    import httpx

    from supervisor.api.fleet.others import Others

#: The longest time that a list waits for a member.
_LIST_S = 5.0
#: What is raised if an answer is not what it should be.
_NO_LIST = (
    FleetError,
    InvalidRequest,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)
#: Headers of one connection alone: RFC 9110, section 7.6.1. And those that each member says itself.
_OF_CONNECTION = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
    *("upgrade", "date", "server", "x-request-id"),
}
#: Of a request besides: who asks, and from which page, this member has looked at.
_LOOKED_AT = {
    *("authorization", "cookie", "host", "origin", "referer", "traceparent", "tracestate"),
    *("accept-encoding", "user-agent", "expect"),
}
#: Of an answer, those that a member gives. A browser would do what others say at this member's
#: origin, such as keep a cookie, or let another site's page read.
_OF_ANSWER = {
    *("content-type", "content-length", "content-disposition", "content-range", "accept-ranges"),
    *("etag", "repr-digest", "cache-control", "x-accel-buffering", "allow", "www-authenticate"),
    *("location", "preference-applied", "retry-after", "server-timing"),
}


class Elsewhere:
    """This member as a client of the others."""

    def __init__(self, others: Others) -> None:
        self.fleet = others.fleet
        self._others = others

    async def answer(self, vm_id: str) -> Response | None:
        """What the member answers that has a VM; None if none says that it has it."""
        name = await self.find(vm_id)
        return None if name is None else await self.pass_to(name)

    async def find(self, vm_id: str) -> str | None:
        """Another member that has a VM; None if none says that it has it."""
        name = await self.fleet.find(vm_id)
        return None if name == self.fleet.name else name

    def is_here(self, host: str | None) -> bool:
        """Whether a request that names a host is for this one alone.

        :param host: the name of one member, ``self`` for this one, None for all
        :raises InvalidRequest: if there is no such member
        :raises MemberBroke: if it is lost
        """
        if host is None or host in ("self", self.fleet.name):
            return host is not None
        if host in self.fleet.members.lost:
            raise MemberBroke(f"the member {host} is lost")
        if host not in self.others:
            raise InvalidRequest(
                f"no member of the fleet is {host[:64]!r}{nearest(host, self.others)}",
                member="host",
            )
        return False

    @property
    def others(self) -> list[str]:
        """The names of the other members."""
        return [name for name in self.fleet.members.hosts if name != self.fleet.name]

    async def pass_to(self, name: str) -> Response:
        """What a member answers to the present request."""
        body = json_body.incoming()
        body.allow(sys.maxsize)  # its owner has the limits, and no piece is kept here
        content = body if body.announced or body.announced is None else b""
        return await self.ask(name, request.method, _target(), content)

    async def list(
        self,
        here: dict[str, Any],
        host: str | None,
        check: Callable[[dict[str, Any]], object],
        target: str = "",
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """What each host lists for the present request, and who has not answered in time.

        :param here: what this one lists
        :param host: as of `is_here`
        :param check: looks at all of another one's answer that is used; if it raises, that was none
        :param target: what the others are asked, if it is not the same
        :returns: the others' with ``host``, its name
        :raises InvalidRequest: if there is no such member
        """
        if self.is_here(host):
            return [here], []
        pages: dict[str, dict[str, Any]] = {}
        asked = [host] if host else self.others

        async def ask(name: str) -> None:
            with suppress(*_NO_LIST):
                page = await self._ask_json(name, target or _target(without="host"))
                page["host"] = name
                check(page)
                pages[name] = page

        with trio.move_on_after(_LIST_S):
            async with trio.open_nursery() as nursery:
                for name in asked:
                    nursery.start_soon(ask, name)
        lost = () if host else self.fleet.members.lost
        missing = sorted({*asked, *lost} - set(pages))
        return [*([] if host else [here]), *pages.values()], missing

    async def _ask_json(self, name: str, target: str) -> dict[str, Any]:
        """:raises ValueError: if it answers with something else"""
        asked = Asked(current(), "GET", target, request_id=trace.present().id)
        return dict(json.loads(await self._others.read(name, await self._others.ask(name, asked))))

    async def ask(self, name: str, method: str, target: str, content: Any = b"") -> Response:
        """The answer of another member to the present caller.

        :param target: path and query
        :raises MemberBroke:
        """
        headers = _kept(request.headers.items(), _OF_CONNECTION | _LOOKED_AT)
        asked = Asked(current(), method, target, headers, content, trace.present().id)
        return passed_on(await self._others.ask(name, asked))


def _target(without: str = "") -> str:
    """The present request's path and query, without the values of one name."""
    raw: bytes = request.scope["raw_path"]
    path: str = raw.decode("latin-1").partition("?")[0]
    if not path.startswith("/"):  # RFC 9112, absolute-form
        path = urlsplit(path).path
    query: str = request.query_string.decode("latin-1")
    if without:
        query = urlencode([one for one in request.args.items(multi=True) if one[0] != without])
    return f"{path}?{query}" if query else path


def _kept(headers: Iterable[tuple[str, str]], dropped: set[str]) -> dict[str, str]:
    """Those that are for the other end; several of one name as one line."""
    found: dict[str, str] = {}
    for given, value in headers:
        name = given.lower()
        if name not in dropped and not name.startswith("sec-"):
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def passed_on(answer: httpx.Response, content: bytes | None = None) -> Response:
    """The other member's answer as ours; piece by piece, unless it has been read.

    One without an end does end if the caller may read no more: the other member cannot know.
    """
    given = _kept(answer.headers.multi_items(), _OF_CONNECTION)
    headers = {name: value for name, value in given.items() if name in _OF_ANSWER}
    if content is not None:
        return Response(content, answer.status_code, headers)
    close_at_end(answer.aclose)
    check_again = standing() if "content-length" not in answer.headers else lambda: None

    async def pieces() -> AsyncIterator[bytes]:
        with suppress(Unauthenticated, UnknownCertificate):
            async for piece in answer.aiter_raw():
                check_again()
                yield piece

    response = Response(pieces(), answer.status_code, headers)
    response.timeout = None
    return response
