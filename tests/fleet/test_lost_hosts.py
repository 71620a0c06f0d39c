"""Hosts that are lost: what they had not sent runs elsewhere, and nothing is repeated."""

from __future__ import annotations

import signal
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.pb import vm_pb2
from tests.fleet.posting import SOUTH, ZONE, Posted, record_of
from tests.fleet.test_consoles import refused
from tests.fleet.test_wires import Wire, wire
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Guest

KEY = {"Idempotency-Key": "k"}


async def test_a_lost_host_whose_agent_has_the_run_is_told_of_and_nothing_repeated(
    fleet: Fleet,
) -> None:
    fleet.worlds["b"].scenario(agent="silent")
    posted = Posted()
    async with fleet.serve("a") as a, trio.open_nursery() as nursery:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            nursery.start_soon(posted.post, a, SOUTH)
            guest = await fleet.worlds["b"].guest()
            await guest.until("Run")
            await b.kill()
        answer = await posted.answer()
        assert answer.status_code == 502, answer.text
        assert "interrupted" in answer.json()["detail"]
        # What it has is not denied.
        path = f"/vms/{guest.vm_id}"
        assert (await a.http.get("/vms")).json()["missing"] == ["b"]
        (lost,) = (await a.http.get("/hosts")).json()["lost"]
        assert lost["name"] == "b"
        for answer in (await a.http.get(path), await a.http.delete(path)):
            assert answer.status_code == 503
            assert answer.json()["type"].endswith(":host-lost")
        assert (await a.http.get("/vms/nothing")).status_code == 404
        assert (await a.http.get("/vms?host=b")).status_code == 502
        unserved = await a.http.post("/run", json=SOUTH)
        assert unserved.status_code == 409
        assert "lost, and not asked: b" in unserved.json()["detail"]
        # Back again, it knows the same.
        async with fleet.serve("b", **ZONE) as b:
            vm = await record_of(b)
            await a.wait_said("host joined", times=2, host="b")
            assert (await a.http.get(path)).json()["id"] == vm["id"]
            assert (await a.http.get("/hosts")).json()["lost"] == []
            assert vm["relay"]["state"] == "interrupted"
            assert vm["state"] == "running"
        assert guest.count("Run") == 1
        # One that has left in good order is not lost.
        await a.wait_said("host left", host="b")
        assert (await a.http.get("/vms")).json()["missing"] == []
        assert (await a.http.get(path)).status_code == 404


async def test_what_a_lost_host_had_not_sent_runs_elsewhere(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="none")
    posted = Posted()
    async with fleet.serve("a", **ZONE) as a, trio.open_nursery() as nursery:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            drained = await a.http.post("/host/drain")
            assert drained.json() == {"host": "a", "draining": True, "vms": 0, "callers": 0}
            nursery.start_soon(posted.post, a, SOUTH)
            guest = await fleet.worlds["b"].guest()
            await guest.until("cont")  # else its end is none of the fleet's doing
            await a.http.post("/host/resume")
            await b.kill()
        answer = await posted.answer()
        assert answer.status_code == 200, answer.text
        assert (await record_of(a))["id"] == answer.json()["id"]
        fleet.worlds["b"].scenario()
        async with fleet.serve("b", **ZONE) as b:
            said = await b.wait_said("VM is another host's")
            assert said["vm"] != answer.json()["id"]
            gone = await b.http.get(f"/vms/{said['vm']}")
            assert gone.status_code == 200


async def test_runs_that_nobody_waits_for_run_elsewhere_too(fleet: Fleet) -> None:
    """Of the one the host that was asked has a copy; of the other another host has one."""
    fleet.worlds["b"].scenario(agent="none")
    later = {"Prefer": "respond-async"}
    async with fleet.serve("a", **ZONE) as a:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            await b.wait_said("host joined", host="a")
            await a.http.post("/host/drain")
            for member in (a, b):
                taken = await member.http.post("/run", json=SOUTH, headers=later)
                assert taken.status_code == 202, taken.text
            guests = [await fleet.worlds["b"].guest() for _ in range(2)]
            for guest in guests:
                await guest.until("cont")
            await a.http.post("/host/resume")
            assert not (await a.http.get("/vms?host=self")).json()["vms"]
            await b.kill()
        await a.wait_said("answered", times=2)
        assert len((await a.http.get("/vms?host=self")).json()["vms"]) == 2
        async with fleet.serve("b", **ZONE):
            for guest in guests:
                with trio.fail_after(PATIENCE_S):
                    await guest.until("end")
                assert guest.count("Run") == 0


async def test_a_copy_outlives_the_supervisor_that_keeps_it(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="none")
    copies = fleet.worlds["a"].tmp / "copies"
    async with fleet.serve("b", **ZONE) as b:
        async with fleet.serve("a") as a:
            await b.wait_said("host joined", host="a")
            await a.wait_said("host joined", host="b")
            later = {"Prefer": "respond-async"}
            taken = await b.http.post("/run", json=SOUTH, headers=later)
            assert taken.status_code == 202, taken.text
            (copy,) = copies.iterdir()
            assert copy.stat().st_mode & 0o777 == 0o600
            guest = await fleet.worlds["b"].guest()
            await guest.until("cont")
            await a.kill()
        async with fleet.serve("a", **ZONE) as a:
            await a.wait_said("host joined", host="b")
            # A disk that fails for a while.
            copy.rename(copies.with_name("aside"))
            await b.kill()
            await a.wait_said("copy of a run not used")
            copies.with_name("aside").rename(copy)
            await a.wait_said("answered")
            assert (await record_of(a))["relay"]["state"] == "answered"
            await a.wait_said("copy of a run is not needed")
            assert not list(copies.iterdir())
    async with fleet.serve("b"):
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")


async def test_while_a_host_is_lost_anothers_vm_is_answered_as_one_that_nobody_has(
    three: Fleet,
) -> None:
    at = three.worlds["a"].tmp
    at.mkdir(mode=0o700)
    headers = []
    for name in ("alice", "bob"):
        _, token = tokens.create(at / "tokens.json", name, Role.RUN, None, tokens.now())
        headers.append({"Authorization": f"Bearer {token}"})
    alice, bob = headers
    settings = {"MANAGER_AUTH": "on"}
    async with three.serve("a", **settings) as a, three.serve("b", **ZONE):
        async with three.serve("c") as c:
            for host in "bc":
                await a.wait_said("host joined", host=host)
            here = await a.http.post("/run", json={"computation": [1]}, headers=alice)
            there = await a.http.post("/run", json=SOUTH, headers=alice)
            await c.kill()
        await a.wait_said("host lost", host="c")
        ids = [here.json()["id"], there.json()["id"], str(uuid.uuid4())]
        for path in ("", "/status", "/events"):
            told = [await a.http.get(f"/vms/{one}{path}", headers=bob) for one in ids]
            for one, answer in zip(ids, told, strict=True):
                assert answer.status_code == 503, answer.text
                detail = answer.json()["detail"].replace(one, "")
                assert detail == told[0].json()["detail"].replace(ids[0], "")
            assert (await a.http.get(f"/vms/nothing{path}", headers=bob)).status_code == 404
        for one in ids:
            assert await refused(a.http, f"/vms/{one}/console", **bob) == 503
        sent = tuple((name.lower(), value) for name, value in bob.items())
        with wire(a) as wired:
            said = [
                await wired.refusal(wired.vms.Get, vm_pb2.GetRequest(id=one), metadata=sent)
                for one in ids
            ]
            said += [await watched(wired, one, sent) for one in ids]
        assert {one.code() for one in said} == {grpc.StatusCode.UNAVAILABLE}
        # Who may see it does.
        for one in ids[:2]:
            assert (await a.http.get(f"/vms/{one}", headers=alice)).status_code == 200


async def watched(wired: Wire, vm_id: str, sent: Any) -> Any:
    def watch() -> None:
        request = vm_pb2.WatchRequest(id=vm_id)
        for _ in wired.vms.Watch(request, timeout=PATIENCE_S, metadata=sent):
            pass

    with pytest.raises(grpc.RpcError) as error:
        await trio.to_thread.run_sync(watch)
    return error.value


async def test_a_vm_that_goes_on_without_its_supervisor_is_not_denied(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            answer = await a.http.post("/run", json=SOUTH)
            assert answer.status_code == 200, answer.text
            path = f"/vms/{answer.json()['id']}"
            b.process.send_signal(signal.SIGTERM)
            assert await b.process.wait() == 0
        refused = await a.http.get(path)
        assert refused.status_code == 503
        assert refused.json()["type"].endswith(":host-lost")
        assert (await a.http.get("/vms")).json()["missing"] == ["b"]
        async with fleet.serve("b", **ZONE):
            with trio.fail_after(PATIENCE_S):
                while (await a.http.get(path)).status_code != 200:
                    pass


async def test_who_waits_at_a_host_that_stops_is_told(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="silent")
    posted, queued = Posted(), Posted()
    nowhere = {"computation": [1], "host": {"labels": {"zone": "south"}, "replace": "never"}}
    async with fleet.serve("b", MANAGER_MAX_VMS="1", **ZONE) as b:
        async with fleet.serve("a") as a, trio.open_nursery() as nursery:
            await a.wait_said("host joined", host="b")
            nursery.start_soon(posted.post, a, SOUTH)
            guest = await fleet.worlds["b"].guest()
            await guest.until("Run")
            nursery.start_soon(queued.post, a, nowhere)
            while (drained := (await a.http.post("/host/drain")).json())["callers"] < 2:
                pass
            assert drained["vms"] == 0
            a.process.send_signal(signal.SIGTERM)
            for one in (posted, queued):
                answer = await one.answer()
                assert answer.status_code == 503, answer.text
                assert answer.json()["type"].endswith(":stopping")
            assert await a.process.wait() == 0
        vm = await record_of(b)
        assert (vm["state"], vm["relay"]["state"]) == ("running", "sent")


@pytest.fixture
async def waiting(fleet: Fleet) -> AsyncIterator[Guest]:
    """Of a run that no host serves any more, and that a host keeps that has been stopped: the guest
    that had it on the other one, which is lost.
    """
    fleet.worlds["b"].scenario(agent="none")
    copies = fleet.worlds["a"].tmp / "copies"
    async with fleet.serve("b", **ZONE) as b, fleet.serve("a", MANAGER_QUEUE_TIMEOUT="1s") as a:
        await b.wait_said("host joined", host="a")
        await a.wait_said("host joined", host="b")
        later = {"Prefer": "respond-async", **KEY}
        taken = await b.http.post("/run", json=SOUTH, headers=later)
        assert taken.status_code == 202, taken.text
        guest = await fleet.worlds["b"].guest()
        await guest.until("cont")
        await b.kill()
        await a.wait_said("host lost", becomes="queued")
        await a.wait_said("run waits on", times=2)
        a.process.send_signal(signal.SIGTERM)
        assert await a.process.wait() == 0
    assert list(copies.iterdir())
    fleet.worlds["b"].scenario()
    yield guest
    assert guest.count("Run") == 0
    assert not list(copies.iterdir())


async def test_a_copy_that_waits_for_a_host_outlives_a_stop(fleet: Fleet, waiting: Guest) -> None:
    async with fleet.serve("a") as a, fleet.serve("b", **ZONE) as b:
        await b.wait_said("answered")
        with trio.fail_after(PATIENCE_S):
            await waiting.until("end")
        await a.wait_said("copy of a run is not needed")


async def test_a_run_whose_copy_is_read_late_is_not_lost(fleet: Fleet, waiting: Guest) -> None:
    """The host that keeps it may take it from the queue itself, before it has read the copy."""
    async with fleet.serve("a", **ZONE) as a:
        await a.wait_said("answered")
        await a.wait_said("copy of a run is not needed")
    async with fleet.serve("b", **ZONE):
        with trio.fail_after(PATIENCE_S):
            await waiting.until("end")


async def test_a_run_waits_for_the_host_that_keeps_it(fleet: Fleet, waiting: Guest) -> None:
    async with fleet.serve("b", **ZONE) as b:
        await b.wait_said("entry host does not answer", entry="a")
        async with fleet.serve("a") as a:
            await b.wait_said("answered")
            await a.wait_said("copy of a run is not needed")
        with trio.fail_after(PATIENCE_S):
            await waiting.until("end")


async def test_who_asks_for_an_accepted_run_with_its_key_and_leaves_ends_nothing(
    fleet: Fleet, waiting: Guest
) -> None:
    """Where it is asked for it is posted again, while the host that keeps it is not there."""
    async with fleet.serve("b", **ZONE) as b:
        await b.http.post("/host/drain")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(Posted().post, b, SOUTH, **KEY))
            with trio.fail_after(PATIENCE_S):
                while "fleet_waiting 1.0" not in (await b.http.get("/metrics")).text:
                    pass
            nursery.cancel_scope.cancel()
        async with fleet.serve("a") as a:
            await b.http.post("/host/resume")
            await b.wait_said("answered")
            await a.wait_said("copy of a run is not needed")
        with trio.fail_after(PATIENCE_S):
            await waiting.until("end")
