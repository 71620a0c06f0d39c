"""A member that was taken over, at NATS: whose name it does not get."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from nats.errors import Error as NatsError

from supervisor.bridge import aio_as_trio, open_loop
from supervisor.errors import FleetUnavailable
from supervisor.fleet.connection import Refused, client_context
from supervisor.fleet.nats import NatsEngine
from tests.fleet.test_engine import PATIENCE_S, member
from tests.support.brokers import Broker, Brokers, open_brokers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    async with open_loop(), open_brokers(tmp_path, "ab") as opened:
        yield opened


async def test_nobody_publishes_the_lease_of_another(brokers: Brokers) -> None:
    async with member(brokers, "a") as a, member(brokers, "b") as b:
        made = await a.create("hosts", "a", b"here")
        for subject in ("fleet.hosts.a", "fleet.hosts.a.b"):
            with pytest.raises(FleetUnavailable):
                await b._request(subject, b"there")
        kept = await a.get("hosts", "a")
        assert kept
        assert (kept.value, kept.revision) == (b"here", made)


async def test_nobody_answers_itself_in_the_name_of_another(brokers: Brokers) -> None:
    """Who is asked may answer, wherever whoever asks wants to have the answer."""
    async with member(brokers, "a") as a, member(brokers, "b") as b:
        made = await a.create("hosts", "a", b"here")
        for subject in ("fleet.hosts.a", "$JS.API.STREAM.DELETE.fleet-hosts"):
            client = b._connected()
            asked = await aio_as_trio(client.subscribe)("fleet.call.b.*")
            await aio_as_trio(client.publish)("fleet.call.b.me", b"", reply=subject)
            with suppress(NatsError):  # nor does it hear of it
                await aio_as_trio(asked.next_msg)(timeout=1)
            await aio_as_trio(client.publish)(subject, b"")
            await aio_as_trio(client.flush)()
            await aio_as_trio(asked.unsubscribe)()
        kept = await a.get("hosts", "a")
        assert kept
        assert (kept.value, kept.revision) == (b"here", made)


async def test_nobody_has_another_write_its_answer_over_its_own_lease(brokers: Brokers) -> None:
    async def answer(_: str, body: bytes) -> bytes:
        return body

    async with member(brokers, "a") as a, member(brokers, "b") as b:
        made = await a.create("hosts", "a", b"here")
        async with a.answering("a", answer):
            publish = aio_as_trio(b._connected().publish)
            await publish("fleet.call.a.me", b"there", reply="fleet.hosts.a")
            for _ in range(3):  # the answer to that is written by then
                assert await b.call("a", "me", b"me", PATIENCE_S) == b"me"
        kept = await a.get("hosts", "a")
        assert kept
        assert (kept.value, kept.revision) == (b"here", made)


async def test_nobody_makes_a_stream_that_publishes_in_other_names(brokers: Brokers) -> None:
    async with member(brokers, "a") as a, member(brokers, "b") as b:
        made = await a.create("hosts", "a", b"here")
        config = {
            "name": "more",
            "subjects": ["fleet.all.more"],
            "republish": {"src": "fleet.all.more", "dest": "fleet.hosts.a"},
        }
        with pytest.raises(FleetUnavailable):
            await b._api("STREAM.CREATE.more", config)
        with pytest.raises(Refused, match="not found"):
            await a._api("STREAM.INFO.more", {})
        # Under the name of another one there is one already, or this is none.
        for name in ("fleet-runs", "fleet-hosts"):
            with pytest.raises(Refused):
                await b._api(f"STREAM.CREATE.{name}", config)
            with pytest.raises(FleetUnavailable):
                await b._api(f"STREAM.UPDATE.{name}", config | {"name": name})
        # Nor does a consumer deliver there.
        await b.create("runs", "lie", b"there")
        deliver = {"name": "lie", "deliver_subject": "fleet.hosts.a", "ack_policy": "none"}
        await b._api(
            "CONSUMER.CREATE.fleet-runs.lie", {"stream_name": "fleet-runs", "config": deliver}
        )
        kept = await a.get("hosts", "a")
        assert kept
        assert (kept.value, kept.revision) == (b"here", made)


class First(NatsEngine):
    """Makes a stream before all others that publishes what it takes in another's name."""

    async def _make(self, name: str, **config: Any) -> None:
        if name == "fleet-runs":
            config["republish"] = {"src": "fleet.runs.>", "dest": "fleet.hosts.>"}
        await super()._make(name, **config)


async def test_a_stream_that_is_not_as_this_fleet_makes_it_is_not_used(brokers: Brokers) -> None:
    first, second = First("b"), NatsEngine("a")
    servers = tuple(brokers.url.split(","))
    try:
        with trio.fail_after(PATIENCE_S):
            await first._connect(servers, client_context(brokers.files("b")))
            with pytest.raises(FleetUnavailable, match=r"fleet-runs is not as .*republish"):
                await second._connect(servers, client_context(brokers.files("a")))
    finally:
        await first._close()
        await second._close()


async def test_a_member_without_a_server_is_none_among_the_servers(tmp_path: Path) -> None:
    async with open_brokers(tmp_path, "abcd", servers=3) as brokers, trio.open_nursery() as nursery:
        a, d = brokers.members[0], brokers.members[3]
        # As its own server's, with its own certificate.
        conf = (brokers.files("a") / "nats.conf").read_text()
        lines = [line for line in conf.splitlines() if "pinned" not in line]
        taken = "\n".join(lines).replace(str(brokers.files("a")), str(brokers.files("d")))
        taken = taken.replace(a.address.host, d.address.host).replace('"a"', '"d"')
        (brokers.files("d") / "nats.conf").write_text(taken)
        server = Broker(d, brokers.files("d"), nursery)
        await server.start()
        refused = 0
        with trio.fail_after(PATIENCE_S):
            while not refused:
                for name in "bc":
                    log = (brokers.files(name) / "nats.log").read_text()
                    assert "Remote: d" not in log
                    refused += log.count("certificate not pinned")
                await trio.sleep(0.1)
        await server.kill()
