"""``GET /events`` and ``GET /vms/<id>/events``: server-sent events.

Source: the WHATWG's HTML standard, "Server-sent events".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.api.requests import EventsRequest, event_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.runs.service import Service
    from supervisor.state.record import Event


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("events", __name__)

    @routes.get("/events")
    async def events() -> Any:
        return _stream(service, EventsRequest(after=_after()))

    @routes.get("/vms/<vm_id>/events")
    async def events_of_one(vm_id: str) -> Any:
        return _stream(service, EventsRequest(service.vms.get(vm_id).id, _after()))

    return routes


def _after() -> int | None:
    """A browser that reconnects sends the header; a person writes the parameter."""
    given = request.headers.get("Last-Event-ID") or request.args.get("after")
    return None if given is None else event_number(given)


def _stream(service: Service, wanted: EventsRequest) -> Response:
    return Response(
        _lines(service, wanted),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _lines(service: Service, wanted: EventsRequest) -> AsyncIterator[bytes]:
    async with service.follow(wanted.after, wanted.vm_id) as (old, news):
        # The head of the answer goes out with its first bytes.
        yield b": events\n\n"
        async for event in old:
            if wanted.concerns(event):
                yield _message(event)
        while True:
            text = b": keep-alive\n\n"
            with trio.move_on_after(service.config.timing.sse_keep_alive_s):
                try:
                    event = await news.receive()
                except trio.EndOfChannel:
                    return
                text = _message(event) if wanted.concerns(event) else b""
            if text:
                yield text


def _message(event: Event) -> bytes:
    data = json.dumps(event.to_dict())
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {data}\n\n".encode()
