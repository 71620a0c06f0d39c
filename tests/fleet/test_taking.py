"""A host that has claimed a run, and waits for what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from supervisor.errors import HandedBack, NotOwner
from supervisor.fleet.entry import Claim
from supervisor.fleet.facts import HostFacts, Needs
from supervisor.fleet.ledger import Run
from supervisor.fleet.members import Members
from supervisor.fleet.owner import Owner
from supervisor.fleet.records import Records
from supervisor.fleet.taking import Taking
from tests.support.memory_engine import Broker, MemoryEngine
from tests.support.simulated_fleet import SimulatedFleet

if TYPE_CHECKING:
    from collections.abc import Callable


class Slow(Owner):
    """Its broker does not answer for a while."""

    def __init__(self, records: Records, members: Members) -> None:
        super().__init__(records, members)
        self.hands_back, self.may = trio.Event(), trio.Event()

    async def hand_back_in_time(self, run_id: str, epoch: int) -> None:
        self.hands_back.set()
        await self.may.wait()
        await super().hand_back_in_time(run_id, epoch)


async def test_a_run_that_comes_while_it_is_handed_back_is_not_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its entry host would tell that it is taken, and the record that nobody has it."""
    look: Callable[[], HostFacts] = lambda: HostFacts(name="b", address="b", seat="b")  # noqa: E731
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        records = Records(engine)
        members = Members(engine, "b", look, trio.current_time)
        owner = Slow(records, members)
        taking = Taking(engine, records, members, owner, look)
        await records.create(Run(id="one", entry="a", needs=Needs()))
        run = await records.change("one", lambda run: run.claimed("b", 0))
        nursery.start_soon(taking._receive, run)
        await owner.hands_back.wait()
        with pytest.raises(NotOwner):
            async with taking.accepted("one", 1):
                pytest.fail("it is begun")
        owner.may.set()
        nursery.cancel_scope.cancel()


async def test_a_message_of_the_queue_that_cannot_be_read_is_done_with(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Any member can put one in. An error here would end the supervisor."""
    facts = HostFacts(
        name="b",
        address="b",
        seat="b",
        vms_free=1,
        memory_free_bytes=1,
        vcpus_free=1,
        vm_memory_bytes=1,
        vm_vcpus=1,
    )
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        engine = MemoryEngine(broker)
        records, needs = Records(engine), Needs()
        members = Members(engine, "b", lambda: facts, trio.current_time)
        taking = Taking(engine, records, members, Owner(records, members), lambda: facts)
        nursery.start_soon(members.keep_lease)
        await members.changed.until(lambda: members.is_safe)
        run = Run(id="11111111-1111-4111-8111-111111111111", entry="a", needs=needs).encode()
        strange = Run(id="runs.>", entry="a", needs=needs).encode()
        long = run.replace(b'"epoch": 0', b'"epoch": ' + b"9" * 5000)
        bodies = (b"", b"\xff 1", b"0", b"..", b"-1 " + run, b"9" * 5000 + b" " + run)
        for body in (*bodies, b"0 " + strange, b"0 " + long, b"0 {}", b"0 " + b"[" * 10_000):
            broker.push(needs.kind, body)
            message = await engine.pull(needs.kind, 1, 0)
            assert message
            assert not await taking._take(message, needs)
        assert not broker.unacknowledged
        nursery.cancel_scope.cancel()


async def test_who_posts_and_leaves_does_not_fill_the_queue(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A host that has room looks at each message before it comes to another caller's."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        host = await SimulatedFleet(broker).add("a", room=0)
        await trio.sleep(1)
        for number in range(40):
            with trio.move_on_after(1):
                run = Run(id=str(number), entry="a", needs=Needs())
                async with host.entry.post(run, "mallory") as posting:
                    await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
        # As from four that wait, of whom each has another one sent every fifteen seconds.
        (queue,) = broker.queues.values()
        assert len(queue) <= 12
        # Who waits next has its turn at once if it is another owner.
        with trio.move_on_after(1):
            run = Run(id="alice", entry="a", needs=Needs())
            async with host.entry.post(run, "alice") as posting:
                await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
        assert b'"alice"' in queue[-1][1]
        await trio.sleep(60)
        assert not host.entry._turns._turns
        nursery.cancel_scope.cancel()


async def test_needs_that_differ_in_words_alone_are_no_more_turns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        host = await SimulatedFleet(broker).add("a", room=0)
        await trio.sleep(1)

        async def post(number: int) -> None:
            run = Run(id=str(number), entry="a", needs=Needs(memory_bytes=number))
            async with host.entry.post(run, "mallory") as posting:
                await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]

        for number in range(10):
            nursery.start_soon(post, number)
        await trio.sleep(1)
        (queue,) = broker.queues.values()
        assert len(queue) == 4
        nursery.cancel_scope.cancel()


async def test_kinds_of_runs_have_an_end(autojump_clock: trio.testing.MockClock) -> None:
    """Any member can tell of some, and each has a task on every host."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery, lies=0, seed=1)
        engine, host = MemoryEngine(broker), await SimulatedFleet(broker).add("a", room=0)
        for number in range(1500):
            needs = Needs(labels={"number": str(number)})
            await engine.create("kinds", needs.kind, needs.encode())
        await trio.sleep(60)
        assert len(host.taking._kinds) == 1000
        nursery.cancel_scope.cancel()


async def test_nothing_is_kept_of_a_run_that_is_not_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        host = await SimulatedFleet(Broker(nursery, lies=0, seed=1)).add("a", room=0)
        posted = [Run(id=name, entry="b", needs=Needs()) for name in ("others", "without-room")]
        for run, owner in zip(posted, "ba", strict=True):
            await MemoryEngine(host.fleet.broker).create(
                "runs", run.id, run.claimed(owner, 0).encode()
            )
        with pytest.raises(NotOwner):
            await host._start("", Claim("others", "a", 1, ""))
        with pytest.raises(HandedBack):
            await host._start("", Claim("without-room", "a", 1, ""))
        assert [host.records.known(run.id) for run in posted] == [None, None]
        nursery.cancel_scope.cancel()
