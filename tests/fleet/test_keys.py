"""Idempotency keys in a fleet: one run, whichever members are asked, and however often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio
import trio.testing

from supervisor import config
from supervisor.caller import ANYBODY
from supervisor.errors import NotOwner
from supervisor.fleet import keys
from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import HostFacts, Needs
from supervisor.fleet.keys import Keys
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.members import Members
from supervisor.fleet.owner import Owner
from supervisor.fleet.records import Records
from supervisor.membership import open_fleet
from supervisor.qemu.host import Clock
from supervisor.state.record import RunOptions
from tests.fleet.posting import SOUTH, ZONE
from tests.support.memory_engine import Broker, MemoryEngine
from tests.support.simulated_fleet import SimulatedFleet
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

BODY = {"computation": list(b"once")}


async def post(member: Apart, key: str, body: object = BODY) -> httpx.Response:
    return await member.http.post("/run", json=body, headers={"Idempotency-Key": key})


async def test_a_request_that_is_repeated_at_another_member_is_the_same_run(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, b):
        first, second = await post(a, "k"), await post(b, "k")
        assert first.status_code == second.status_code == 200, second.text
        assert first.json() == second.json()
        other = await post(b, "k", {"computation": [1]})
        assert other.status_code == 409
        assert other.json()["type"].endswith(":key-reused")
        assert (await post(a, "another")).json()["id"] != first.json()["id"]


@pytest.mark.parametrize("body", [BODY, SOUTH])
async def test_requests_at_once_to_both_members_are_one_run(
    fleet: Fleet, body: dict[str, Any]
) -> None:
    answers: list[httpx.Response] = []

    async def ask(member: Apart) -> None:
        answers.append(await post(member, "k", body))

    async with fleet.serve_both(**ZONE) as (a, b):
        async with trio.open_nursery() as nursery:
            for member in (a, b, a, b):
                nursery.start_soon(ask, member)
        assert [one.status_code for one in answers] == [200] * 4, [one.text for one in answers]
        assert len({one.json()["id"] for one in answers}) == 1
        vms = (await a.http.get("/vms")).json()["vms"]
        assert len(vms) == 1


async def post_in_vain(member: Apart) -> None:
    with pytest.raises(httpx.TransportError):
        await post(member, "k")


async def test_a_repetition_does_not_wait_for_a_member_that_has_forgotten_the_run(
    fleet: Fleet,
) -> None:
    """It was posted to one without room, which was started again since."""
    async with fleet.serve("a") as a, trio.open_nursery() as nursery:
        await a.http.post("/host/drain")
        async with fleet.serve("b") as b:
            await b.http.post("/host/drain")
            await a.wait_said("host joined", host="b")
            nursery.start_soon(post_in_vain, b)
            with trio.fail_after(PATIENCE_S):
                while "fleet_waiting 1.0" not in (await b.http.get("/metrics")).text:
                    pass
            await b.kill()
        async with fleet.serve("b") as b:
            await b.http.post("/host/drain")
            await a.http.post("/host/resume")
            answer = await post(a, "k")
            assert answer.status_code == 200, answer.text


async def test_a_key_is_free_again_once_its_vm_is_deleted(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, b):
        first = (await post(a, "k")).json()["id"]
        assert (await b.http.delete(f"/vms/{first}")).status_code == 204
        second = await post(b, "k")
        assert second.status_code == 200, second.text
        assert second.json()["id"] != first


async def test_a_key_goes_with_its_run(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery)
        engine = MemoryEngine(broker)
        records = Records(engine)
        keys = Keys(engine, records)
        posted = Run(id="1", entry="a", needs=Needs())
        run = await keys.claim(posted, "alice", "k", "hash")
        await records.create(run)
        assert (await keys.claim(attrs.evolve(posted, id="2"), "alice", "k", "hash")).id == "1"
        await records.release_key(attrs.evolve(run, id="2"))
        assert broker.tables["keys"], "another run's key is released"
        for spoilt in (b"{", b"[]", b"7", b"{}", b"[" * 100_000):
            kept = broker.tables["keys"][run.key]
            kept.value, value = spoilt, kept.value
            await records.release_key(run)
            kept.value = value
        await records.release_key(run)
        assert not broker.tables["keys"]
        await records.release_key(run)
        assert (await keys.claim(attrs.evolve(posted, id="2"), "alice", "k", "hash")).id == "2"
        nursery.cancel_scope.cancel()


async def test_a_caller_who_leaves_leaves_no_key(autojump_clock: trio.testing.MockClock) -> None:
    """Else who posts and leaves, again and again, fills the broker's disk."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery)
        fleet = SimulatedFleet(broker)
        host = await fleet.add("a", room=0)
        await trio.sleep(1)
        keys = Keys(host.engine, host.records)
        run = await keys.claim(Run(id="1", entry="a", needs=Needs()), "alice", "k", "hash")
        with trio.move_on_after(5):
            async with host.entry.post(run, "alice") as posting:
                await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
        await trio.sleep(1)
        assert not broker.tables["keys"]
        assert host.records.known("1") is None
        await trio.sleep(3600)
        assert not broker.tables["runs"]
        nursery.cancel_scope.cancel()


async def test_who_comes_while_a_run_is_given_up_does_not_revive_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is free by then, and a third request with it would be a run as well."""
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery)
        host = await SimulatedFleet(broker).add("a", room=0)
        await trio.sleep(1)
        run = await Keys(host.engine, host.records).claim(
            Run(id="1", entry="a", needs=Needs()), "alice", "k", "hash"
        )
        at_broker, joined, update = trio.Event(), trio.Event(), host.engine.update

        async def slow(*told: Any) -> int:
            if b"given-up" in told[2]:
                at_broker.set()
                await joined.wait()
            return await update(*told)

        monkeypatch.setattr(host.engine, "update", slow)
        with trio.move_on_after(5):
            async with host.entry.post(run, "alice") as posting:
                await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
        await at_broker.wait()

        async def join() -> None:
            async with host.entry.join(run, "alice") as posting:
                joined.set()
                await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]

        with pytest.raises(Conflict):  # it is posted anew
            await join()
        assert not broker.tables["keys"]
        nursery.cancel_scope.cancel()


async def test_a_spoilt_record_holds_up_no_other_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        broker = Broker(nursery)
        host = await SimulatedFleet(broker).add("a", room=0)
        await trio.sleep(1)
        for name in "12":
            with trio.move_on_after(2):
                async with host.entry.post(Run(id=name, entry="a", needs=Needs()), "") as posting:
                    if name == "1":
                        broker.tables["runs"][name].value = b"{"
                    await posting.land(trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
            await trio.sleep(1)
        given_up = Run.decode(broker.tables["runs"]["2"].value)
        assert given_up.state is RunState.GIVEN_UP
        nursery.cancel_scope.cancel()


async def test_a_run_that_comes_after_another_one_has_its_key_is_none(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host was stopped in between, or the other one's clock is wrong."""
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        records = Records(engine)
        late, early = (Run(id=name, entry=name, needs=Needs()) for name in ("late", "early"))
        assert (await Keys(engine, records).claim(late, "alice", "k", "hash")).id == "late"
        monkeypatch.setattr(keys, "_RUN_COMES_S", 0.0)
        assert (await Keys(engine, records).claim(early, "alice", "k", "hash")).id == "early"
        await records.create(early)
        with pytest.raises(Conflict):
            await records.create(late)
        assert (await Keys(engine, records).claim(late, "alice", "k", "hash")).id == "early"
        nursery.cancel_scope.cancel()


async def test_a_run_whose_key_another_one_has_is_not_revived(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its caller waits after all; but the other one may be with an agent by now."""
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        records = Records(engine)
        first, second = (Run(id=name, entry="a", needs=Needs()) for name in ("first", "second"))
        assert (await Keys(engine, records).claim(first, "alice", "k", "hash")).id == "first"
        await records.create(first)
        await records.change("first", Run.given_up)
        assert (await Keys(engine, records).claim(second, "alice", "k", "hash")).id == "second"
        with pytest.raises(NotOwner):
            await records.change("first", lambda run: run.revived("a"))
        nursery.cancel_scope.cancel()


async def test_a_key_leads_to_its_accepted_run_while_that_waits_for_its_owners_quota(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who asks for it would else have it replaced, by one that is refused as well."""
    async with trio.open_nursery() as nursery:
        engine = MemoryEngine(Broker(nursery, lies=0, seed=1))
        records = Records(engine)
        first, second = (Run(id=name, entry="a", needs=Needs()) for name in ("first", "second"))
        await records.create(await Keys(engine, records).claim(first, "alice", "k", "hash"))
        await records.change("first", lambda run: run.claimed("b", 0))
        await records.change("first", Run.taken)
        members = Members(engine, "b", lambda: HostFacts(name="b", address="", seat=""), float)
        await Owner(records, members).give_up("first", 1)
        found = await Keys(engine, records).claim(second, "alice", "k", "hash")
        assert (found.id, found.state) == ("first", RunState.QUEUED)
        nursery.cancel_scope.cancel()


async def test_requests_for_one_claim_are_one_vm_whoever_has_sent_them(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another member passes on lacks what has been found already, so it is another request."""
    world = fleet.worlds["a"]
    member = open_fleet(config.load(world.environ(**fleet.brokers.settings("a"))), Clock())
    assert member
    run = Run(id="one", entry="a", needs=Needs(), state=RunState.OWNED, owner="a", epoch=1)
    member.records._known["one"] = run, 1
    monkeypatch.setattr(member, "follow", lambda *_: None)  # there is no broker to tell
    started: list[str] = []

    async def start(request_hash: str) -> None:
        options = RunOptions(idempotency_key="k", request_hash=request_hash)
        started.append((await member.start(b"{}", options, ANYBODY, ("one", 1))).id)

    await trio.testing.wait_all_tasks_blocked()  # NATS has been started
    async with world.serve() as supervisor:
        member._service = supervisor.running.service
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, "of all of it")
            nursery.start_soon(start, "without its host")
        assert started[0] == started[1]
