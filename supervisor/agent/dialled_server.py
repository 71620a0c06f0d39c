"""Where agents come out that dial the supervisor.

What an agent dials ends at a socket in its VM's directory: see `supervisor.qemu.network`. So it is
the socket that says whose agent it is, and not what the agent says. All are passed on to one server
of grpc's, which is started with the first.

grpc.aio belongs to asyncio. The functions here are trio-flavoured, but for those that say so.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog
import trio

from supervisor.bridge import aio_as_trio, trio_as_aio
from supervisor.inner import name, pass_on
from supervisor.waiting import Budget, move_on_when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from supervisor.agent.dialled import DialledAgent

    Context = grpc.aio.ServicerContext[Any, Any]
    #: Agents, and what their connections are copied in, by what grpc calls their peers.
    _ByPeer = dict[str, tuple[DialledAgent, trio.CancelScope]]

log = structlog.stdlib.get_logger()

#: An agent has two connections. So many are taken at a time; and so many at once, after that one in
#: each interval. One that was cut keeps its place for a while.
_MOST_CONNECTIONS = 8
_CONNECTIONS, _CONNECTION_INTERVAL_S = 16, 0.5
_CUT_S = 60.0
#: Streams on one connection. Of each kind an agent has one.
_CONCURRENT = 4
#: Parts of what a guest sends that are passed on at once, and after that in each interval.
_PARTS, _PART_INTERVAL_S = 256, 0.01
#: Of all that an agent sends, a log line is the longest that has a use.
_LARGEST_MESSAGE = 64 * 1024
_PROCESS = "/cvms.Service/Process"
_STOP_S = 2.0


class Dialled:
    """Where all agents come out that dial.

    :param tmp: where only the supervisor's user can enter
    """

    def __init__(self, tmp: Path) -> None:
        self._inner = tmp / "agents-inner.sock"
        self._starting = trio.Lock()
        self._server: grpc.aio.Server | None = None
        self._by_peer: _ByPeer = {}
        self._by_vm: dict[str, DialledAgent] = {}

    def of(self, vm_id: str) -> DialledAgent | None:
        """A VM's agent; None if no QEMU of that VM runs, or its agent does not dial."""
        return self._by_vm.get(vm_id)

    @asynccontextmanager
    async def expect(
        self, vm_id: str, listener: socket.socket, agent: DialledAgent
    ) -> AsyncIterator[None]:
        """Have what connects to a socket be this agent. Its streams end with the block.

        :param listener: closed with the block
        """
        await self._start()
        self._by_vm[vm_id] = agent
        try:
            async with move_on_when(lambda: self._accept(listener, agent)):
                yield
        finally:
            del self._by_vm[vm_id]
            with trio.move_on_after(_STOP_S, shield=True):
                await agent.finish()

    async def _accept(self, listener: socket.socket, agent: DialledAgent) -> None:
        """Not `trio.serve_listeners`, which would accept as many as a guest likes to make."""
        room = trio.Semaphore(_MOST_CONNECTIONS)
        budget = Budget(_CONNECTIONS, _CONNECTION_INTERVAL_S)
        accepted = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        async with accepted, trio.open_nursery() as connections:
            while True:
                await room.acquire()
                await budget.wait()
                try:
                    stream = await accepted.accept()
                except OSError as error:  # no descriptor is left now
                    room.release()
                    log.warning("no connection of an agent is taken", problem=str(error))
                else:
                    connections.start_soon(self._take, stream, agent, room)

    async def _take(
        self, outer: trio.SocketStream, agent: DialledAgent, room: trio.Semaphore
    ) -> None:
        try:
            async with outer:
                await self._pass_on(outer, agent)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as gone:
            log.debug("an agent's connection failed", problem=repr(gone))
        finally:
            room.release()

    async def _pass_on(self, outer: trio.SocketStream, agent: DialledAgent) -> None:
        with socket.socket(socket.AF_UNIX) as named, trio.CancelScope() as scope:
            peer = name(named)
            self._by_peer[peer] = agent, scope
            try:
                await pass_on(outer, named, self._inner, Budget(_PARTS, _PART_INTERVAL_S))
            finally:
                del self._by_peer[peer]  # before the name is free again
        if scope.cancelled_caught:
            log.warning("an agent opens too many streams: its connection is cut")
            await outer.aclose()
            await trio.sleep(_CUT_S)

    async def _start(self) -> None:
        with trio.CancelScope(shield=True):  # one that is half started would be nobody's
            async with self._starting:
                if self._server is None:
                    self._server = await aio_as_trio(self._serve)()

    async def _serve(self) -> grpc.aio.Server:
        """asyncio-flavoured."""
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.max_concurrent_streams", _CONCURRENT),
            )
        )
        server.add_insecure_port(f"unix:{self._inner}")
        server.add_generic_rpc_handlers((_Methods(self._by_peer),))
        await server.start()
        return server

    async def close(self) -> None:
        """Stop the server, if there is one."""
        if self._server:
            with trio.move_on_after(_STOP_S, shield=True):
                await aio_as_trio(self._server.stop)(None)


class _Methods(grpc.GenericRpcHandler):
    """Every method, known or not: each call of one is as much work as a stream is."""

    def __init__(self, by_peer: _ByPeer) -> None:
        self._by_peer = by_peer

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(partial(self._serve, details.method))

    async def _serve(self, method: str, _: object, context: Context) -> None:
        """asyncio-flavoured. The requests are read by the context, and are bytes."""
        agent, connection = self._by_peer.get(context.peer(), (None, None))
        if agent is None or connection is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this is no VM's way here")
        elif not agent.admits():
            # To refuse streams one by one would be as much work as to serve them.
            connection.cancel()
        elif method != _PROCESS:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"there is only {_PROCESS} here")
        else:
            await trio_as_aio(agent.serve)(context)
