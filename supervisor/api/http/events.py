"""``GET /events`` and ``GET /vms/<id>/events``: server-sent events, or a page of those on record.

Source: the WHATWG's HTML standard, "Server-sent events".
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.api.callers import current, needs, standing, who
from supervisor.api.requests import EventsRequest, event_number, page_size
from supervisor.caller import Right
from supervisor.errors import Unauthenticated, UnknownCertificate
from supervisor.state.record import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Following, Service


def blueprint(service: Service, readers: AtOnce) -> Blueprint:
    routes = Blueprint("events", __name__)

    @routes.get("/events")
    @needs(Right.SEE)
    async def events() -> Any:
        return await _answer(service, EventsRequest(after=_after()), readers)

    @routes.get("/vms/<vm_id>/events")
    @needs(Right.SEE)
    async def events_of_one(vm_id: str) -> Any:
        return await _answer(service, EventsRequest(vm_id, _after()), readers)

    return routes


def _after() -> int | None:
    """A browser that reconnects sends the header; a person writes the parameter."""
    given = request.headers.get("Last-Event-ID") or request.args.get("after")
    return None if given is None else event_number(given)


async def _answer(service: Service, wanted: EventsRequest, readers: AtOnce) -> Any:
    limit = request.args.get("limit")
    if limit is not None:
        return await _page(service, wanted, limit)
    return _stream(service, wanted, readers)


async def _page(service: Service, wanted: EventsRequest, limit: str) -> dict[str, Any]:
    """At most ``limit`` events on record, and where the next ones are, if there are more."""
    size, found, more = page_size(limit), list[Event](), False
    async for event in service.on_record(current(), wanted.after or 0, wanted.vm_id):
        if more := len(found) == size:
            break
        found.append(event)
    following = f"{request.path}?after={found[-1].sequence}&limit={size}" if more else None
    return {"events": [event.to_dict() for event in found], "next": following}


def _stream(service: Service, wanted: EventsRequest, readers: AtOnce) -> Response:
    readers.check(who())  # while there is still another answer than a stream
    following = service.follow(current(), wanted.after, wanted.vm_id)
    one_reader, keep_alive_s = readers.one_more(who()), service.config.timing.sse_keep_alive_s
    return Response(
        _lines(following, wanted.after, one_reader, keep_alive_s, standing()),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _lines(
    following: Following,
    after: int | None,
    one_reader: AbstractContextManager[None],
    keep_alive_s: float,
    check_again: Callable[[], None],
) -> AsyncIterator[bytes]:
    """Ends if the caller may read no more; one who comes again is told why."""
    with suppress(Unauthenticated, UnknownCertificate), one_reader:
        async with following as (old, news):
            # The head of the answer goes out with its first bytes.
            yield b": events\n\n"
            if after is None:
                # So that whoever has had no event yet can go on from here, too.
                yield f"id: {old.last}\n\n".encode()
            async for event in old:
                check_again()
                yield _message(event)
            while True:
                text = b": keep-alive\n\n"
                with trio.move_on_after(keep_alive_s):
                    try:
                        text = _message(await news.receive())
                    except trio.EndOfChannel:
                        return
                check_again()
                yield text


def _message(event: Event) -> bytes:
    data = json.dumps(event.to_dict())
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {data}\n\n".encode()
