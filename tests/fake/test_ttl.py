"""A VM's time to live: asked for, counted, warned of, and over."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.qemu.host import Clock
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    import httpx

    from tests.support.world import Supervisor, World


async def post(supervisor: Supervisor, **members: Any) -> httpx.Response:
    """A run that is not waited for."""
    body = {"computation": "aGk=", **members}
    return await supervisor.http.post("/run", json=body, headers={"Prefer": "respond-async"})


def events(world: World, vm_id: str) -> list[dict[str, Any]]:
    lines = (world.tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "ttl",
    ["", "soon", "5", "1h30", "-1h", "0s", "PT0S", "P1M", "1h PT1H", "9999999h", 3600, True, []],
)
async def test_what_is_no_time_to_live(world: World, ttl: object) -> None:
    async with world.serve() as supervisor:
        refused = await post(supervisor, ttl=ttl)
        assert refused.status_code == 400
        assert refused.json()["member"] == "ttl"
        assert "ttl" in refused.json()["detail"]
        assert not supervisor.running.service.vms


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("1h30m", 5400), ("PT1H30M", 5400), ("P1DT1S", 86401), ("1500ms", 1.5)]
)
async def test_time_to_live_is_shown(world: World, ttl: str, seconds: float) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_TTL="2h") as supervisor:
        vm_id = (await post(supervisor, ttl=ttl)).json()["id"]
        assert (await supervisor.http.get(f"/vms/{vm_id}")).json()["ttl_s"] == seconds


async def test_end_is_warned_of_and_told_why(world: World) -> None:
    async with world.serve(MANAGER_TTL_WARNING="100ms") as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="300ms")).json()["id"])
        await vm.wait_ended()
        told = {event["event"]: event for event in events(world, vm.id)}
        assert 0 <= told["expiring"]["in_s"] <= 0.1
        assert told["expiring"]["sequence"] < told["ending"]["sequence"]
        assert told["ending"]["mode"] == "graceful"
        assert "time to live of 0.3 s" in told["ending"]["why"]


async def test_end_of_its_time_is_no_failure_of_a_vm_that_has_answered(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="1h")).json()["id"])
        guest = await world.guest()
        await vm.wait_answered()
        await supervisor.leave(guest)
    file = world.tmp / vm.id / "vm.json"
    content = json.loads(file.read_text())
    content["vm"]["options"]["ttl_s"] = 0.001
    file.write_text(json.dumps(content))
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm.id)
        await vm.wait_ended()
        told = {event["event"]: event for event in events(world, vm.id)}
        assert "time to live" in told["ending"]["why"]
        assert (vm.status.state, vm.record.error) == (VmState.SHUTOFF, None)


async def test_life_shorter_than_its_warning(world: World) -> None:
    async with world.serve(MANAGER_TTL_WARNING="1h") as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="1m")).json()["id"])
        await vm.until(lambda: "expiring" in vm.record.phases)
        (warning,) = (one for one in events(world, vm.id) if one["event"] == "expiring")
        assert 0 < warning["in_s"] <= 60
        # It came before the agent's answer, and yet it is no step on the way there.
        answer = await supervisor.http.get(f"/vms/{vm.id}")
        assert "expiring" not in answer.json()["phases_s"]
        assert vm.status.state is VmState.RUNNING


async def test_warned_of_once_and_counted_from_the_same_moment(world: World) -> None:
    async with world.serve(MANAGER_TTL_WARNING="1h") as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="1m")).json()["id"])
        guest = await world.guest()
        await vm.until(lambda: "expiring" in vm.record.phases)
        first_ran_s = vm.record.first_ran_s
        await supervisor.leave(guest)
    file = world.tmp / vm.id / "vm.json"
    content = json.loads(file.read_text())
    assert content["vm"]["first_ran_s"] == first_ran_s
    content["vm"]["first_ran_s"] = Clock().boottime_s() - 59.5  # as if time had passed
    file.write_text(json.dumps(content))
    async with world.serve(MANAGER_TTL_WARNING="1h", MANAGER_TTL="9h") as supervisor:
        vm = supervisor.vm(guest.vm_id)
        assert vm.record.options.ttl_s == 60
        await vm.wait_ended()
        kinds = [event["event"] for event in events(world, vm.id)]
        assert kinds.count("expiring") == 1
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


async def test_held_guest_is_let_go_to_be_shut_down(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="1s")).json()["id"])
        await world.guest()
        await supervisor.wait_state(vm.id, "running")
        await supervisor.http.post(f"/vms/{vm.id}/pause")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


async def test_restart_gives_no_second_life(world: World) -> None:
    async with world.serve(MANAGER_RESTART_BACKOFF="1ms") as supervisor:
        answer = await post(supervisor, ttl="1m", restart="on-failure")
        vm = supervisor.vm(answer.json()["id"])
        first = await world.guest()
        await first.until("Run")
        first_ran_s = vm.record.first_ran_s
        await first.exit(-9)
        second = await world.guest()
        await second.until("Run")
        assert vm.record.first_ran_s == first_ran_s
        assert (vm.record.running_since_s or 0.0) > (first_ran_s or 0.0)


async def test_vm_without_a_time_to_live(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["ttl_s"] is None
        assert "expiring" not in shown["phases_s"]
