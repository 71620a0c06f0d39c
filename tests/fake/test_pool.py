"""The warm pool: VMs that are ready before anybody asks for one."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

from supervisor.runs.admission import Resources
from supervisor.state.record import EventKind
from tests.support.clones import (
    COLD,
    POOL_STEPS,
    SMALL,
    events,
    guest_of,
    guests_of,
    is_clone,
    metrics,
    pool,
    pooling,
    post,
    ready,
    run,
    show,
    timing,
    until,
)
from tests.support.world import SetClock

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return pooling(world)


# --- filled, taken, filled again ------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, COLD], ids=["clones", "cold"])
async def test_run_takes_one_and_the_pool_is_filled_again(
    world: World, settings: dict[str, str]
) -> None:
    async with world.serve(**settings) as supervisor:
        waiting = await pool(supervisor.http, 2)
        for vm_id in waiting:
            shown = await show(supervisor.http, vm_id)
            assert (shown["purpose"], shown["state"]) == ("pool", "running")
            assert is_clone(shown) is (not settings)
            assert (await supervisor.http.get(f"/vms/{vm_id}/reply")).status_code == 409
        answer = await post(supervisor.http, b"mine")
        assert answer.status_code == 200
        assert world.received(answer.json()["computation"]) == b"mine"
        taken = answer.json()["id"]
        assert taken in waiting
        assert list(timing(answer)) == [*POOL_STEPS, "total"]
        shown = await show(supervisor.http, taken)
        assert (shown["purpose"], shown["relay"]["state"]) == ("run", "answered")
        assert list(shown["phases_s"]) == POOL_STEPS
        (stays,) = set(waiting) - {taken}
        again = await pool(supervisor.http, 2)
        assert stays in again
        assert taken not in again
        guests = await guests_of(world, [taken, stays])
        await guests[0].until("Run")
        assert guests[0].count("Renew") == (not settings)
        await supervisor.http.delete(f"/vms/{stays}")
        await guests[1].until("end")
        assert guests[1].count("Run") == 0


@pytest.mark.parametrize("settings", [{}, COLD], ids=["clones", "cold"])
@pytest.mark.parametrize("health", ["good", "silence"])
async def test_agent_that_waits_has_answered_once(
    world: World, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], health: str
) -> None:
    """Its first answer takes longest. It is not waited for without end."""
    world.hasten(agent_warm_up_s=0.1 if health == "silence" else math.inf)
    world.scenario(health=health)
    async with world.serve(**settings) as supervisor:
        guests = await guests_of(world, await pool(supervisor.http, 2))
        taken = (await run(supervisor.http))["id"]
        (mine,) = [guest for guest in guests if guest.vm_id == taken]
        await mine.until("Run")
        # One that was given up may not have reached it.
        assert mine.count("Check") in ((1,) if health == "good" else (0, 1))


async def test_no_run_waits_for_an_agents_first_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hasten(agent_warm_up_s=math.inf)
    world.scenario(health="silence")
    settings = {**COLD, "MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "1"}
    async with world.serve(**settings) as supervisor:
        guest = await world.guest()
        await guest.until("Check")
        assert (await run(supervisor.http))["id"] == guest.vm_id
        await guest.until("Run")


async def test_run_goes_before_what_fills_the_pool_again(world: World) -> None:
    interval_s = 0.5
    settings = {**COLD, "MANAGER_POOL_SIZE": "1", "MANAGER_POOL_INTERVAL": f"{interval_s}s"}
    async with world.serve(**settings) as supervisor:
        await pool(supervisor.http, 1)
        asked_at = datetime.now(UTC)
        taken = (await run(supervisor.http))["id"]
        (after,) = await pool(supervisor.http, 1, taken)
        created_at = datetime.fromisoformat((await show(supervisor.http, after))["created_at"])
        # Shown to the millisecond.
        assert (created_at - asked_at).total_seconds() >= interval_s - 0.001


async def test_no_vm_is_given_to_two(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="20", **COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        answers: list[dict[str, Any]] = []

        async def one(computation: bytes) -> None:
            answers.append((await post(supervisor.http, computation)).json())

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, b"%d" % number)
        assert len({one["id"] for one in answers}) == 6
        assert len({one["computation"] for one in answers}) == 6
        assert set(waiting) < {one["id"] for one in answers}
        for guest in await guests_of(world, [one["id"] for one in answers]):
            await guest.until("Run")
            await supervisor.http.delete(f"/vms/{guest.vm_id}")
            await guest.until("end")
            assert guest.count("Run") == 1


async def test_pool_in_the_metrics(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        await pool(supervisor.http, 2)
        before = await metrics(supervisor.http)
        assert before['qmp_supervisor_pool{state="ready"}'] == 2
        assert before['qmp_supervisor_pool{state="coming"}'] == 0
        assert before['qmp_supervisor_vms{state="running"}'] == 2
        assert before['qmp_supervisor_runs_total{outcome="answered"}'] == 0
        await run(supervisor.http)
        await pool(supervisor.http, 2)
        after = await metrics(supervisor.http)
        outcomes = [after[name] for name in after if name.startswith("qmp_supervisor_runs_total")]
        assert after['qmp_supervisor_runs_total{outcome="answered"}'] == sum(outcomes) == 1
        assert after["qmp_supervisor_run_seconds_count"] == 1


async def test_pool_that_is_coming(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(**COLD) as supervisor:
        guest = await world.guest()
        await guest.until("cont")
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_pool{state="ready"}'] == 0
        assert counted['qmp_supervisor_pool{state="coming"}'] == 1
        # One at a time: the second is not begun before the first is ready.
        assert len((await supervisor.http.get("/vms")).json()["vms"]) == 1
        world.scenario()
        await guest.order("start-agent", kind="recorder")
        assert guest.vm_id in await pool(supervisor.http, 2)


async def test_no_pool_by_default(world: World) -> None:
    world.settings = {**SMALL, **COLD}
    async with world.serve() as supervisor:
        shown = await run(supervisor.http)
        assert shown["purpose"] == "run"
        assert len((await supervisor.http.get("/vms")).json()["vms"]) == 1
        assert (await world.guest()).vm_id == shown["id"]


# --- and the limits -------------------------------------------------------------------------


async def test_pool_keeps_within_the_limits(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="2", **COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        first = await run(supervisor.http)
        second = await run(supervisor.http)
        assert {first["id"], second["id"]} == set(waiting)
        # All room is the runs': no other was started, and none is.
        assert len((await supervisor.http.get("/vms")).json()["vms"]) == 2
        await supervisor.http.post(f"/vms/{first['id']}/shutdown")
        (new,) = await pool(supervisor.http, 1)
        assert new not in waiting


async def test_run_takes_one_that_still_boots_where_there_is_no_other_room(world: World) -> None:
    world.scenario(agent="none")
    settings = {**COLD, "MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "1"}
    async with world.serve(**settings) as supervisor:
        guest = await world.guest()
        await guest.until("cont")
        answers: list[Any] = []

        async def one() -> None:
            answers.append(await post(supervisor.http))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until(supervisor.http, f"/vms/{guest.vm_id}", lambda vm: vm["purpose"] == "run")
            await guest.order("start-agent", kind="recorder")
        assert answers[0].status_code == 200
        assert answers[0].json()["id"] == guest.vm_id
        await guest.until("Run")


@pytest.mark.parametrize("queue", ["0", "1"])
@pytest.mark.parametrize("limit", ["MANAGER_MAX_VMS", "MANAGER_QEMU_HOST_FWD_RANGE"])
async def test_run_that_wants_another_kind_has_a_pooled_one_make_room(
    world: World, queue: str, limit: str
) -> None:
    first, _ = world.ports
    most = {"MANAGER_MAX_VMS": "1", "MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{first + 2}"}
    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_QUEUE": queue, limit: most[limit]}
    async with world.serve(**settings) as supervisor:
        await ready(supervisor.http)
        (waiting,) = await pool(supervisor.http, 1)
        answer = await post(supervisor.http, template="off")
        assert answer.status_code == 200, answer.text
        shown = await show(supervisor.http, answer.json()["id"])
        assert (shown["template"], is_clone(shown)) == (None, False)
        assert shown["id"] != waiting


async def test_run_that_is_turned_away_costs_the_pool_nothing(world: World) -> None:
    """Another run waits already for all room that may come free, and no more may wait."""
    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "2", "MANAGER_QUEUE": "1"}
    async with world.serve(**settings) as supervisor:
        await ready(supervisor.http)
        (waiting,) = await pool(supervisor.http, 1)
        admission = supervisor.running.service.vms.admission
        big = attrs.evolve(Resources.of_new_vm(supervisor.running.service.config.qemu), vms=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(admission.enter, big)
            await trio.testing.wait_all_tasks_blocked()
            answer = await post(supervisor.http, template="off")
            assert answer.status_code == 429, answer.text
            (still,) = await pool(supervisor.http, 1)
            assert still == waiting
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wish", ["off", "require"])
async def test_wish_for_a_template_chooses_among_the_pool(world: World, wish: str) -> None:
    async with world.serve(MANAGER_MAX_VMS="20") as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        waiting = await pool(supervisor.http, 2)
        shown = await run(supervisor.http, template=wish)
        assert shown["template"] == (digest if wish == "require" else None)
        assert (shown["id"] in waiting) is (wish == "require")


async def test_host_without_memory_to_spare_has_no_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        total = 2**40
        available = 16 * 2**20 - 1

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    async with world.serve(**COLD) as supervisor:
        shown = await run(supervisor.http)
        assert (await world.guest()).vm_id == shown["id"]
        assert len((await supervisor.http.get("/vms")).json()["vms"]) == 1


# --- what a run wishes for ----------------------------------------------------------------------


async def test_wishes_apply_from_the_taking_on(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        options: dict[str, Any] = {"ttl": "1h", "restart": "on-failure", "keep_disk": True}
        before = await show(supervisor.http, waiting[0])
        assert (before["ttl_s"], before["keep_disk"]) == (None, False)
        first = await post(supervisor.http, key="k", **options)
        again = await post(supervisor.http, key="k", **options)
        assert again.json() == first.json()
        assert (await post(supervisor.http, key="k")).status_code == 409
        shown = await show(supervisor.http, first.json()["id"])
        assert shown["id"] in waiting
        assert (shown["ttl_s"], shown["keep_disk"]) == (3600, True)
        assert shown["restart"]["policy"] == "on-failure"
        await supervisor.http.post(f"/vms/{shown['id']}/shutdown")
        assert (world.tmp / shown["id"] / "overlay.qcow2").exists()


async def test_time_to_live_is_counted_from_the_taking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.clock = clock = SetClock(1000.0)
    world.hasten(ttl_sleep_s=0.01)
    async with world.serve(MANAGER_POOL_MAX_AGE="24h", **COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        clock.now_s += 7200
        answer = await post(supervisor.http, ttl="1h", restart="never")
        assert answer.json()["id"] in waiting
        vm = supervisor.vm(answer.json()["id"])
        # It has run for two hours, and its hour has just begun.
        assert vm.record.first_ran_s == clock.now_s
        assert (vm.uptime_s or 0) >= 7200
        await supervisor.http.get("/health")
        assert vm.end_request is None
        clock.now_s += 3601
        await vm.wait_ended()
        assert vm.status.reason == "guest-shutdown"


async def test_time_to_live_of_the_settings_is_no_matter_to_the_pool(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.clock = clock = SetClock(1000.0)
    world.hasten(ttl_sleep_s=0.01)
    settings = {"MANAGER_TTL": "1h", "MANAGER_POOL_MAX_AGE": "24h", **COLD}
    async with world.serve(**settings) as supervisor:
        waiting = await pool(supervisor.http, 2)
        clock.now_s += 7200
        shown = await run(supervisor.http)
        assert shown["ttl_s"] == 3600
        assert shown["id"] in waiting
        clock.now_s += 3601
        await supervisor.vm(shown["id"]).wait_ended()
        (stays,) = set(waiting) - {shown["id"]}
        assert (await show(supervisor.http, stays))["state"] == "running"


async def test_restart_of_one_that_was_taken(world: World) -> None:
    async with world.serve(MANAGER_RESTART_BACKOFF="1ms") as supervisor:
        await ready(supervisor.http)
        await pool(supervisor.http, 2)
        answer = await post(supervisor.http, b"again", restart="on-failure")
        vm_id = answer.json()["id"]
        guest = await guest_of(world, vm_id)
        await guest.until("Run")
        await guest.exit(-9)
        again = await guest_of(world, vm_id)
        assert world.received((await again.until("Run"))["digest"]) == b"again"
        assert again.count("Renew") == 0
        assert len(events(world, vm_id, "restarting")) == 1


async def test_run_that_is_not_waited_for(world: World) -> None:
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        vm_id = await supervisor.begin(b"later")
        assert vm_id in waiting
        await until(supervisor.http, f"/vms/{vm_id}", lambda vm: vm["relay"]["state"] == "answered")


async def test_run_that_its_agent_refuses(world: World) -> None:
    world.scenario(agent="status", status=("INVALID_ARGUMENT", "nonsense"))
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        refused = await post(supervisor.http)
        assert refused.status_code == 502
        assert refused.json()["agent_message"] == "nonsense"
        ids = {one["id"] for one in (await supervisor.http.get("/vms")).json()["vms"]}
        (vm_id,) = [vm_id for vm_id in waiting if supervisor.vm(vm_id).record.relay == "failed"]
        await supervisor.vm(vm_id).wait_ended()
        assert vm_id in ids
        assert len(await pool(supervisor.http, 2)) == 2


async def test_caller_that_goes_away_takes_the_pooled_vm_along(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve(**COLD) as supervisor:
        waiting = await pool(supervisor.http, 2)
        guests = await guests_of(world, waiting)
        async with trio.open_nursery() as nursery:
            with supervisor.running.service.journal.events.subscribe() as news:
                nursery.start_soon(post, supervisor.http)
                while (event := await news.receive()).kind is not EventKind.RELAY:
                    pass
            taken = str(event.vm_id)
            assert event.data["state"] == "sent"
            nursery.cancel_scope.cancel()
        await supervisor.vm(taken).wait_ended()
        await guests[waiting.index(taken)].until("end")
        assert taken not in await pool(supervisor.http, 2)
