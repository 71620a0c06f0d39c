"""Templates: what becomes of them, and who waits for them."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from tests.support.clones import (
    FILES,
    ask_until,
    change,
    clonable,
    declare,
    directories,
    failed,
    gone,
    guest_of,
    in_state,
    is_clone,
    post,
    ready,
    run,
    show,
    templates,
)

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return clonable(world)


# --- what becomes of it when its image is another one ---------------------------------------


async def test_template_of_an_earlier_image_goes_with_its_last_clone(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http)
        change(world.image)
        declare(world.image)
        await run(supervisor.http)  # whoever asks next finds it out
        new = (await ready(supervisor.http, other_than=old))["digest"]
        (stale,) = in_state(await templates(supervisor.http), "stale")
        assert (stale["digest"], stale["clones"]) == (old, 1)
        assert (await run(supervisor.http, template="require"))["template"] == new
        assert (await show(supervisor.http, clone["id"]))["state"] == "running"
        assert directories(world) == {old, new}
        await supervisor.http.delete(f"/vms/{clone['id']}")
        await ask_until(supervisor.http, "/templates", lambda now: not in_state(now, "stale"))
        await gone(supervisor.http, world.tmp / "templates" / old)
        assert directories(world) == {new}


async def test_image_without_a_manifest_of_its_own_is_not_clone_safe(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        change(world.image)
        shown = await run(supervisor.http)
        assert not is_clone(shown)
        refused = await post(supervisor.http, template="require")
        assert refused.status_code == 409
        assert "describes another image" in refused.json()["detail"]
        await ask_until(supervisor.http, "/templates", lambda now: not now["templates"])
        await gone(supervisor.http, world.tmp / "templates" / old)


async def test_disk_that_is_kept_keeps_its_template(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http, keep_disk=True)
        await supervisor.http.post(f"/vms/{clone['id']}/shutdown")
        change(world.image)
        declare(world.image)
        await run(supervisor.http)
        new = (await ready(supervisor.http, other_than=old))["digest"]
        assert directories(world) == {old, new}
        await supervisor.leave(*[await guest_of(world, vm.id) for vm in alive(supervisor)])
    async with world.serve() as supervisor:
        assert (await ready(supervisor.http))["digest"] == new
        (stale,) = in_state(await templates(supervisor.http), "stale")
        assert stale["digest"] == old
        backing = (world.tmp / "templates" / old / "overlay.qcow2").stat()
        assert backing.st_size > 0
        await supervisor.http.delete(f"/vms/{clone['id']}")
        await gone(supervisor.http, world.tmp / "templates" / old)


def alive(supervisor: Supervisor) -> list[Any]:
    return [vm for vm in supervisor.running.service.vms if not vm.ended]


async def test_image_that_is_changed_while_the_template_is_built(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        (old,) = (await templates(supervisor.http))["templates"]
        world.scenario()
        change(world.image)
        declare(world.image)
        await builder.order("start-agent", kind="recorder")
        shown = await run(supervisor.http)
        assert shown["template"] != old["digest"]
        one = await ready(supervisor.http, other_than=old["digest"])
        assert (await run(supervisor.http, template="require"))["template"] == one["digest"]
        await gone(supervisor.http, world.tmp / "templates" / old["digest"])


# --- what the next supervisor makes of it ---------------------------------------------------


@pytest.mark.parametrize("moment", ["cont", "Prepare", "migrate"])
async def test_supervisor_that_is_killed_while_it_is_built(world: World, moment: str) -> None:
    behaviour = {"cont": {"agent": "none"}, "Prepare": {"prepare": "silence"}}
    world.scenario(**behaviour.get(moment, {"migration": "hangs"}))
    async with world.serve_apart() as apart:
        builder = await world.guest()
        await builder.until(moment)
        await apart.kill()
    world.scenario()
    async with world.serve() as supervisor:
        await builder.until("end")
        digest = (await ready(supervisor.http))["digest"]
        await gone(supervisor.http, world.tmp / builder.vm_id)
        assert directories(world) == {digest}
        assert (await run(supervisor.http))["template"] == digest


async def test_template_that_was_not_finished_is_removed(world: World) -> None:
    async with world.serve() as supervisor:
        digest = (await ready(supervisor.http))["digest"]
    home = world.tmp / "templates"
    shutil.copytree(home / digest, home / "unfinished")
    (home / "unfinished" / "manifest.json").unlink()
    (home / digest / "manifest.json").unlink()
    builder = await world.guest()
    async with world.serve() as supervisor:
        assert (await ready(supervisor.http))["digest"] == digest
        again = await world.guest()
        assert again.vm_id != builder.vm_id
        assert directories(world) == {digest}


@pytest.mark.parametrize("way", ["left", "killed"])
async def test_template_and_its_clones_outlive_their_supervisor(world: World, way: str) -> None:
    if way == "left":
        async with world.serve() as supervisor:
            before = await ready(supervisor.http)
            clone = await run(supervisor.http)
            guest = await guest_of(world, clone["id"])
            await supervisor.leave(guest)
    else:
        async with world.serve_apart() as apart:
            before = await ready(apart.http)
            clone = await run(apart.http)
            guest = await guest_of(world, clone["id"])
            await apart.kill()
    os.kill(guest.pid, 0)
    async with world.serve() as supervisor:
        after = await ready(supervisor.http)
        assert (after["digest"], after["clones"]) == (before["digest"], 1)
        assert after["size_bytes"] == before["size_bytes"]
        vm = supervisor.vm(clone["id"])
        await vm.until(lambda: vm.agent_ready)
        shown = await show(supervisor.http, clone["id"])
        for name in ("pid", "state", "template", "purpose", "argv", "relay"):
            assert shown[name] == clone[name], name
        # No other was built: the next guest is this run's.
        again = await run(supervisor.http)
        assert again["template"] == before["digest"]
        assert (await world.guest()).vm_id == again["id"]
        for vm_id in (clone["id"], again["id"]):
            ended = await supervisor.http.post(f"/vms/{vm_id}/shutdown")
            assert ended.json()["reason"] == "guest-shutdown"
        await guest.until("end")
        assert (guest.count("Renew"), guest.count("Run")) == (1, 1)
        assert (await ready(supervisor.http))["clones"] == 0


async def test_template_whose_image_was_changed_meanwhile(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
    change(world.image)
    declare(world.image)
    async with world.serve() as supervisor:
        await ready(supervisor.http, other_than=old)
        await gone(supervisor.http, world.tmp / "templates" / old)


async def test_orphaned_builder_is_ended_by_its_process_id(world: World) -> None:
    """Its QEMU had been stopped by somebody, so that it cannot be asked to quit."""
    world.scenario(agent="none")
    async with world.serve_apart() as apart:
        builder = await world.guest()
        await builder.until("cont")
        await apart.kill()
    os.kill(builder.pid, signal.SIGSTOP)
    world.scenario()
    settings = {"MANAGER_QUIT_GRACE": "10ms", "MANAGER_TERM_GRACE": "10ms"}
    async with world.serve(**settings) as supervisor:
        await builder.until("end")
        await ready(supervisor.http)


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("harm", ["gone", "shorter"])
async def test_template_that_was_damaged_meanwhile_is_made_anew(
    world: World, file: str, harm: str
) -> None:
    async with world.serve() as supervisor:
        digest = (await ready(supervisor.http))["digest"]
    path = world.tmp / "templates" / digest / file
    if harm == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        shown = await run(supervisor.http, template="require")
        assert is_clone(shown)
        assert directories(world) == {shown["template"]}


async def test_damaged_template_stays_for_those_on_its_disk(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http)
        await supervisor.leave(await guest_of(world, clone["id"]))
    (world.tmp / "templates" / old / "state").write_bytes(b"x")
    async with world.serve() as supervisor:
        assert not is_clone(await run(supervisor.http))
        assert (world.tmp / "templates" / old / "overlay.qcow2").exists()
        assert (await show(supervisor.http, clone["id"]))["state"] == "running"
        await supervisor.http.delete(f"/vms/{clone['id']}")
        await ready(supervisor.http)
        assert is_clone(await run(supervisor.http, template="require"))


async def test_other_settings_make_another_template(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http)
        await supervisor.leave(await guest_of(world, clone["id"]))
    async with world.serve(MANAGER_QEMU_MEMORY_SIZE="32M") as supervisor:
        new = (await ready(supervisor.http, other_than=old))["digest"]
        assert (await run(supervisor.http))["template"] == new
        (stale,) = in_state(await templates(supervisor.http), "stale")
        assert (stale["digest"], stale["clones"]) == (old, 1)
        await supervisor.http.delete(f"/vms/{clone['id']}")
        await gone(supervisor.http, world.tmp / "templates" / old)


async def test_templates_that_are_turned_off(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http)
        await supervisor.leave(await guest_of(world, clone["id"]))
    async with world.serve(MANAGER_TEMPLATES="off") as supervisor:
        assert not is_clone(await run(supervisor.http))
        assert (await show(supervisor.http, clone["id"]))["state"] == "running"
        assert (world.tmp / "templates" / old / "overlay.qcow2").exists()
        await supervisor.http.delete(f"/vms/{clone['id']}")
        await gone(supervisor.http, world.tmp / "templates" / old)


# --- room, and those who wait ---------------------------------------------------------------


async def test_builder_takes_no_runs_place(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        world.scenario()
        assert not is_clone(await run(supervisor.http))


async def test_builder_waits_for_room(world: World) -> None:
    """All virtual CPUs are a VM's that an earlier supervisor left."""
    world.soon()
    cpus = len(os.sched_getaffinity(0))
    one_vm = {"MANAGER_VCPU_OVERCOMMIT": "1", "MANAGER_QEMU_SMP_COUNT": str(cpus)}
    async with world.serve(MANAGER_TEMPLATES="off", **one_vm) as supervisor:
        first = await run(supervisor.http)
        await supervisor.leave(await world.guest())
    async with world.serve(**one_vm) as supervisor:
        one = await failed(supervisor.http)
        assert "no room" in one["problem"]
        await supervisor.http.delete(f"/vms/{first['id']}")
        digest = (await ready(supervisor.http))["digest"]
        assert (await run(supervisor.http))["template"] == digest


async def test_caller_that_goes_away_while_it_is_built(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        world.scenario()
        with trio.move_on_after(0.1):
            await post(supervisor.http, template="require")
        await builder.order("start-agent", kind="recorder")
        await ready(supervisor.http)
        shown = await run(supervisor.http)
        assert (await world.guest()).vm_id == shown["id"]


@pytest.mark.parametrize("how", [OnStop.LEAVE, OnStop.END])
async def test_stop_while_somebody_waits_for_it(world: World, how: OnStop) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        builder = await world.guest()
        await builder.until("cont")
        answers = []

        async def caller() -> None:
            answers.append(await post(supervisor.http, template="require"))

        nursery.start_soon(caller)
        await supervisor.http.get("/health")
        supervisor.running.stop(how)
        await builder.until("end")
    assert answers[0].status_code == 503, answers[0].text
