"""Meeting an agent whose guest comes up late, or is slow because its host is busy."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.agent import client
from supervisor.agent.reference.access import Access
from supervisor.agent.reference.rpc import Server
from supervisor.agent.reference.service import Agent, methods
from supervisor.bridge import open_loop
from supervisor.config import AgentConfig, Timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


#: So short that only a patient caller meets a guest that takes `SLOW_S`.
ATTEMPT_S, SLOW_S = 0.05, 0.5


@contextmanager
def agent_port() -> Iterator[int]:
    server = Server(methods(Agent(60)), Access(), "127.0.0.1", 0)
    yield server.port
    server.stop()


@attrs.define
class Network:
    """QEMU's user network: it takes every connection, and what comes of it is the guest's affair.

    :ivar hang: so many connections are never answered
    :ivar slow_s: the others are answered after so long
    """

    guest_port: int
    hang: int = 0
    slow_s: float = 0.0
    taken: int = 0
    open: int = 0
    most_open: int = 0
    port: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """``started`` once ``port`` is known."""
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                partial(trio.serve_tcp, self._lead, 0, host="127.0.0.1")
            )
            self.port = listener.socket.getsockname()[1]
            task_status.started()
            await trio.sleep_forever()

    async def _lead(self, host: trio.SocketStream) -> None:
        self.taken += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await self._lead_to_guest(host)
        finally:
            self.open -= 1

    async def _lead_to_guest(self, host: trio.SocketStream) -> None:
        if self.taken <= self.hang:
            async for _ in host:
                pass
            return
        await trio.sleep(self.slow_s)
        async with await trio.open_tcp_stream("127.0.0.1", self.guest_port) as guest:
            with trio.move_on_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, host, guest)
                    await _copy(guest, host)
                    nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except trio.BrokenResourceError:
        pass  # it was given up


@asynccontextmanager
async def network(**behaviour: float) -> AsyncIterator[Network]:
    with agent_port() as port:
        async with open_loop(), trio.open_nursery() as nursery:
            one = Network(port, **behaviour)  # type: ignore[arg-type]
            await nursery.start(one.serve)
            yield one
            nursery.cancel_scope.cancel()


async def meet(one: Network, attempt_share: float = 1 / 20) -> str:
    timing = Timing(agent_attempt_s=ATTEMPT_S, agent_attempt_share=attempt_share)
    with trio.fail_after(60):
        target = f"127.0.0.1:{one.port}"
        async with client.connect("vm", target, AgentConfig(), timing, None) as guest_agent:
            await guest_agent.wait_ready()
            return await guest_agent.run(b'{"id": "1"}', open_to_all=False)


async def test_connections_that_hang_are_given_up() -> None:
    async with network(hang=12) as one:
        assert '"id":"1"' in await meet(one)
        assert one.taken > 12
        # Else all twelve would be open, and the one that is answered. How many are there at a time
        # depends on how busy this machine is.
        assert one.most_open < 12, "what was given up stays connected"


async def test_slow_guest_is_given_the_time_it_needs() -> None:
    """If each attempt were as short as the first, none would ever succeed."""
    async with network(slow_s=SLOW_S) as one:
        assert '"id":"1"' in await meet(one, attempt_share=1 / 2)
        assert one.taken > 1
