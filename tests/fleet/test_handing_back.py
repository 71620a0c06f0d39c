"""Hosts that are stopped or drained, callers who leave, and a broker that goes."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from supervisor import config
from supervisor.api.auth import tokens
from supervisor.caller import ANYBODY, Role
from supervisor.errors import HandedBack
from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run
from supervisor.membership import open_fleet
from supervisor.qemu.host import Clock
from supervisor.state.record import RunOptions
from tests.fleet.posting import SOUTH, ZONE, Posted, record_of
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart, Guest


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
        fleet.worlds["b"].scenario()  # it may be the one that has the run next
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


async def test_what_comes_to_a_host_that_is_being_drained_by_then_is_given_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fleet.worlds["a"]
    member = open_fleet(config.load(world.environ(**fleet.brokers.settings("a"))), Clock())
    assert member
    run = Run(id="one", entry="b", needs=Needs()).claimed("a", 0)
    member.records._known["one"] = run, 1
    given_back = []

    async def hand_back(*claim: Any) -> None:
        given_back.append(claim)

    monkeypatch.setattr(member.owner, "hand_back", hand_back)  # there is no broker to tell
    await trio.testing.wait_all_tasks_blocked()  # NATS has been started
    async with world.serve() as supervisor:
        member._service = supervisor.running.service
        member.drain()
        with pytest.raises(HandedBack):
            await member.start(b"{}", RunOptions(), ANYBODY, ("one", 1))
        assert given_back == [("one", 1)]
        assert not list(supervisor.running.service.vms)


@asynccontextmanager
async def waiting_at_b(fleet: Fleet, posted: Posted) -> AsyncIterator[tuple[Apart, Apart, Guest]]:
    """A run whose guest at b runs and whose agent is not there yet; a could take it."""
    fleet.worlds["b"].scenario(agent="none")
    async with (
        fleet.serve("a", **ZONE) as a,
        fleet.serve("b", **ZONE) as b,
        trio.open_nursery() as nursery,
    ):
        await a.wait_said("host joined", host="b")
        await b.wait_said("host joined", host="a")
        await a.http.post("/host/drain")
        nursery.start_soon(posted.post, a, SOUTH)
        guest = await fleet.worlds["b"].guest()
        await guest.until("cont")
        await b.wait_said("state", state="running")  # else it is one whose launch was interrupted
        await a.http.post("/host/resume")
        yield a, b, guest


async def test_a_restart_keeps_what_waits_for_its_agent(fleet: Fleet) -> None:
    posted = Posted()
    async with waiting_at_b(fleet, posted) as (a, b, guest):
        vm = await record_of(b)
        b.process.send_signal(signal.SIGTERM)
        assert await b.process.wait() == 0
        async with fleet.serve("b", **ZONE):
            await guest.order("start-agent", kind="recorder")
            answer = await posted.answer()
            assert answer.status_code == 200, answer.text
            assert answer.json()["id"] == vm["id"]
            assert not [line for line in a.log if line["message"] in ("host left", "host lost")]
        assert not (await a.http.get("/vms?host=self")).json()["vms"]


async def test_a_supervisor_that_stops_with_its_vms_gives_back_what_no_agent_has(
    fleet: Fleet,
) -> None:
    posted = Posted()
    async with waiting_at_b(fleet, posted) as (a, b, guest):
        b.process.send_signal(signal.SIGINT)
        answer = await posted.answer()
        assert answer.status_code == 200, answer.text
        assert (await record_of(a))["id"] == answer.json()["id"]
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")
            assert await b.process.wait() == 0


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


async def test_a_run_whose_guest_has_not_run_outlives_its_supervisor(fleet: Fleet) -> None:
    """The next supervisor ends what was being launched; no agent can have had its run."""
    fleet.worlds["b"].scenario(swallows=("cont",))
    posted = Posted()
    async with fleet.serve("a") as a, trio.open_nursery() as nursery:
        async with fleet.serve("b", **ZONE) as b:
            await a.wait_said("host joined", host="b")
            nursery.start_soon(posted.post, a, SOUTH)
            guest = await fleet.worlds["b"].guest()
            await guest.until("swallowed")
            await b.kill()
        fleet.worlds["b"].scenario()
        async with fleet.serve("b", **ZONE):
            answer = await posted.answer()
            assert answer.status_code == 200, answer.text


async def test_a_caller_that_has_its_quota_is_told_so(fleet: Fleet) -> None:
    """No room that comes free ends that: the run would go from host to host without an end."""
    at = fleet.worlds["a"].tmp
    at.mkdir(mode=0o700)
    _, token = tokens.create(at / "tokens.json", "alice", Role.RUN, None, tokens.now())
    alice = {"Authorization": f"Bearer {token}"}
    quota = {"MANAGER_MAX_VMS_PER_OWNER": "1"}
    async with fleet.serve("a", MANAGER_AUTH="on", **quota) as a, fleet.serve("b", **quota, **ZONE):
        await a.wait_said("host joined", host="b")
        for body in (SOUTH, {"computation": [1]}):
            answer = await a.http.post("/run", json=body, headers=alice)
            assert answer.status_code == 200, answer.text
            for prefer in ("wait", "respond-async"):
                with trio.fail_after(PATIENCE_S):
                    answer = await a.http.post(
                        "/run", json=body, headers=alice | {"Prefer": prefer}
                    )
                assert answer.status_code == 429, answer.text
                assert "you have 1 of the 1 VMs" in answer.json()["detail"]
                assert "Retry-After" not in answer.headers
