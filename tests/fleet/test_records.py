"""The runs' records, as one member has them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from supervisor.errors import NotOwner
from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.records import Records
from tests.support.memory_engine import Broker, MemoryEngine

#: As long as NATS' servers may take.
ELECTION_S = 9.0
PATIENCE_S = 60


async def test_a_run_is_put_on_record_by_a_broker_that_chooses_a_leader_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        records, run = Records(engine), Run(id="one", entry="a", needs=Needs())

        async def choose() -> None:
            await trio.sleep(ELECTION_S)
            engine.reachable = True

        engine.cut()
        nursery.start_soon(choose)
        await records.create_in_time(run)
        assert await records.read("one") == run
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        Run(id="two", entry="a", needs=Needs()).encode(),
        Run(id="one", entry="a", needs=Needs(), epoch=10**4000).encode(),
        # As long as NATS takes one, so that what says a word more never is.
        Run(id="one", entry="a" * 1_000_000, needs=Needs(), owner="b", epoch=1).encode(),
    ],
)
async def test_a_record_that_somebody_has_spoilt_is_of_no_run(
    value: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    """Who waited until it can be read would wait for ever, and take no other run."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        records = Records(MemoryEngine(broker))
        await records.create(Run(id="one", entry="a", needs=Needs()))
        await records.change("one", lambda run: run.claimed("b", 0))
        records.forget("one")
        broker.set("runs", "one", value, None)
        with trio.fail_after(PATIENCE_S), pytest.raises(NotOwner):
            await records.change_in_time("one", lambda run: run.handed_back("b", 1))
        assert (await records.read("one")).state is RunState.REMOVED
        nursery.cancel_scope.cancel()
