"""``GET /vms/<id>/logs``: what its guest has printed on the console, its algorithms, and QEMU."""

from __future__ import annotations

from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.api.callers import current, needs, standing, who
from supervisor.api.words import line_count, one_of, point_in_time
from supervisor.caller import Right
from supervisor.errors import InvalidRequest, Unauthenticated, UnknownCertificate
from supervisor.parties import RESULT
from supervisor.vm import logs
from supervisor.vm.logs import Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager

    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Service

_KNOWN = ("source", "tail", "since", "follow")
_FOLLOW = {"1": True, "0": False}


def blueprint(service: Service, readers: AtOnce) -> Blueprint:
    routes = Blueprint("logs", __name__, url_prefix="/vms")

    @routes.get("/<vm_id>/logs")
    @needs(Right.USE)
    async def show_logs(vm_id: str) -> Any:
        source = one_of(Source, "source", request.args.get("source", Source.SERIAL.value))
        if source is Source.ALGORITHM:  # it may print what it computes
            vm = service.vms.get_for(RESULT, vm_id, current())
        else:
            vm = service.vms.get(vm_id, current())
        for name in request.args:
            if name not in _KNOWN:
                raise InvalidRequest(f"{name[:64]!r} is not known; known are {', '.join(_KNOWN)}")
        tail, since = request.args.get("tail"), request.args.get("since")
        follow = _FOLLOW.get(request.args.get("follow", "0"))
        if follow is None:
            raise InvalidRequest("follow must be 1 or 0", member="follow")
        read = partial(
            logs.read,
            vm,
            source,
            None if tail is None else line_count(tail),
            None if since is None else _seconds(since),
            follow=follow,
        )
        readers.check(who())  # while there is still another answer
        pieces = _pieces(read, readers.one_more(who()), standing())
        return Response(
            pieces,
            content_type="text/plain; charset=utf-8",
            headers={
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                # Else a browser might run what a guest wrote.
                "X-Content-Type-Options": "nosniff",
            },
        )

    return routes


def _seconds(since: str) -> float:
    return point_in_time("since", since, datetime.now(UTC)).timestamp()


async def _pieces(
    read: Callable[[], AsyncGenerator[bytes, None]],
    one_reader: AbstractContextManager[None],
    check_again: Callable[[], None],
) -> AsyncGenerator[bytes, None]:
    """Ends if the caller may read no more."""
    with suppress(Unauthenticated, UnknownCertificate), one_reader:
        async with aclosing(read()) as pieces:
            async for piece in pieces:
                check_again()
                if piece:
                    yield piece
                await trio.lowlevel.checkpoint()
