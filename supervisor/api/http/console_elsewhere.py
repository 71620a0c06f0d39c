"""The console of a VM on another host: a WebSocket here, and one to the member that has the VM."""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio
from quart import websocket

from supervisor.api import trace
from supervisor.api.callers import current, standing
from supervisor.api.fleet.asked import Asked
from supervisor.api.http.at_end import close_at_end
from supervisor.api.http.console_protocol import AGAIN, POLICY, WRITE, accept, close
from supervisor.api.http.elsewhere import passed_on
from supervisor.api.http.member_socket import MemberSocket, opened, upgrade
from supervisor.errors import MemberBroke, Unauthenticated, UnknownCertificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart import Response

    from supervisor.api.fleet.others import Others


async def talk(others: Others, name: str, vm_id: str, silence_s: float) -> Response | None:
    """Pass on what both sides say until one is over.

    :param name: the member that has the VM
    :param silence_s: a member that says nothing for so long is gone
    :returns: what the member answers if it refuses
    :raises MemberBroke:
    """
    check_again, target = standing(), f"/vms/{quote(vm_id, safe='')}/console"
    request_id = trace.present().id
    asked = Asked(current(), "GET", target, upgrade(), request_id=request_id)
    answer = await others.begin(name, asked)
    if answer.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        return passed_on(answer)
    close_at_end(answer.aclose)
    async with opened(name, answer.extensions["network_stream"], silence_s) as socket:
        await accept()
        await close(*await _pass_on(socket, check_again))
    return None


async def _pass_on(socket: MemberSocket, check_again: Callable[[], None]) -> tuple[int, str]:
    """Code and reason of the end."""
    ends: list[tuple[int, str]] = []

    async def upwards() -> None:
        while True:
            message = await websocket.receive()
            check_again()
            if message == WRITE:
                trace.present().changed = True
            await socket.send(message)

    async def downwards() -> None:
        async with aclosing(socket.messages()) as messages:
            async for message in messages:
                check_again()
                await websocket.send(message)

    async def until_over(one_way: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await one_way()
            ends.append(socket.closed or (AGAIN, ""))
        except (Unauthenticated, UnknownCertificate):
            ends.append((POLICY, "the caller may read no more"))
        except MemberBroke as error:
            ends.append((AGAIN, str(error)))
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_over, upwards, nursery.cancel_scope)
        nursery.start_soon(until_over, downwards, nursery.cancel_scope)
    return ends[0]
