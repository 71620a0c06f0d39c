"""Held clones: restored, and stopped before their first instruction until a run takes one."""

from __future__ import annotations

import errno
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio

from supervisor.config import OnStop
from supervisor.errors import Busy
from supervisor.state.record import EventKind, RelayState
from supervisor.state.store import Store
from supervisor.state.vm_dir import VmDir
from supervisor.vm.console import reading
from tests.fake.test_cli import cli
from tests.support.clones import (
    CLONE_STEPS,
    COLD,
    HELD_STEPS,
    IMPATIENT,
    ask_metric,
    change,
    declare,
    events,
    guest_of,
    guests_of,
    held,
    holding,
    is_clone,
    metrics,
    pool,
    post,
    ready,
    run,
    show,
    timing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.state.record import Event, Record
    from tests.support.world import World


@pytest.fixture
def world(world: World) -> World:
    return holding(world)


async def test_run_takes_one_and_another_is_held(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        for vm_id in waiting:
            shown = await show(supervisor.http, vm_id)
            assert (shown["purpose"], shown["state"]) == ("held", "prelaunch")
            assert is_clone(shown)
            assert shown["owner"] is None
        answer = await post(supervisor.http, b"mine")
        assert answer.status_code == 200, answer.text
        assert world.received(answer.json()["computation"]) == b"mine"
        taken = answer.json()["id"]
        assert taken == waiting[0]
        assert list(timing(answer)) == [*HELD_STEPS, "total"]
        shown = await show(supervisor.http, taken)
        assert (shown["purpose"], shown["relay"]["state"]) == ("run", "answered")
        assert list(shown["phases_s"]) == HELD_STEPS
        again = await held(supervisor.http, 2)
        assert waiting[1] in again
        guest = await guest_of(world, taken)
        await guest.until("Run")
        assert (guest.count("cont"), guest.count("Renew")) == (1, 1)
        assert len(events(world, taken, "taken")) == 1


async def test_guest_of_one_never_ran(world: World) -> None:
    """Nor was it spoken to."""
    async with world.serve() as supervisor:
        (first, _) = await held(supervisor.http, 2)
        await supervisor.http.delete(f"/vms/{first}")
        guest = await guest_of(world, first)
        await guest.until("end")
        assert [guest.count(what) for what in ("cont", "Renew", "Run")] == [0, 0, 0]
        await held(supervisor.http, 2)  # and it is replaced


async def test_it_is_not_listed_unless_asked_for(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        assert [one["id"] for one in listed] == []
        listed = (await supervisor.http.get("/vms?purpose=held&purpose=run")).json()["vms"]
        assert [one["id"] for one in listed] == waiting


async def test_command_finds_one_by_its_id(world: World) -> None:
    async with world.serve() as supervisor:
        (first, second) = await held(supervisor.http, 2)
        assert first.encode() not in (await cli(supervisor)("ls")).stdout
        assert first.encode() in (await cli(supervisor)("ls", "--for", "held")).stdout
        shown = await cli(supervisor)("show", first, "--json")
        assert json.loads(shown.stdout)["purpose"] == "held"
        gone = await cli(supervisor)("rm", second)
        assert gone.returncode == 0, gone.stderr
        assert second not in await held(supervisor.http, 2)


@pytest.mark.parametrize("action", ["pause", "resume", "reset"])
async def test_nobody_may_let_it_run(world: World, action: str) -> None:
    async with world.serve() as supervisor:
        first, _ = await held(supervisor.http, 2)
        answer = await supervisor.http.post(f"/vms/{first}/{action}")
        assert answer.status_code == 409
        assert "held until a run takes it" in answer.json()["detail"]
        assert (await show(supervisor.http, first))["state"] == "prelaunch"


async def test_nobody_has_its_console(world: World) -> None:
    """Who opened it now would keep it when a run with parties has the VM."""
    async with world.serve(MANAGER_POOL_SIZE="1") as supervisor:
        first, _ = await held(supervisor.http, 2)
        (pooled,) = await pool(supervisor.http, 1)
        for vm_id in (first, pooled):
            with (
                pytest.raises(Busy, match="no console until a run has it"),
                reading(supervisor.vm(vm_id), "operator"),
            ):
                pass


async def test_run_of_another_kind_takes_none(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        cold = await run(supervisor.http, template="off")
        assert cold["id"] not in waiting
        assert not is_clone(cold)
        assert (await held(supervisor.http, 2)) == waiting


async def test_run_that_requires_a_template_takes_one(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        assert (await run(supervisor.http, template="require"))["id"] == waiting[0]


async def test_runs_at_once_share_none(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        taken = []

        async def one() -> None:
            taken.append(await run(supervisor.http))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert len({vm["id"] for vm in taken}) == 5
        steps = [list(vm["phases_s"]) for vm in taken if vm["id"] in waiting]
        assert steps == [HELD_STEPS] * 2
        others = [vm for vm in taken if vm["id"] not in waiting]
        assert all(list(vm["phases_s"]) in (CLONE_STEPS, HELD_STEPS) for vm in others)


async def test_run_without_room_takes_theirs(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="2", MANAGER_QUEUE="0") as supervisor:
        waiting = await held(supervisor.http, 2)
        cold = await run(supervisor.http, template="off")
        (stays,) = await held(supervisor.http, 1)
        assert stays == waiting[0]
        assert cold["state"] == "running"
        assert (await run(supervisor.http))["id"] == stays
        assert (await post(supervisor.http)).status_code == 429


async def test_pool_goes_before_them(world: World) -> None:
    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_POOL_INTERVAL": "1ms", "MANAGER_MAX_VMS": "2"}
    async with world.serve(**settings) as supervisor:
        (pooled,) = await pool(supervisor.http, 1)
        (waits,) = await held(supervisor.http, 1)
        assert (await run(supervisor.http))["id"] == pooled
        await pool(supervisor.http, 1)  # in the held clone's room
        assert (await held(supervisor.http, 0)) == []
        assert (await supervisor.http.get(f"/vms/{waits}")).status_code == 404


@pytest.mark.parametrize("settings", [COLD, {"MANAGER_HELD_CLONES": "0"}], ids=["cold", "none"])
async def test_there_may_be_none(world: World, settings: dict[str, str]) -> None:
    async with world.serve(**settings) as supervisor:
        if settings is not COLD:
            await ready(supervisor.http)
        await run(supervisor.http)
        assert (await held(supervisor.http, 0)) == []


async def test_those_of_an_earlier_image_are_thrown_away(world: World) -> None:
    world.hasten(template_look_s=0.05, pool_look_s=0.05)
    async with world.serve() as supervisor:
        before = await held(supervisor.http, 2)
        first = await ready(supervisor.http)
        change(world.image)
        declare(world.image)
        await ready(supervisor.http, other_than=first["digest"])
        after = await held(supervisor.http, 2, *before)
        assert (await run(supervisor.http))["id"] == after[0]
        for vm_id in before:
            assert (await supervisor.http.get(f"/vms/{vm_id}")).status_code == 404


async def test_none_of_an_earlier_image_is_taken(world: World) -> None:
    """Not even before anybody has looked."""
    world.hasten(template_look_s=3600.0, pool_look_s=3600.0)
    async with world.serve() as supervisor:
        before = await held(supervisor.http, 2)
        change(world.image)
        declare(world.image)
        assert (await run(supervisor.http))["id"] not in before


async def test_one_that_dies_is_replaced(world: World) -> None:
    world.hasten(pool_look_s=0.05)
    async with world.serve() as supervisor:
        first, second = await held(supervisor.http, 2)
        await (await guest_of(world, first)).exit(-9)
        await supervisor.vm(first).wait_ended()
        assert second in await held(supervisor.http, 2)


@pytest.mark.parametrize(
    "fault",
    [{"refuses": {"cont": ("GenericError", "not now")}}, {"swallows": ("cont",)}],
    ids=["refuses", "hangs"],
)
async def test_one_that_does_not_run_is_booted_from_cold(
    world: World, fault: dict[str, Any]
) -> None:
    """The computation has reached nobody, so the run goes on."""
    async with world.serve(**IMPATIENT) as supervisor:
        good = await held(supervisor.http, 2)
        world.scenario(**fault)
        for vm_id in good:
            await supervisor.http.delete(f"/vms/{vm_id}")
        bad = await held(supervisor.http, 2, *good)
        world.scenario()
        vm = await run(supervisor.http)
        assert vm["id"] == bad[0]
        assert not is_clone(vm)
        assert len(events(world, bad[0], "fallback")) == 1
        assert "held" not in vm["phases_s"]
        assert vm["relay"]["state"] == "answered"


async def test_stop_ends_them(world: World) -> None:
    async with world.serve() as supervisor:
        waiting = await held(supervisor.http, 2)
        guests = await guests_of(world, waiting)
        with structlog.testing.capture_logs() as lines:
            supervisor.running.stop(OnStop.END)
            for guest in guests:
                await guest.until("end")
                assert guest.count("cont") == 0
            for vm_id in waiting:
                await supervisor.vm(vm_id).wait_over()
    assert not [line for line in lines if line["log_level"] in ("warning", "error")]


async def test_next_supervisor_ends_what_was_held(world: World) -> None:
    """A QEMU with ``-incoming`` that nobody waits for must not stay."""
    async with world.serve_apart() as apart:
        waiting = await held(apart.http, 2)
        guests = await guests_of(world, waiting)
        await apart.kill()
    async with world.serve() as supervisor:
        for guest in guests:
            await guest.until("end")
            assert guest.count("cont") == 0
        again = await held(supervisor.http, 2, *waiting)
        assert not set(again) & set(waiting)
        for vm_id in waiting:
            assert not (world.tmp / vm_id).exists()


async def test_heartbeats_change_nothing(world: World) -> None:
    async with world.serve(MANAGER_HEARTBEAT="20ms") as supervisor:
        first, _ = await held(supervisor.http, 2)
        guest = await guest_of(world, first)
        for _ in range(3):
            await guest.until("query-status")
        assert (await show(supervisor.http, first))["state"] == "prelaunch"


async def test_in_the_metrics(world: World) -> None:
    async with world.serve() as supervisor:
        await held(supervisor.http, 2)
        await run(supervisor.http)
        found = await metrics(supervisor.http)
        assert found['qmp_supervisor_step_seconds_count{start="held",step="relay"}'] == 1


# --- what may come between ------------------------------------------------------------------


async def test_no_run_waits_while_one_is_being_made(world: World) -> None:
    """It takes room before it is listed; then it gives way, as those that are listed do."""
    settings = {"MANAGER_MAX_VMS": "2", "MANAGER_HELD_CLONES": "1", "MANAGER_QUEUE": "0"}
    async with world.serve(**settings) as supervisor:
        for _ in range(5):
            await held(supervisor.http, 1)
            # The answer to the first is when another one is begun to be held.
            first = await post(supervisor.http)
            second = await post(supervisor.http, template="off")
            assert (first.status_code, second.status_code) == (200, 200), second.text
            for answer in (first, second):
                await supervisor.http.delete(f"/vms/{answer.json()['id']}")


async def test_dead_one_is_given_to_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its exit on, though it is not on record yet."""
    cleared = threading.Event()
    plain = VmDir.clear

    def clear(self: VmDir, *, disks: bool) -> None:
        cleared.wait(10)
        plain(self, disks=disks)

    async with world.serve() as supervisor:
        first, second = await held(supervisor.http, 2)
        monkeypatch.setattr(VmDir, "clear", clear)
        await (await guest_of(world, first)).exit(-9)
        await supervisor.vm(first).until(lambda: not supervisor.vm(first).is_held)
        assert (await run(supervisor.http))["id"] == second
        cleared.set()


async def test_one_that_dies_as_it_is_put_on_record(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run asks for decides, and not what the held clone was made by."""
    dead = threading.Event()
    plain = Store.write

    def write(self: Store, record: Record, events: Sequence[Event]) -> None:
        if any(event.kind is EventKind.TAKEN for event in events):
            dead.wait(10)
        plain(self, record, events)

    async with world.serve() as supervisor:
        first, _ = await held(supervisor.http, 2)
        vm, guest = supervisor.vm(first), await guest_of(world, first)
        monkeypatch.setattr(Store, "write", write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, supervisor.http)
            await vm.until(lambda: vm.claimed)
            await guest.exit(-9)
            await guest.until("end")
            dead.set()
        assert vm.record.relay is RelayState.ANSWERED
        assert len(events(world, first, "fallback")) == 1


@pytest.mark.parametrize("kind", ["held", "pool"])
async def test_taken_is_on_disk_or_the_run_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Else the next supervisor would give a VM that has a computation to another run."""
    full = False
    plain = Store.write

    def write(self: Store, record: Record, events: Sequence[Event]) -> None:
        if full and record.id == first:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, record, events)

    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_HELD_CLONES": "0"} if kind == "pool" else {}
    async with world.serve(**settings) as supervisor:
        first = (await (pool(supervisor.http, 1) if settings else held(supervisor.http, 2)))[0]
        monkeypatch.setattr(Store, "write", write)
        guest, full = await guest_of(world, first), True
        answer = await post(supervisor.http, b"mine")
        assert answer.status_code == 500, answer.text
        await guest.until("end")
        assert guest.count("Run") == 0
        full = False
        await supervisor.vm(first).wait_ended()
        assert not (world.tmp / first / "computation").exists()


async def test_killed_ones_are_not_the_templates_fault(world: World) -> None:
    world.soon()
    async with world.serve(MANAGER_HELD_CLONES="3") as supervisor:
        waiting = await held(supervisor.http, 3)
        for guest in await guests_of(world, waiting):
            await guest.exit(-9)
        for vm_id in waiting:
            await supervisor.vm(vm_id).wait_ended()
        one = await ready(supervisor.http)
        assert one["failures"] == 0
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_clones_total{outcome="fallback"}'] == 0
        await held(supervisor.http, 3, *waiting)


async def test_none_is_made_of_a_template_of_before(world: World) -> None:
    world.hasten(template_look_s=0.2, pool_look_s=0.01)
    async with world.serve() as supervisor:
        before = await held(supervisor.http, 2)
        first = await ready(supervisor.http)
        change(world.image)
        declare(world.image)
        await ready(supervisor.http, other_than=first["digest"])
        await held(supervisor.http, 2, *before)
        listed = (await supervisor.http.get("/vms?purpose=held")).json()["vms"]
        assert [one["ended"] for one in listed] == [False, False]


async def test_failed_ones_are_listed_and_few(world: World) -> None:
    world.soon()
    async with world.serve(MANAGER_CLONE_TIMEOUT="2s") as supervisor:
        before = await held(supervisor.http, 2)
        world.scenario(restore="fails")
        for vm_id in before:
            await supervisor.http.delete(f"/vms/{vm_id}")
        await ask_metric(supervisor.http, 'qmp_supervisor_templates{state="ready"}', 0)
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        crashed = [one for one in listed if one["purpose"] == "held"]
        assert [one["state"] for one in crashed] == ["crashed"]
        assert crashed[0]["error"]


@pytest.mark.parametrize("lost", [["vm.json"], ["vm.json", "events.jsonl"]])
async def test_one_whose_record_is_lost_is_booted_for_nobody(world: World, lost: list[str]) -> None:
    async with world.serve_apart(MANAGER_HELD_CLONES="1") as apart:
        (first,) = await held(apart.http, 1)
        guest = await guest_of(world, first)
        await apart.kill()
    for name in lost:
        (world.tmp / first / name).unlink()
    async with world.serve(MANAGER_HELD_CLONES="0") as supervisor:
        await guest.until("end")
        assert guest.count("cont") == 0
        for vm in supervisor.running.service.vms:
            await vm.wait_ended()
            assert vm.record.first_ran_s is None
