"""The engine, over real NATS servers."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from supervisor.bridge import open_loop
from supervisor.errors import FleetUnavailable
from supervisor.fleet import authority
from supervisor.fleet.engine import Conflict
from supervisor.fleet.nats import NatsEngine
from tests.support.brokers import Brokers, open_brokers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: On a machine that is busy.
PATIENCE_S = 30


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    async with open_loop(), open_brokers(tmp_path, "ab") as opened:
        yield opened


@asynccontextmanager
async def member(brokers: Brokers, name: str) -> AsyncIterator[NatsEngine]:
    engine = NatsEngine(name)
    async with trio.open_nursery() as nursery:
        servers = tuple(brokers.url.split(","))
        nursery.start_soon(engine.keep_connected, servers, brokers.files(name))
        with trio.fail_after(PATIENCE_S):
            await engine.changed.until(lambda: engine.connected)
        yield engine
        nursery.cancel_scope.cancel()


async def test_of_two_who_saw_the_same_revision_one_changes_a_record(brokers: Brokers) -> None:
    async with member(brokers, "a") as a, member(brokers, "b") as b:
        made = await a.create("runs", "one", b"1")
        with pytest.raises(Conflict):
            await b.create("runs", "one", b"2")
        seen = await b.get("runs", "one")
        assert seen
        assert (seen.value, seen.revision) == (b"1", made)
        changed = await b.update("runs", "one", b"2", seen.revision)
        with pytest.raises(Conflict):
            await a.update("runs", "one", b"3", made)
        await a.remove("runs", "one", changed)
        assert await b.get("runs", "one") is None
        again = await b.create("runs", "one", b"4")
        assert again > changed


async def test_a_record_of_which_nobody_renews_the_time_is_gone_and_told_of(
    brokers: Brokers,
) -> None:
    async with member(brokers, "a") as a, member(brokers, "b") as b, b.watch("hosts") as told:
        with trio.fail_after(PATIENCE_S):
            assert await told.receive() is None
            made = await a.create("hosts", "a", b"here", ttl_s=1)
            assert (await told.receive()).value == b"here"  # type: ignore[union-attr]
            await a.update("hosts", "a", b"still", made, ttl_s=1)
            assert (await told.receive()).value == b"still"  # type: ignore[union-attr]
            gone = await told.receive()
        assert gone
        assert (gone.key, gone.value) == ("a", None)
        await a.create("hosts", "a", b"back", ttl_s=1)


async def test_a_member_has_no_others_lease(brokers: Brokers) -> None:
    async with member(brokers, "b") as b:
        with pytest.raises(FleetUnavailable):
            await b.create("hosts", "a", b"I am a", ttl_s=10)
        assert await b.get("hosts", "a") is None


async def test_a_message_goes_to_the_member_of_the_lowest_rank(brokers: Brokers) -> None:
    async with member(brokers, "a") as a, member(brokers, "b") as b:
        await a.offer("k1")
        await b.offer("k1")
        got: list[str] = []
        served = trio.Event()

        async def take(engine: NatsEngine, rank: int) -> None:
            message = await engine.pull("k1", 5, rank)
            if message:
                got.append(f"{rank}:{message.body.decode()}")
                served.set()
                await (engine.give_back if rank else engine.done)(message)

        assert await a.pull("k1", 0.1, 0) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, a, 1)
            nursery.start_soon(take, b, 0)
            await a.get("runs", "x")  # both have asked by now, over the same connections
            await b.get("runs", "x")
            await a.enqueue("k1", b"one", "once-1")
            await a.enqueue("k1", b"one", "once-1")
            with trio.fail_after(PATIENCE_S):
                await served.wait()
            nursery.cancel_scope.cancel()
        assert got == ["0:one"]
        assert await b.pull("k1", 0.1, 0) is None


async def test_what_is_given_back_comes_at_once(brokers: Brokers) -> None:
    async with member(brokers, "a") as a:
        await a.offer("k1")
        await a.enqueue("k1", b"one", "x")
        with trio.fail_after(PATIENCE_S):
            first = await a.pull("k1", 5, 0)
            assert first
            await a.give_back(first)
            second = await a.pull("k1", 5, 0)
        assert second
        assert second.body == b"one"
        await a.done(second)


async def test_calls(brokers: Brokers) -> None:
    async def answer(subject: str, body: bytes) -> bytes:
        return b"" if subject == "nothing" else subject.encode() + b" " + body

    async with member(brokers, "a") as a, member(brokers, "b") as b:
        assert await a.call("b", "ping", b"x", 0.2) is None
        async with b.answering("b", answer), a.answering("a", answer):
            assert await a.call("b", "ping", b"x", PATIENCE_S) == b"ping x"
            assert await a.ask_all("who", b"y", PATIENCE_S, 2) == b"who y"
            # Both have none, so nobody is waited for.
            assert await a.ask_all("nothing", b"", 2 * PATIENCE_S, 2) == b""


async def test_a_broker_that_goes_and_comes_back(brokers: Brokers) -> None:
    async with member(brokers, "a") as a:
        made = await a.create("runs", "one", b"1")
        async with a.watch("runs") as told:
            with trio.fail_after(PATIENCE_S):
                assert (await told.receive()).value == b"1"  # type: ignore[union-attr]
                assert await told.receive() is None
                (server,) = brokers.servers
                await server.kill()
                with pytest.raises(trio.EndOfChannel):
                    await told.receive()
                with pytest.raises(FleetUnavailable):
                    await a.update("runs", "one", b"2", made)
                await server.start()
                await a.changed.until(lambda: a.connected)
                kept = await a.get("runs", "one")
        assert kept
        assert kept.revision == made


async def test_a_member_that_is_left_out_is_cut_off_by_a_reload(brokers: Brokers) -> None:
    async with member(brokers, "b") as b, member(brokers, "a") as a:
        at, new = brokers.files("a"), brokers.directory / "new"
        authority.make(new, brokers.members[:1], installed=at, store=at / "store")
        (at / "nats.conf").write_bytes((new / "a" / "nats.conf").read_bytes())
        (server,) = brokers.servers
        assert server.process
        server.process.send_signal(signal.SIGHUP)  # what nats-server --signal reload sends
        with trio.fail_after(PATIENCE_S):
            await b.changed.until(lambda: not b.connected)
        await a.create("runs", "one", b"1")
        with pytest.raises(FleetUnavailable):
            await b.get("runs", "one")


async def test_a_kind_that_the_queue_does_not_keep_apart_is_not_asked_for_all_the_time(
    brokers: Brokers,
) -> None:
    """Any member can tell of one: the answer comes at once, and is none."""
    async with member(brokers, "a") as a:
        with pytest.raises(FleetUnavailable, match="503"):
            await a.pull("unknown", PATIENCE_S, 0)
        await a.offer("known")
        assert await a.pull("known", 0.1, 0) is None


async def test_a_message_that_nobody_serves_does_not_stay_for_ever(brokers: Brokers) -> None:
    async with member(brokers, "a") as a:
        made = await a._api("STREAM.INFO.fleet-queue", {})
        assert made["config"]["max_age"] == 24 * 3600 * 10**9
