"""Which hosts a member holds for lost, and for how long."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from supervisor.errors import HostLost
from supervisor.fleet.facts import HostFacts
from supervisor.fleet.members import Members
from tests.support.memory_engine import Broker, MemoryEngine

if TYPE_CHECKING:
    from trio.testing import MockClock

_DAY_S = 24 * 3600.0


async def test_a_lost_host_is_remembered_for_a_day(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)

        def member(name: str) -> Members:
            look = partial(HostFacts, name=name, address=name, seat=name)
            return Members(MemoryEngine(broker), name, look, trio.current_time)

        a, b = member("a"), member("b")
        nursery.start_soon(a.watch)
        scopes = []
        for _ in range(2):
            scopes.append(trio.CancelScope())

            async def live(scope: trio.CancelScope = scopes[-1]) -> None:
                with scope:
                    await b.keep_lease()

            nursery.start_soon(live)
            await a.wait_known("b")
            assert a.lost == {}
            scopes[-1].cancel()
            await a.wait_lost("b")
            assert a.lost["b"] < 1
            await trio.sleep(_DAY_S - 1)
            assert a.lost["b"] == pytest.approx(_DAY_S, abs=1.5)
        await trio.sleep(2)
        assert a.lost == {}
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as living:
                living.start_soon(b.keep_lease)
                await a.wait_known("b")
                await b.leave()
                scope.cancel()
        await a.wait_lost("b")
        assert a.lost == {}
        nursery.cancel_scope.cancel()


def test_the_error_names_the_host() -> None:
    assert "lost: b, c" in str(HostLost("one", {"b": 1.0, "c": 2.0}))
