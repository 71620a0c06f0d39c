"""Hosts that are lost, cut off, stopped and drained: no run is lost, and none comes twice."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    import httpx

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

SOUTH = {"computation": list(b"south"), "host": {"labels": {"zone": "south"}}}
ZONE = {"MANAGER_FLEET_LABELS": "zone=south"}


class Posted:
    """A run that a test does not wait for at once."""

    def __init__(self) -> None:
        self._answered = trio.Event()
        self._answer: httpx.Response | None = None

    async def post(self, member: Apart, body: dict[str, Any], **headers: str) -> None:
        self._answer = await member.http.post("/run", json=body, headers=headers)
        self._answered.set()

    async def answer(self) -> httpx.Response:
        with trio.fail_after(PATIENCE_S):
            await self._answered.wait()
        assert self._answer is not None
        return self._answer


async def record_of(member: Apart) -> dict[str, Any]:
    """The first VM of a member."""
    (vm,) = (await member.http.get("/vms?host=self")).json()["vms"]
    return dict(vm)


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
        # Back again, it knows the same.
        async with fleet.serve("b", **ZONE) as b:
            vm = await record_of(b)
            assert vm["relay"]["state"] == "interrupted"
            assert vm["state"] == "running"
        assert guest.count("Run") == 1


async def test_what_a_lost_host_had_not_sent_runs_elsewhere(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="none")
    posted = Posted()
    async with fleet.serve("a", **ZONE) as a, trio.open_nursery() as nursery:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            drained = await a.http.post("/host/drain")
            assert drained.json() == {"host": "a", "draining": True, "vms": 0}
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


async def test_a_stopped_host_that_wakes_up_ends_what_became_anothers(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="none")
    posted = Posted()
    async with (
        fleet.serve("a", **ZONE) as a,
        fleet.serve("b", **ZONE) as b,
        trio.open_nursery() as nursery,
    ):
        await a.wait_said("host joined", host="b")
        await a.http.post("/host/drain")
        nursery.start_soon(posted.post, a, SOUTH)
        guest = await fleet.worlds["b"].guest()
        await a.http.post("/host/resume")
        b.process.send_signal(signal.SIGSTOP)
        try:
            await a.wait_said("host lost", becomes="queued")
        finally:
            b.process.send_signal(signal.SIGCONT)
        answer = await posted.answer()
        assert answer.status_code == 200, answer.text
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")
        assert guest.count("Run") == 0


async def test_draining_gives_back_what_no_agent_has(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="none")
    posted = Posted()
    async with (
        fleet.serve("a", **ZONE) as a,
        fleet.serve("b", **ZONE) as b,
        trio.open_nursery() as nursery,
    ):
        await a.wait_said("host joined", host="b")
        await a.http.post("/host/drain")
        nursery.start_soon(posted.post, a, SOUTH)
        guest = await fleet.worlds["b"].guest()
        await a.http.post("/host/resume")
        drained = await b.http.post("/host/drain")
        assert drained.json()["vms"] == 1
        answer = await posted.answer()
        assert answer.status_code == 200, answer.text
        assert (await record_of(a))["id"] == answer.json()["id"]
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")


async def test_without_a_broker_vms_go_on_and_runs_are_refused(fleet: Fleet) -> None:
    async with fleet.serve("a") as a:
        first = await a.run(b"before")
        (server,) = fleet.brokers.servers
        await server.kill()
        await a.wait_said("fleet lost")
        refused = await a.http.post("/run", json={"computation": [1]})
        assert refused.status_code == 503, refused.text
        shown = (await a.http.get(f"/vms/{first['id']}")).json()
        assert shown["state"] == "running"
        await server.start()
        await a.wait_said("fleet reached again")
        await a.run(b"after")


async def test_a_caller_who_leaves_takes_the_run_along(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="silent")
    async with fleet.serve_both(**ZONE) as (a, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(Posted().post, a, SOUTH))
            guest = await fleet.worlds["b"].guest()
            await guest.until("Run")
            nursery.cancel_scope.cancel()
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")


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
            await a.http.post("/host/resume")
            assert not (await a.http.get("/vms?host=self")).json()["vms"]
            await b.kill()
        await a.wait_said("answered", times=2)
        assert len((await a.http.get("/vms?host=self")).json()["vms"]) == 2
        async with fleet.serve("b", **ZONE):
            for _ in range(2):
                guest = await fleet.worlds["b"].guest()
                with trio.fail_after(PATIENCE_S):
                    await guest.until("end")
                assert guest.count("Run") == 0
