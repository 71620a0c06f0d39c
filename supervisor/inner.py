"""Connections that are accepted here, and passed on to a socket on which grpc listens.

grpc calls the peer of each by the name of the second connection, which the kernel chose and nobody
else in this network namespace can have; and nobody else may connect to that socket. So whoever
accepts a connection knows who calls.

Source: unix(7), autobind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from supervisor.waiting import Budget

_CHUNK, _PACED = 65536, 16384


def name(named: socket.socket) -> str:
    """Give a unix socket its name, and say what grpc will call it."""
    named.bind("")
    return f"unix-abstract:{named.getsockname()[1:].decode()}"


async def pass_on(
    outer: trio.SocketStream, named: socket.socket, inner: Path, pace: Budget | None = None
) -> None:
    """Copy a connection to grpc's, both ways, until either side ends: HTTP/2 does not close one
    direction alone.

    :param named: has its `name`, and is the caller's to close
    :param inner: where grpc listens
    :param pace: of the parts that come from outside
    :raises OSError: or what trio's streams raise
    """
    named.setblocking(False)
    named.connect(str(inner))
    other = trio.SocketStream(trio.socket.from_stdlib_socket(named))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_copy, outer, other, nursery.cancel_scope, pace)
        nursery.start_soon(_copy, other, outer, nursery.cancel_scope)


async def _copy(
    source: trio.SocketStream,
    sink: trio.SocketStream,
    both: trio.CancelScope,
    pace: Budget | None = None,
) -> None:
    while data := await source.receive_some(_PACED if pace else _CHUNK):
        if pace:
            await pace.wait()
        await sink.send_all(data)
    both.cancel()
