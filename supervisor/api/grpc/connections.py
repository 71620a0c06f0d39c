"""The gRPC API's connections: where each comes from, and how many there may be.

grpc does not say which user is at the other end of a unix socket, and it takes any number of
connections. So they are accepted here, and passed on: see `supervisor.inner`.

Source: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.api.auth.door import uid_of
from supervisor.api.rates import AtOnce, Warnings, Who
from supervisor.errors import TooOften, single
from supervisor.inner import name, pass_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.stdlib.get_logger()

#: Connections of one user at a time. Each takes three descriptors.
_MOST_OF_ONE = 64


@attrs.frozen
class Origin:
    """Where a connection comes from.

    :param address: without a port; ``unix`` for a local socket
    :param uid: of the user, if it is a local socket
    """

    address: str
    uid: int | None = None


class Connections:
    """:param per_address: how many may come from each address
    :ivar origins: of each connection, by what grpc calls its peer
    """

    def __init__(self, per_address: AtOnce) -> None:
        self.origins: dict[str, Origin] = {}
        self._per_address = per_address
        self._per_user = AtOnce(_MOST_OF_ONE, "connections", "nothing")
        self._warnings = Warnings(trio.current_time)

    async def serve(self, listener: socket.socket, inner: Path, nursery: trio.Nursery) -> None:
        """Accept until cancelled. The listener is the caller's to close.

        :param inner: where grpc listens for what comes this way
        :param nursery: the connections', which outlive this
        """
        accepted = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
        async with accepted:
            serve_one = partial(self._serve_one, inner=inner)
            await trio.serve_listeners(serve_one, [accepted], handler_nursery=nursery)

    async def _serve_one(self, outer: trio.SocketStream, inner: Path) -> None:
        try:
            with socket.socket(socket.AF_UNIX) as named, self._admitted(named, outer):
                await pass_on(outer, named, inner)
        except* TooOften as refused:
            self._warnings.tell("gRPC connection refused", problem=str(single(refused)))
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            log.debug("gRPC connection failed", problem=repr(single(gone)))

    @contextmanager
    def _admitted(self, named: socket.socket, outer: trio.SocketStream) -> Iterator[None]:
        """:raises TooOften: if there are too many connections already"""
        with ExitStack() as stack:
            origin = _origin(outer.socket)
            if origin.uid is None:
                stack.enter_context(self._per_address.one_more(Who.at(origin.address)))
                self._check_all()
            elif origin.uid not in (0, os.geteuid()):  # who can end the supervisor anyway
                stack.enter_context(self._per_user.one_more(Who(f"uid:{origin.uid}", known=True)))
            peer = name(named)
            self.origins[peer] = origin
            try:
                yield
            finally:
                del self.origins[peer]  # before the name is free again

    def _check_all(self) -> None:
        """Strangers leave descriptors to VMs, agents, files and local users."""
        remote = sum(one.uid is None for one in self.origins.values())
        if remote >= _most_remote():
            raise TooOften(
                f"there are {remote} gRPC connections already",
                advice="raise the limit of open files",
                retry_after_s=1,
            )


def _origin(outer: trio.socket.SocketType) -> Origin:
    if outer.family == socket.AF_UNIX:
        return Origin("unix", uid_of(outer))
    return Origin(str(outer.getpeername()[0]))


def _most_remote() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 16
