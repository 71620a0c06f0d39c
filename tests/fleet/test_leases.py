"""Which hosts a member holds for lost, and for how long."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.errors import HostLost
from supervisor.fleet.facts import HostFacts
from supervisor.fleet.members import LEASE_S, Members
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


async def test_a_lease_that_is_renewed_after_its_end_is_a_new_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it had not ended when that began: who waits for it is woken."""
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        look = partial(HostFacts, name="b", address="b", seat="b")
        members = Members(engine, "b", look, trio.current_time)
        update, ended = engine.update, trio.Event()

        async def slow(*told: Any) -> int:
            await ended.wait()
            return await update(*told)

        nursery.start_soon(members.keep_lease)
        await members.changed.until(lambda: members.is_safe)
        monkeypatch.setattr(engine, "update", slow)
        await trio.sleep(LEASE_S - 1)
        assert not members.is_safe
        ended.set()
        with trio.fail_after(60):
            await members.changed.until(lambda: members.is_safe)
        assert members.taken == 2
        nursery.cancel_scope.cancel()


async def test_a_lease_that_somebody_has_spoilt_is_taken_again(autojump_clock: MockClock) -> None:
    """Whose else it is, it does not say; and it has no end."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        look = partial(HostFacts, name="b", address="b", seat="b")
        members = Members(MemoryEngine(broker), "b", look, trio.current_time)
        nursery.start_soon(members.keep_lease)
        await members.changed.until(lambda: members.is_safe)
        broker.set("hosts", "b", b"{", None)
        await trio.sleep(LEASE_S)
        assert members.is_safe
        assert HostFacts.decode(broker.tables["hosts"]["b"].value) == look()
        nursery.cancel_scope.cancel()
