"""``GET /events`` and ``GET /vms/<id>/events``: as they happen, or a page of those on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request

from supervisor.api import event_stream
from supervisor.api.callers import current, needs, standing, who
from supervisor.api.event_stream import Part
from supervisor.api.http.elsewhere import Elsewhere
from supervisor.api.http.fleet_events import EventsOfAll
from supervisor.api.requests import EventsRequest
from supervisor.api.words import event_number, page_size
from supervisor.caller import Right
from supervisor.errors import InvalidRequest
from supervisor.fleet.positions import Position
from supervisor.state.record import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from quart.wrappers.response import ResponseBody

    from supervisor.api.fleet.member import Member
    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Service


def blueprint(service: Service, readers: AtOnce, member: Member | None) -> Blueprint:
    routes = Blueprint("events", __name__)
    of_fleet = EventsOfAll(member.events, Elsewhere(member.others)) if member else None

    @routes.get("/events")
    @needs(Right.SEE)
    async def events() -> Any:
        host = request.args.get("host")
        if of_fleet is None and host is not None:
            raise InvalidRequest("host needs a fleet, see MANAGER_FLEET", member="host")
        if member is None or of_fleet is None or of_fleet.elsewhere.is_here(host):
            return await _answer(service, EventsRequest(after=_number()), readers)
        if host is not None and member.asks:
            return await of_fleet.elsewhere.pass_to(host)
        given, limit = _after(), request.args.get("limit")
        wanted = None if given is None else Position.parse(given)
        if limit is not None:
            page = of_fleet.page if member.asks else of_fleet.own_page
            return await page(wanted or Position(0.0), page_size(limit))
        readers.check(who())
        if member.asks:
            return _streamed(of_fleet.stream(wanted, readers.one_more(who())))
        return _stream(service, EventsRequest(), of_fleet.events.part(wanted), readers)

    @routes.get("/vms/<vm_id>/events")
    @needs(Right.SEE)
    async def events_of_one(vm_id: str) -> Any:
        return await _answer(service, EventsRequest(vm_id, _number()), readers)

    return routes


def _after() -> str | None:
    """A browser that reconnects sends the header; a person writes the parameter."""
    return request.headers.get("Last-Event-ID") or request.args.get("after")


def _number() -> int | None:
    given = _after()
    return None if given is None else event_number(given)


async def _answer(service: Service, wanted: EventsRequest, readers: AtOnce) -> Any:
    limit = request.args.get("limit")
    if limit is not None:
        return await _page(service, wanted, limit)
    return _stream(service, wanted, Part(wanted.after), readers)


async def _page(service: Service, wanted: EventsRequest, limit: str) -> dict[str, Any]:
    """At most ``limit`` events on record, and where the next ones are, if there are more."""
    size, found, more = page_size(limit), list[Event](), False
    async for event in service.on_record(current(), wanted.after or 0, wanted.vm_id):
        if more := len(found) == size:
            break
        found.append(event)
    host = f"&host={request.args['host']}" if "host" in request.args else ""
    following = f"{request.path}?after={found[-1].sequence}&limit={size}{host}" if more else None
    return {"events": [event.to_dict() for event in found], "next": following}


def _stream(service: Service, wanted: EventsRequest, part: Part, readers: AtOnce) -> Response:
    readers.check(who())  # while there is still another answer than a stream
    following = service.follow(current(), part.after, wanted.vm_id)
    one_reader, keep_alive_s = readers.one_more(who()), service.config.timing.sse_keep_alive_s
    return _streamed(event_stream.lines(following, part, one_reader, keep_alive_s, standing()))


def _streamed(lines: AsyncIterable[bytes] | ResponseBody) -> Response:
    return Response(lines, content_type=event_stream.CONTENT_TYPE, headers=event_stream.HEADERS)
