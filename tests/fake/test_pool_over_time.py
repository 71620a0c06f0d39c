"""The warm pool: what becomes of those that wait."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from supervisor.config import OnStop
from tests.support.clones import (
    COLD,
    POOL_STEPS,
    change,
    declare,
    gone,
    guests_of,
    metrics,
    pool,
    pooling,
    post,
    run,
    show,
    timing,
    until,
)

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return pooling(world)


# --- what becomes of those that wait --------------------------------------------------------


async def test_one_that_crashes_is_replaced(world: World) -> None:
    world.soon()
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        (guest, _) = await guests_of(world, waiting)
        await guest.exit(-9)
        await supervisor.vm(guest.vm_id).wait_ended()
        new = await pool(supervisor.http, 2)
        assert guest.vm_id not in new
        assert waiting[1] in new
        shown = await show(supervisor.http, guest.vm_id)
        assert (shown["state"], shown["restart"]["count"]) == ("crashed", 0)


@pytest.mark.parametrize("way", ["delete", "shutdown"])
async def test_one_that_somebody_ends_is_replaced(world: World, way: str) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        if way == "delete":
            await supervisor.http.delete(f"/vms/{waiting[0]}")
        else:
            await supervisor.http.post(f"/vms/{waiting[0]}/shutdown")
        new = await pool(supervisor.http, 2)
        assert waiting[0] not in new
        assert waiting[1] in new


async def test_pool_that_cannot_be_filled_does_not_try_all_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each failure it waits for longer."""
    pauses: list[float] = []
    fourth = trio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            fourth.set()
            await trio.sleep_forever()

    monkeypatch.setattr("supervisor.runs.pool.trio", Patched(sleep))
    world.scenario(exits=1, says="no such machine")
    async with world.serve(**COLD) as supervisor:
        await fourth.wait()
        assert pauses == sorted(set(pauses))
        assert pauses[0] >= 1
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        assert [one["state"] for one in listed] == ["crashed"] * 4
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_runs_total{outcome="failed"}'] == 0


class Patched:
    """The library, but for its sleep."""

    def __init__(self, sleep: Any) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


async def test_those_that_are_too_old_are_replaced(world: World) -> None:
    world.soon()
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        for vm in map(supervisor.vm, waiting):
            assert vm.record.first_ran_s is not None
            then_s = vm.record.first_ran_s - 2 * 3600
            vm.record = attrs.evolve(vm.record, first_ran_s=then_s)
        new = await pool(supervisor.http, 2, *waiting)
        assert not set(new) & set(waiting)
        for guest in await guests_of(world, waiting):
            await guest.until("end")
            assert guest.count("Run") == 0


@pytest.mark.parametrize("settings", [{}, COLD], ids=["clones", "cold"])
async def test_those_of_an_earlier_image_are_replaced(
    world: World, settings: dict[str, str]
) -> None:
    world.soon()
    async with world.serve(**settings) as supervisor:
        waiting = await pool(supervisor.http, 2)
        old = (await show(supervisor.http, waiting[0]))["template"]
        change(world.image)
        declare(world.image)
        new = await pool(supervisor.http, 2, *waiting)
        for guest in await guests_of(world, waiting):
            await guest.until("end")
        assert (await run(supervisor.http))["id"] in new
        if old:
            home = world.tmp / "templates"
            await gone(supervisor.http, home / old)


async def test_taken_vm_is_of_the_present_image(world: World) -> None:
    """Also where the change has not been noticed yet."""
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        change(world.image)
        assert (await run(supervisor.http))["id"] not in waiting


# --- the supervisor's end -------------------------------------------------------------------


@pytest.mark.parametrize("way", ["left", "killed"])
@pytest.mark.parametrize("settings", [{}, COLD], ids=["clones", "cold"])
async def test_pool_outlives_its_supervisor(
    world: World, way: str, settings: dict[str, str]
) -> None:
    if way == "left":
        async with world.serve(**settings) as supervisor:
            waiting = await pool(supervisor.http, 2)
            guests = await guests_of(world, waiting)
            await supervisor.leave(*guests)
    else:
        async with world.serve_apart(**settings) as apart:
            waiting = await pool(apart.http, 2)
            guests = await guests_of(world, waiting)
            await apart.kill()
    async with world.serve(**settings) as supervisor:
        assert sorted(await pool(supervisor.http, 2)) == sorted(waiting)
        answer = await post(supervisor.http, b"mine")
        assert answer.json()["id"] in waiting
        assert list(timing(answer)) == [*POOL_STEPS, "total"]
        # Not doubled: who is started next takes the place of the one that was taken.
        assert (await world.guest()).vm_id in await pool(supervisor.http, 2)
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        assert sum(not one["ended"] for one in listed) == 3
        supervisor.running.stop(OnStop.END)
        for guest in guests:
            await guest.until("end")
            # Once more if it was not on record yet.
            assert (guest.count("Renew") > 0) is (not settings)
        assert sum(guest.count("Run") for guest in guests) == 1


async def test_pool_that_is_smaller_now(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        guests = await guests_of(world, waiting)
        await supervisor.leave(*guests)
    async with world.serve(MANAGER_POOL_SIZE="0", **COLD) as supervisor:
        for guest in guests:
            await guest.until("end")
        assert (await run(supervisor.http))["id"] not in waiting


async def test_clones_make_room_for_booted_vms_once_templates_are_off(world: World) -> None:
    """No run of the new settings would take them."""
    async with world.serve() as supervisor:
        waiting = await pool(supervisor.http, 2)
        guests = await guests_of(world, waiting)
        await supervisor.leave(*guests)
    async with world.serve(**COLD) as supervisor:
        for guest in guests:
            await guest.until("end")
        booted = await pool(supervisor.http, 2)
        assert not set(booted) & set(waiting)
        assert (await run(supervisor.http))["id"] in booted


async def test_computation_of_a_pooled_vm_is_not_sent_twice(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve_apart(**COLD) as apart:
        waiting = await pool(apart.http, 2)
        guests = await guests_of(world, waiting)
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        vm_id = answer.json()["id"]
        guest = guests[waiting.index(vm_id)]
        await guest.until("Run")
        await apart.kill()
    world.scenario()
    async with world.serve(**COLD) as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: vm.agent_ready)
        shown = await show(supervisor.http, vm_id)
        assert (shown["purpose"], shown["relay"]["state"]) == ("run", "interrupted")
        assert len(await pool(supervisor.http, 2)) == 2
        await supervisor.http.delete(f"/vms/{vm_id}")
        await guest.until("end")
        assert guest.count("Run") == 1


async def test_stop_ends_the_pool(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        supervisor.running.stop(OnStop.END)
        for guest in await guests_of(world, waiting):
            await guest.until("end")
            assert guest.count("Run") == 0
    async with world.serve(MANAGER_POOL_SIZE="0", **COLD) as supervisor:
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        assert {one["state"] for one in listed} <= {"shutoff"}


async def test_stop_while_it_is_filled(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(**COLD) as supervisor:
        guest = await world.guest()
        await guest.until("cont")
        await supervisor.wait_state(guest.vm_id, "running")
        await supervisor.leave(guest)
    async with world.serve(**COLD) as supervisor:
        row, *_ = (await supervisor.http.get("/vms")).json()["vms"]
        assert (row["id"], row["purpose"]) == (guest.vm_id, "pool")
        supervisor.running.stop(OnStop.END)
        await guest.until("end")


async def test_pooled_vm_that_died_while_nobody_looked(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        guests = await guests_of(world, waiting)
        await supervisor.leave(*guests)
    os.kill(guests[0].pid, signal.SIGKILL)
    await guests[0].until("end")
    async with world.serve(**COLD) as supervisor:
        new = await pool(supervisor.http, 2)
        assert waiting[0] not in new
        assert waiting[1] in new
        shown = await show(supervisor.http, waiting[0])
        assert (shown["state"], shown["purpose"]) == ("crashed", "pool")


async def test_computation_given_to_one_that_still_boots_is_sent_by_the_next(world: World) -> None:
    world.scenario(agent="none")
    settings = {**COLD, "MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "1"}
    async with world.serve_apart(**settings) as apart:
        guest = await world.guest()
        await guest.until("cont")
        await until(apart.http, f"/vms/{guest.vm_id}", lambda vm: vm["state"] == "running")
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        assert answer.json()["id"] == guest.vm_id
        await apart.kill()
    await guest.order("start-agent", kind="recorder")
    async with world.serve(**settings) as supervisor:
        await supervisor.vm(guest.vm_id).wait_answered()
        shown = await show(supervisor.http, guest.vm_id)
        assert (shown["purpose"], shown["relay"]["state"]) == ("run", "answered")
        reply = await supervisor.http.get(f"/vms/{guest.vm_id}/reply")
        assert world.received(reply.text) == b"hi"
        await supervisor.http.delete(f"/vms/{guest.vm_id}")
        await guest.until("end")
        assert guest.count("Run") == 1


async def test_pooled_clone_that_was_not_renewed_is_by_the_next(world: World) -> None:
    world.scenario(clones_agent="none")
    async with world.serve_apart() as apart:
        await (await world.guest()).until("end")  # the builder
        guest = await world.guest()
        await guest.until("cont")
        await until(apart.http, f"/vms/{guest.vm_id}", lambda vm: vm["state"] == "running")
        await apart.kill()
    world.scenario()
    await guest.order("start-agent", kind="recorder")
    async with world.serve() as supervisor:
        assert guest.vm_id in await pool(supervisor.http, 2)
        await supervisor.http.delete(f"/vms/{guest.vm_id}")
        await guest.until("end")
        assert (guest.count("Renew"), guest.count("Run")) == (1, 0)
