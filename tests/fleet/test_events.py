"""Events of all members in one answer: each once, whichever member is asked."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.client import AsyncClient
from supervisor.fleet.identity import Identity
from tests.fleet.test_members import ALICE, address, client
from tests.support.contract import check_event
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

SOUTH = {"computation": [1], "host": {"labels": {"zone": "south"}}}
ZONE = "zone=south"


class Reader:
    """One answer of server-sent events. ``last`` is what a browser would come back with."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.last = ""
        self.told: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any] | None:
        """The next event; None for an id by itself."""
        fields: dict[str, str] = {}
        while line := await anext(self._lines):
            name, _, value = line.partition(": ")
            fields[name] = value
        self.last = fields.get("id", self.last)
        if "data" not in fields:
            return None
        event: dict[str, Any] = json.loads(fields["data"])
        assert fields["event"] == event["event"]
        assert event.get("position", self.last) == self.last
        check_event(event)
        self.told.append(event)
        return event

    async def until(self, **data: object) -> dict[str, Any]:
        """The first event with these members from here on."""
        with trio.fail_after(PATIENCE_S):
            while not ((event := await self.next()) and data.items() <= event.items()):
                pass
        return event

    async def until_at(self, *hosts: str) -> None:
        """Return once the id has a place at each of these hosts."""
        with trio.fail_after(PATIENCE_S):
            while not all(f",{host}:" in self.last for host in hosts):
                await self.next()

    async def until_ended(self) -> None:
        """Return when the answer has."""
        with trio.fail_after(PATIENCE_S), suppress(StopAsyncIteration):
            while True:
                await self.next()

    @property
    def numbers(self) -> list[tuple[str, int]]:
        return [(one["host"], one["sequence"]) for one in self.told if one["event"] != "host"]


@asynccontextmanager
async def reading(
    http: httpx.AsyncClient, last: str = "", path: str = "/events", **headers: str
) -> AsyncIterator[Reader]:
    headers |= {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Reader(answer.aiter_lines())


async def post(member: Apart, body: dict[str, Any], **headers: str) -> str:
    answer = await member.http.post("/run", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def on_record(member: Apart, host: str) -> list[tuple[str, int]]:
    answer = await member.http.get(f"/events?host={host}&limit=1000")
    assert answer.status_code == 200, answer.text
    return [(host, one["sequence"]) for one in answer.json()["events"]]


async def test_a_reader_hears_of_all_members_vms(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, b):
        async with reading(a.http) as reader:
            await reader.until_at("a", "b")
            here, there = await post(a, {"computation": [1]}), await post(a, SOUTH)
            hosts = {here: "a", there: "b"}
            for vm_id, host in hosts.items():
                if not any(one["vm"] == vm_id for one in reader.told):
                    await reader.until(vm=vm_id)
                found = next(one for one in reader.told if one["vm"] == vm_id)
                assert found["host"] == host
        last = reader.last
        # Of one host alone they are as without a fleet.
        for path in (f"/vms/{there}/events?after=0", "/events?host=b&after=0"):
            async with reading(a.http, path=path) as reader:
                event = None
                while event is None:
                    event = await reader.next()
                assert "host" not in event
                assert reader.last == str(event["sequence"])
        at = str(a.http.base_url)
        async with AsyncClient(at) as program:
            async with program.events(after=last) as told:
                await a.http.post(f"/vms/{there}/shutdown", json={"mode": "force"})
                async for one in told:
                    assert one["vm"] in (here, there)
                    if one["vm"] == there and one.get("state") == "shutoff":
                        break
            # Another program goes on where this one has ended.
            async with program.events(after=one["position"]) as told:
                await a.http.delete(f"/vms/{there}")
                assert (await anext(told))["sequence"] > one["sequence"]
        assert (await b.http.get("/events?host=c")).status_code == 400
        assert (await b.http.get("/events?after=17")).status_code == 400


async def test_who_comes_back_to_another_member_misses_nothing(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, b):
        told = []
        async with reading(a.http, "0") as reader:
            vm_id = await post(a, SOUTH)
            await reader.until(vm=vm_id, event="relay", state="sent")
            told += reader.numbers
        other = await post(b, SOUTH)
        mine = await post(a, {"computation": [1]})
        async with reading(b.http, reader.last) as reader:
            waiting = {vm_id, other, mine}
            for one in waiting:
                await b.http.post(f"/vms/{one}/shutdown", json={"mode": "force"})
            while waiting:
                waiting.discard((await reader.until(event="state", state="shutoff"))["vm"])
            told += reader.numbers
        for host in "ab":
            assert [one for one in told if one[0] == host] == await on_record(a, host)


async def test_a_host_that_is_away_holds_nobody_up(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b:
            await a.wait_said("host joined", host="b")
            async with reading(a.http) as before:
                await before.until_at("a", "b")
            stays = await post(b, SOUTH)
        async with reading(a.http, before.last) as reader:
            await reader.until(event="host", host="b", state="unreached")
            await reader.until(host="a", vm=await post(a, {"computation": [1]}))
            async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE):
                await reader.until(event="host", host="b", state="reached")
                await reader.until(host="b", vm=stays, event="state", state="shutoff")
                of_b = [one for one in reader.numbers if one[0] == "b"]
                assert of_b == [one for one in await on_record(a, "b") if one in of_b]
                assert of_b[0] == next(iter(await on_record(a, "b")))


async def test_a_host_that_hangs_holds_nobody_up(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, b):
        b.process.send_signal(signal.SIGSTOP)
        try:
            async with reading(a.http, "0") as reader:
                await reader.until(host="a", vm=await post(a, {"computation": [1]}))
                assert (await a.http.get("/events?limit=9")).json()["missing"] == ["b"]
                await reader.until(event="host", host="b", state="unreached")
                b.process.send_signal(signal.SIGCONT)
                await reader.until(event="host", host="b", state="reached")
        finally:
            b.process.send_signal(signal.SIGCONT)


async def test_a_host_that_comes_later_is_heard_from_when_the_reader_came(fleet: Fleet) -> None:
    async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b:
        before = await post(b, SOUTH)
        await b.http.post(f"/vms/{before}/shutdown", json={"mode": "force"})
    async with fleet.serve("a") as a, reading(a.http) as reader:
        await reader.until_at("a")
        async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b:
            vm_id = await post(b, SOUTH)
            await reader.until(host="b", vm=vm_id, event="relay", state="answered")
            assert not [one for one in reader.told if one["vm"] == before]
            first = next(one for one in reader.told if one["vm"] == vm_id)
            assert first["state"] == "prelaunch"


async def test_a_journal_that_begins_anew_is_told(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b, reading(b.http, "0") as old:
            await a.wait_said("host joined", host="b")
            await old.until_at("a", "b")
            await old.until(host="b", vm=await post(b, SOUTH), event="relay", state="answered")
        shutil.rmtree(fleet.worlds["b"].tmp)
        async with fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b:
            vm_id = await post(b, SOUTH)
            await a.wait_said("host joined", times=2, host="b")
            async with reading(a.http, old.last) as reader:
                await reader.until(event="host", host="b", state="begun-anew")
                await reader.until(host="b", vm=vm_id, event="relay", state="answered")
                of_b = [one for one in reader.numbers if one[0] == "b"]
                assert of_b == (await on_record(a, "b"))[: len(of_b)]


async def test_pages_of_all_members_events(fleet: Fleet) -> None:
    async with fleet.serve("a") as a, fleet.serve("b", MANAGER_FLEET_LABELS=ZONE) as b:
        await a.wait_said("host joined", host="b")
        await post(a, SOUTH), await post(a, {"computation": [1]})
        found, following = [], "/events?limit=3"
        member = a
        while following:
            page = (await member.http.get(following)).json()
            assert page["missing"] == []
            assert len(page["events"]) <= 3
            found += page["events"]
            following, member = page["next"], b if member is a else a
        for host in "ab":
            numbers = [(host, one["sequence"]) for one in found if one["host"] == host]
            assert numbers == await on_record(a, host)
        assert [one["at"] for one in found] == sorted(one["at"] for one in found)


async def test_another_members_vms_are_no_other_tenants_business(fleet: Fleet) -> None:
    both = {}
    callers = {"alice": Role.RUN, "bob": Role.RUN, "rita": Role.READ, "olivia": Role.OPERATE}
    for name, role in callers.items():
        file = fleet.worlds["a"].tmp / "tokens.json"
        file.parent.mkdir(exist_ok=True)
        _, token = tokens.create(file, name, role, None, tokens.now())
        both[name] = {"Authorization": f"Bearer {token}"}
    for world in fleet.worlds.values():
        world.settings["MANAGER_AUTH"] = "on"
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, _):
        async with (
            reading(a.http, **both["bob"]) as bob,
            reading(a.http, **both["rita"]) as rita,
            reading(a.http, **both["alice"]) as alice,
        ):
            for reader in (bob, rita, alice):
                await reader.until_at("a", "b")
            vm_id = await post(a, SOUTH, **both["alice"])
            for reader in (alice, rita):
                await reader.until(host="b", vm=vm_id, event="relay", state="answered")
            own = await post(a, SOUTH, **both["bob"])
            await bob.until(vm=own, event="relay", state="answered")
            assert {one["vm"] for one in bob.told} == {own}
        # What alice had last is of no use to bob.
        page = await a.http.get("/events", params={"limit": 1000}, headers=both["bob"])
        assert {one["vm"] for one in page.json()["events"]} == {own}
        async with reading(a.http, "0", **both["bob"]) as bob:
            await bob.until(vm=own, event="relay", state="answered")
            assert {one["vm"] for one in bob.told} == {own}
        path = f"/vms/{vm_id}/events"
        assert (await a.http.get(path, headers=both["bob"])).status_code == 404
        # Who may read no more hears no more, though it is told elsewhere.
        async with (
            reading(a.http, path=path, **both["alice"]) as one,
            reading(a.http, **both["alice"]) as alice,
        ):
            await one.next()
            await alice.until_at("a", "b")
            (entry,) = (one for one in tokens.read(file) if one.name == "alice")
            tokens.revoke(file, entry.id, tokens.now())
            answer = await a.http.post(f"/vms/{vm_id}/shutdown", headers=both["olivia"])
            assert answer.status_code == 200, answer.text
            for reader in (one, alice):
                await reader.until_ended()
                assert not [told for told in reader.told if told["event"] == "ending"]


async def test_who_leaves_leaves_nothing_at_another_member(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_CALLER_READERS="1") as (a, _):
        for _ in range(3):
            async with reading(a.http) as reader:
                await reader.until_at("a", "b")


async def test_a_member_tells_another_its_own_events_alone(fleet: Fleet) -> None:
    signer = Identity.read(fleet.brokers.files("a"))
    async with fleet.serve_both() as (_, _), client(fleet.brokers.files("a")) as http:
        at = address(fleet, "b")
        token = signer.sign(ALICE, "b", "GET", "/events")
        headers = {"Authorization": f"Bearer {token}"}
        async with reading(http, path=f"{at}/events", **headers) as reader:
            await reader.until_at("b")
            assert ",a:" not in reader.last
        assert (await http.get(f"{at}/events")).status_code == 401
        assert (await http.get(f"{at}/events?after=0", headers=headers)).status_code == 401
