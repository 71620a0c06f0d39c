"""When a connection of HTTP is closed for want of a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from supervisor.api.http.connections import Connection

IDLE_S = 75.0


async def test_connection_is_closed_once_it_has_had_no_request_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One who asks every fifty milliseconds has no request under way whenever it is looked at."""
    protocol = SimpleNamespace(stream=None, keep_alive_requests=0)
    ours, _ = trio.testing.memory_stream_pair()
    connection: Any = SimpleNamespace(
        config=SimpleNamespace(keep_alive_timeout=IDLE_S),
        protocol=SimpleNamespace(protocol=protocol),
        stream=ours,
    )
    last = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection._close_when_idle, cast("Connection", connection))
        for _ in range(10):
            await trio.sleep(0.7 * IDLE_S)
            protocol.keep_alive_requests += 1
            last = trio.current_time()
    assert IDLE_S <= trio.current_time() - last <= 2 * IDLE_S
