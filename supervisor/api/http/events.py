"""``GET /events`` and ``GET /vms/<id>/events``: server-sent events.

Source: the WHATWG's HTML standard, "Server-sent events".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.runs.service import Service
    from supervisor.state.record import Event

#: A line that says nothing, so often: proxies close what is silent, and a reader that has gone
#: is noticed.


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("events", __name__)

    @routes.get("/events")
    async def events() -> Any:
        return _stream(service, None)

    @routes.get("/vms/<vm_id>/events")
    async def events_of_one(vm_id: str) -> Any:
        return _stream(service, service.vms.get(vm_id).id)

    return routes


def _stream(service: Service, vm_id: str | None) -> Response:
    return Response(
        _lines(service, vm_id, _after()),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _after() -> int | None:
    """After which event to begin: by the header of a browser that reconnects, or by hand."""
    given = request.headers.get("Last-Event-ID") or request.args.get("after")
    if given is None:
        return None
    if not given.isdecimal() or len(given) > 18:
        raise InvalidRequest("Last-Event-ID, or after, must be an event's number")
    return int(given)


async def _lines(service: Service, vm_id: str | None, after: int | None) -> AsyncIterator[bytes]:
    async with service.follow(after, vm_id) as (old, news):
        # The head of the answer goes out with its first bytes.
        yield b": events\n\n"
        for event in old:
            if _concerns(event, vm_id):
                yield _message(event)
        while True:
            text = b": keep-alive\n\n"
            with trio.move_on_after(service.config.timing.sse_keep_alive_s):
                try:
                    event = await news.receive()
                except trio.EndOfChannel:
                    return
                text = _message(event) if _concerns(event, vm_id) else b""
            if text:
                yield text


def _concerns(event: Event, vm_id: str | None) -> bool:
    return vm_id in (None, event.vm_id)


def _message(event: Event) -> bytes:
    data = json.dumps(event.to_dict())
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {data}\n\n".encode()
