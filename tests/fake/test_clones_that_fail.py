"""Clones that do not come up, or whose supervisor goes before they have."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from tests.support.clones import (
    COLD_STEPS,
    IMPATIENT,
    ask_until,
    both_guests,
    clonable,
    events,
    guest_of,
    heard,
    in_state,
    is_clone,
    metrics,
    post,
    ready,
    run,
    show,
    timing,
    until,
)
from tests.support.scenario import ALWAYS

if TYPE_CHECKING:
    from tests.support.guest import Guest
    from tests.support.world import Supervisor, World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return clonable(world)


# --- clones that do not come up -------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "state does not load": {"restore": "fails"},
    "process dies": {"restore": "dies"},
    "restore hangs": {"restore": "hangs"},
    "QEMU refuses": {"refuses": {"migrate-incoming": ("GenericError", "not this machine")}},
    "no agent": {"clones_agent": "none"},
    "agent is deaf": {"clones_agent": "deaf"},
    "agent does not renew itself": {"renew": "refuse"},
    "agent is silent": {"renew": "silence"},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_clone_that_does_not_come_up_is_booted_from_cold(world: World, fault: str) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        world.scenario(**FAULTS[fault])
        answer = await post(supervisor.http, b"once")
        assert answer.status_code == 200, answer.text
        assert world.received(answer.json()["computation"]) == b"once"
        shown = await show(supervisor.http, answer.json()["id"])
        assert not is_clone(shown)
        assert (shown["template"], shown["state"], shown["error"]) == (None, "running", None)
        assert shown["restart"]["count"] == 0
        assert shown["exit_code"] is None
        assert list(shown["phases_s"]) == COLD_STEPS
        assert list(timing(answer)) == [*COLD_STEPS, "total"]
        (told,) = events(world, shown["id"], "fallback")
        assert told["template"] == digest
        assert told["why"]
        await supervisor.http.post(f"/vms/{shown['id']}/shutdown")
        first, second = await both_guests(world, shown["id"])
        assert (await heard(first, "Run"), await heard(second, "Run")) == (0, 1)
        assert (first.count("refused"), second.count("Renew")) == (0, 0)
        one = await ready(supervisor.http)
        assert (one["failures"], one["clones"]) == (1, 0)
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_clones_total{outcome="fallback"}'] == 1
        assert counted['qmp_supervisor_clones_total{outcome="restored"}'] == 0
        assert counted['qmp_supervisor_runs_total{outcome="answered"}'] == 1
        assert counted['qmp_supervisor_runs_total{outcome="failed"}'] == 0


@pytest.mark.parametrize("fault", FAULTS)
async def test_clone_that_is_required_and_does_not_come_up(world: World, fault: str) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(**FAULTS[fault])
        refused = await post(supervisor.http, b"never", template="require")
        assert refused.status_code in (500, 502, 504)
        assert refused.headers["Content-Type"] == "application/problem+json"
        (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert row["id"] in refused.json()["detail"]
        shown = await until(supervisor.http, f"/vms/{row['id']}", lambda vm: bool(vm["ended"]))
        assert shown["relay"]["state"] == "failed"
        assert shown["error"]
        assert not events(world, row["id"], "fallback")
        guest = await guest_of(world, row["id"])
        assert await heard(guest, "Run") == 0
        # It was started once: the next guest is the next run's.
        world.scenario()
        again = await run(supervisor.http, template="off")
        assert (await world.guest()).vm_id == again["id"]


async def garble_state(world: World, digest: str) -> None:
    file = world.tmp / "templates" / digest / "state"
    file.write_bytes(bytes(file.stat().st_size))


async def spoil_state(world: World, digest: str) -> None:
    file = world.tmp / "templates" / digest / "state"
    file.write_bytes(file.read_bytes()[:-1])


async def remove_state(world: World, digest: str) -> None:
    (world.tmp / "templates" / digest / "state").unlink()


async def spoil_ram(world: World, digest: str) -> None:
    os.truncate(world.tmp / "templates" / digest / "ram", 4096)


async def remove_ram(world: World, digest: str) -> None:
    (world.tmp / "templates" / digest / "ram").unlink()


async def remove_clone_disk(world: World, digest: str) -> None:
    (world.tmp / "templates" / digest / "clone.qcow2").unlink()


@pytest.mark.parametrize(
    "spoil", [garble_state, spoil_state, remove_state, spoil_ram, remove_ram, remove_clone_disk]
)
async def test_template_that_was_damaged(world: World, spoil: Any) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        await spoil(world, digest)
        shown = await run(supervisor.http)
        assert not is_clone(shown)
        (told,) = events(world, shown["id"], "fallback")
        assert told["template"] == digest


async def test_template_that_serves_nobody_is_made_anew(world: World) -> None:
    async with world.serve() as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        before = (await ready(supervisor.http))["since"]
        await spoil_state(world, digest)
        for _ in range(3):
            assert not is_clone(await run(supervisor.http))
        await ask_until(
            supervisor.http,
            "/templates",
            lambda now: any(one["since"] > before for one in in_state(now, "ready")),
        )
        assert (await run(supervisor.http, template="require"))["template"]


async def test_failures_are_counted_in_a_row(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(restore="fails")
        await run(supervisor.http)
        assert (await ready(supervisor.http))["failures"] == 1
        world.scenario()
        assert is_clone(await run(supervisor.http))
        assert (await ready(supervisor.http))["failures"] == 0


async def test_cold_boot_that_fails_too_is_the_runs_failure(world: World) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(exits=1, says="no such machine")
        answer = await post(supervisor.http)
        assert answer.status_code == 500
        assert "no such machine" in answer.json()["detail"]


async def test_guest_that_powers_off_before_it_is_renewed(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(renew="silence")
        async with trio.open_nursery() as nursery:
            answers: list[Any] = []

            async def one() -> None:
                answers.append(await post(supervisor.http))

            nursery.start_soon(one)
            await (await world.guest()).until("end")
            guest = await world.guest()
            await guest.until("Renew")
            world.scenario()
            await guest.exit(-9)
        assert answers[0].status_code == 200
        assert await heard(guest, "Run") == 0
        assert not is_clone(await show(supervisor.http, answers[0].json()["id"]))


async def test_caller_that_goes_away_while_a_clone_is_restored(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(restore="hangs")
        await (await world.guest()).until("end")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, supervisor.http)
            guest = await world.guest()
            await guest.until("migrate-incoming")
            nursery.cancel_scope.cancel()
        await guest.until("end")
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert not events(world, vm.id, "fallback")
        # And nothing else was started for it.
        world.scenario()
        again = await run(supervisor.http)
        assert (await world.guest()).vm_id == again["id"]


async def test_stop_while_a_clone_is_renewed(world: World) -> None:
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        await ready(supervisor.http)
        world.scenario(renew="silence")

        async def caller() -> None:
            assert (await post(supervisor.http)).status_code in (502, 503)

        nursery.start_soon(caller)
        await (await world.guest()).until("end")
        guest = await world.guest()
        await guest.until("Renew")
        supervisor.running.stop(OnStop.END)
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert not events(world, vm.id, "fallback")
        assert await heard(guest, "Run") == 0


async def test_fallback_is_no_restart(world: World) -> None:
    """What is booted cold instead of a clone has all the restarts that its run may have."""
    settings = {"MANAGER_RESTART_BACKOFF": "1ms"}
    async with world.serve(**settings) as supervisor:
        await ready(supervisor.http)
        world.scenario(restore="fails")
        shown = await run(supervisor.http, restart="on-failure")
        assert shown["restart"]["count"] == 0
        _, guest = await both_guests(world, shown["id"])
        await guest.until("Run")
        await guest.exit(-9)
        again = await guest_of(world, shown["id"])
        await again.until("Run")
        assert len(events(world, shown["id"], "fallback")) == 1


# --- clones and the supervisor's end --------------------------------------------------------


@pytest.mark.parametrize("behaviour", [{"restore": "hangs"}, {"renew": "silence"}])
async def test_supervisor_that_is_killed_before_a_clone_is_renewed(
    world: World, behaviour: dict[str, Any]
) -> None:
    """Whatever becomes of it, no computation goes to a twin, or twice to an agent."""
    async with world.serve_apart() as apart:
        await ready(apart.http)
        world.scenario(**behaviour)
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        vm_id = answer.json()["id"]
        guest = await guest_of(world, vm_id)
        await guest.until("Renew" if "renew" in behaviour else "migrate-incoming")
        await apart.kill()
    world.scenario()
    async with world.serve(**IMPATIENT) as supervisor:
        vm = supervisor.vm(vm_id)
        await until(
            supervisor.http,
            f"/vms/{vm_id}",
            lambda vm: vm["ended"] or vm["relay"]["state"] == "answered",
        )
        assert vm.record.relay == "answered"
        assert len(events(world, vm_id, "fallback")) == 1
        again = await world.guest()
        assert again.vm_id == vm_id
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        assert (await heard(again, "Run"), again.count("Renew")) == (1, 0)
        assert (await heard(guest, "Run"), guest.count("refused")) == (0, 0)


async def test_clone_that_is_renewed_by_the_next_supervisor(world: World) -> None:
    async with world.serve_apart() as apart:
        await ready(apart.http)
        world.scenario(clones_agent="none")
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        vm_id = answer.json()["id"]
        guest = await guest_of(world, vm_id)
        await guest.until("cont")
        await until(apart.http, f"/vms/{vm_id}", lambda vm: vm["state"] == "running")
        await apart.kill()
    await guest.order("start-agent", kind="recorder")
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.wait_answered()
        await guest.until("Run")
        calls = [one["saw"] for one in guest.seen if one["saw"] in ("Renew", "Run", "refused")]
        assert calls == ["Renew", "Run"]
        assert (await show(supervisor.http, vm_id))["template"]


async def test_renewal_whose_answer_was_lost_with_the_supervisor(world: World) -> None:
    """It is asked for again, and a guest that is renewed for the same VM says yes."""
    async with world.serve_apart() as apart:
        await ready(apart.http)
        world.scenario(renew="lost")
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        vm_id = answer.json()["id"]
        guest = await guest_of(world, vm_id)
        await guest.until("Renew")
        await apart.kill()
    async with world.serve() as supervisor:
        await supervisor.vm(vm_id).wait_answered()
        await guest.until("Run")
        calls = [one["saw"] for one in guest.seen if one["saw"] in ("Renew", "Run", "refused")]
        assert calls == ["Renew", "Renew", "Run"]
        assert not events(world, vm_id, "fallback")


async def test_clone_that_ran_and_was_not_yet_on_record_as_running(world: World) -> None:
    """Its supervisor was killed between ``cont`` and the writing of what came of it."""
    async with world.serve_apart() as apart:
        digest = (await ready(apart.http))["digest"]
        world.scenario(swallows=("cont",))
        answer = await apart.http.post(
            "/run", json={"computation": "aGk="}, headers={"Prefer": "respond-async"}
        )
        vm_id = answer.json()["id"]
        guest = await guest_of(world, vm_id)
        await guest.until("cont")
        await apart.kill()
    await guest.order("run")
    world.scenario()
    async with world.serve() as supervisor:
        shown = await until(
            supervisor.http,
            f"/vms/{vm_id}",
            lambda vm: vm["ended"] or vm["relay"]["state"] == "answered",
        )
        assert shown["relay"]["state"] == "answered"
        assert shown["template"] == digest
        assert (await ready(supervisor.http))["clones"] == 1
        await guest.until("Run")
        assert (guest.count("Renew"), guest.count("refused")) == (1, 0)


async def test_clone_that_has_hung_since(world: World) -> None:
    world.scenario()
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        guest = await guest_of(world, clone["id"])
        await supervisor.leave(guest)
    os.kill(guest.pid, signal.SIGSTOP)
    settings = {"MANAGER_QUIT_GRACE": "10ms", "MANAGER_TERM_GRACE": "10ms"}
    async with world.serve(**settings, MANAGER_QMP_TIMEOUT="1s") as supervisor:
        ended = await supervisor.http.delete(f"/vms/{clone['id']}")
        assert ended.status_code == 204
        assert (await ready(supervisor.http))["clones"] == 0
    await guest.until("end")


async def test_end_that_was_asked_for_goes_on(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        guest = await guest_of(world, clone["id"])
        await begin_shutdown(supervisor, clone["id"], guest)
        await supervisor.leave(guest)
    async with world.serve(MANAGER_POWERDOWN_GRACE="10ms") as supervisor:
        vm = supervisor.vm(clone["id"])
        await vm.wait_ended()
        assert vm.status.reason == "host-qmp-quit"
        assert (await ready(supervisor.http))["clones"] == 0


async def begin_shutdown(supervisor: Supervisor, vm_id: str, guest: Guest) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.http.post, f"/vms/{vm_id}/shutdown")
        await guest.until("system_powerdown")
        nursery.cancel_scope.cancel()
