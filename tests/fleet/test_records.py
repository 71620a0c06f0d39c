"""The runs' records, as one member has them."""

from __future__ import annotations

import trio
import trio.testing

from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run
from supervisor.fleet.records import Records
from tests.support.memory_engine import Broker, MemoryEngine

#: As long as NATS' servers may take.
ELECTION_S = 9.0


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
