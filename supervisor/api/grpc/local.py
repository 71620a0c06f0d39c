"""The gRPC API's unix socket. grpc does not say which user is at its other end; the kernel does.

So connections are accepted here, and each is copied to and from a second socket on which grpc
listens. The second connection has a name that the kernel chose and that nobody else can have, and
grpc calls its peer by that name.

Source: unix(7), SO_PEERCRED and autobind.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.api.auth.door import uid_of
from supervisor.errors import single

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.stdlib.get_logger()

#: Connections of one user at a time. Each takes three descriptors.
_MOST_OF_ONE = 64
_CHUNK = 65536


class LocalConnections:
    """:param inner: where grpc listens
    :ivar users: the user of each connection, by what grpc calls its peer
    """

    def __init__(self, inner: Path) -> None:
        self._inner = inner
        self.users: dict[str, int] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept and copy until cancelled. The listener is the caller's to close."""
        accepted = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
        async with accepted:
            await trio.serve_listeners(self._serve_one, [accepted])

    async def _serve_one(self, outer: trio.SocketStream) -> None:
        try:
            uid = uid_of(outer.socket)
            if Counter(self.users.values())[uid] >= _MOST_OF_ONE:
                log.warning("connection over the limit", uid=uid, limit=_MOST_OF_ONE)
                return
            with socket.socket(socket.AF_UNIX) as named, self._known(named, uid):
                named.setblocking(False)
                named.connect(str(self._inner))
                await _copy_both_ways(
                    outer, trio.SocketStream(trio.socket.from_stdlib_socket(named))
                )
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            log.debug("local connection failed", problem=repr(single(gone)))

    @contextmanager
    def _known(self, named: socket.socket, uid: int) -> Iterator[None]:
        named.bind("")
        peer = f"unix-abstract:{named.getsockname()[1:].decode()}"
        self.users[peer] = uid
        try:
            yield
        finally:
            del self.users[peer]  # before the name is free again


async def _copy_both_ways(one: trio.SocketStream, other: trio.SocketStream) -> None:
    """Until either side ends: HTTP/2 does not close one direction alone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_copy, one, other, nursery.cancel_scope)
        nursery.start_soon(_copy, other, one, nursery.cancel_scope)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    while data := await source.receive_some(_CHUNK):
        await sink.send_all(data)
    both.cancel()
