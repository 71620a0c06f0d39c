"""``GET /vms/<id>/logs``: what its guest has printed on the console, and what QEMU has."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.api.callers import current, needs, standing, who
from supervisor.api.requests import line_count, one_of
from supervisor.caller import Right
from supervisor.errors import InvalidRequest, Unauthenticated, UnknownCertificate
from supervisor.vm import logs
from supervisor.vm.logs import Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager

    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Service
    from supervisor.vm.vm import Vm

_KNOWN = ("source", "tail", "follow")
_FOLLOW = {"1": True, "0": False}


def blueprint(service: Service, readers: AtOnce) -> Blueprint:
    routes = Blueprint("logs", __name__, url_prefix="/vms")

    @routes.get("/<vm_id>/logs")
    @needs(Right.USE)
    async def show_logs(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        for name in request.args:
            if name not in _KNOWN:
                raise InvalidRequest(f"{name[:64]!r} is not known; known are {', '.join(_KNOWN)}")
        source = one_of(Source, "source", request.args.get("source", Source.SERIAL.value))
        tail = request.args.get("tail")
        follow = _FOLLOW.get(request.args.get("follow", "0"))
        if follow is None:
            raise InvalidRequest("follow must be 1 or 0", member="follow")
        lines = None if tail is None else line_count(tail)
        readers.check(who())  # while there is still another answer
        pieces = _pieces(vm, source, lines, readers.one_more(who()), standing(), follow=follow)
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


async def _pieces(
    vm: Vm,
    source: Source,
    lines: int | None,
    one_reader: AbstractContextManager[None],
    check_again: Callable[[], None],
    *,
    follow: bool,
) -> AsyncGenerator[bytes, None]:
    """Ends if the caller may read no more."""
    with suppress(Unauthenticated, UnknownCertificate), one_reader:
        async with aclosing(logs.read(vm, source, lines, follow=follow)) as pieces:
            async for piece in pieces:
                check_again()
                if piece:
                    yield piece
                await trio.lowlevel.checkpoint()
