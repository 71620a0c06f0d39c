"""Connections that are accepted here, and passed on to a socket on which grpc listens.

grpc calls the peer of each by the name of the second connection, which the kernel chose and nobody
else can have. So whoever accepts a connection knows who calls.

Source: unix(7), autobind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import socket
    from pathlib import Path

_CHUNK = 65536


def name(named: socket.socket) -> str:
    """Give a unix socket its name, and say what grpc will call it."""
    named.bind("")
    return f"unix-abstract:{named.getsockname()[1:].decode()}"


async def pass_on(outer: trio.SocketStream, named: socket.socket, inner: Path) -> None:
    """Copy a connection to grpc's, both ways, until either side ends: HTTP/2 does not close one
    direction alone.

    :param named: has its `name`, and is the caller's to close
    :param inner: where grpc listens
    :raises OSError: or what trio's streams raise
    """
    named.setblocking(False)
    named.connect(str(inner))
    other = trio.SocketStream(trio.socket.from_stdlib_socket(named))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_copy, outer, other, nursery.cancel_scope)
        nursery.start_soon(_copy, other, outer, nursery.cancel_scope)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    while data := await source.receive_some(_CHUNK):
        await sink.send_all(data)
    both.cancel()
