"""What is said over a console's WebSocket, besides bytes. Source: RFC 6455."""

from __future__ import annotations

from contextlib import suppress

import trio
from quart import websocket

#: A subprotocol's name. Who offers any, as a browser does to show its token, needs one accepted.
PROTOCOL = "console.qmp-supervisor"
#: Whoever sends it types from now on.
WRITE = '{"write": true}'

#: Of RFC 6455, 7.4.1, and its registry: a normal end; one who may not; "try again later", to one
#: who is too slow, and if the VM's host is gone.
END, POLICY, AGAIN = 1000, 1008, 1013
#: The longest time for saying so to a client that may not read it.
_CLOSE_S = 2.0


async def accept() -> None:
    """Accept the present request."""
    offered = websocket.requested_subprotocols
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)


async def close(code: int, why: str) -> None:
    """Say why it is over, even if the present task is cancelled."""
    with trio.move_on_after(_CLOSE_S, shield=True), suppress(trio.BrokenResourceError):
        await websocket.close(code, why)
