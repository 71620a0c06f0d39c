"""Templates: how they come about, where there is none, and when none can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from supervisor.waiting import Backoff
from tests.support.clones import (
    FILES,
    change,
    clonable,
    declare,
    directories,
    failed,
    gone,
    is_clone,
    post,
    ready,
    run,
    show,
    templates,
    until,
)

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return clonable(world)


# --- how one comes about --------------------------------------------------------------------


async def test_template_is_built_at_start_and_listed(world: World) -> None:
    async with world.serve() as supervisor:
        one = await ready(supervisor.http)
        assert one.keys() == {
            *("digest", "state", "vm", "problem", "error", "since"),
            *("built_in_s", "size_bytes", "clones", "failures"),
        }
        assert (one["vm"], one["problem"], one["clones"], one["failures"]) == (None, None, 0, 0)
        assert one["error"] is None
        assert one["built_in_s"] > 0
        assert one["size_bytes"] > 0
        all_of_it = await templates(supervisor.http)
        assert (all_of_it["use"], all_of_it["possible"], all_of_it["why"]) == ("auto", True, None)
        assert directories(world) == {one["digest"]}
        files = {file.name for file in (world.tmp / "templates" / one["digest"]).iterdir()}
        assert files == FILES


@pytest.mark.parametrize(
    ("version", "passing", "forgetting"),
    [("7.2", ["getfd"], []), ("11.1", ["add-fd"], ["remove-fd"])],
)
async def test_guest_is_frozen_when_it_is_prepared(
    world: World, version: str, passing: list[str], forgetting: list[str]
) -> None:
    world.scenario(version=version)
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        builder = await world.guest()
        await builder.until("end")
        seen = [one["saw"] for one in builder.seen if "query-" not in one["saw"]]
        assert seen[seen.index("Prepare") :] == [
            *("Prepare", "stop", *passing, "migrate-set-capabilities", "migrate"),
            *(*forgetting, "quit"),
        ]
        assert "Run" not in seen
        assert "system_powerdown" not in seen


async def test_builder_is_a_vm_like_others(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        builder = await world.guest()
        shown = await show(supervisor.http, builder.vm_id)
        assert (shown["purpose"], shown["template"]) == ("template", None)
        (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert (row["id"], row["purpose"]) == (builder.vm_id, "template")
        (one,) = (await templates(supervisor.http))["templates"]
        assert (one["state"], one["vm"]) == ("building", builder.vm_id)
        path = f"/vms/{builder.vm_id}"
        shown = await until(supervisor.http, path, lambda vm: vm["state"] == "running")
        argv = " ".join(shown["argv"])
        ram = world.tmp / builder.vm_id / "ram"
        assert f"memory-backend-file,id=ram,size={16 * 2**20},mem-path={ram},share=on" in argv
        assert "memory-backend=ram" in argv
        assert "-device vmgenid,guid=auto" in argv
        await builder.order("start-agent", kind="recorder")
        await ready(supervisor.http)
        await gone(supervisor.http, world.tmp / builder.vm_id)


async def test_there_is_one_builder_however_many_runs_come(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_MAX_VMS="30") as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        world.scenario()
        shown: list[dict[str, Any]] = []

        async def one() -> None:
            shown.append(await run(supervisor.http))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert len(shown) == 10
        assert not any(map(is_clone, shown))
        assert len((await templates(supervisor.http))["templates"]) == 1
        await builder.order("start-agent", kind="recorder")
        digest = (await ready(supervisor.http))["digest"]
        assert (await run(supervisor.http))["template"] == digest
        assert [(await world.guest()).vm_id != builder.vm_id for _ in range(11)] == [True] * 11
        assert directories(world) == {digest}


async def test_runs_that_require_it_wait_for_it(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_MAX_VMS="20") as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        world.scenario()
        shown: list[dict[str, Any]] = []

        async def one() -> None:
            shown.append(await run(supervisor.http, template="require"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
            # One that does not require it is served meanwhile.
            assert not is_clone(await run(supervisor.http))
            assert not shown
            await builder.order("start-agent", kind="recorder")
        digest = (await ready(supervisor.http))["digest"]
        assert [vm["template"] for vm in shown] == [digest] * 4
        assert all(map(is_clone, shown))


# --- where there is none --------------------------------------------------------------------


def without_manifest(world: World) -> None:
    (world.image.parent / "manifest.json").unlink()


def not_clone_safe(world: World) -> None:
    declare(world.image, clone_safe=False)


def of_another_image(world: World) -> None:
    change(world.image)


def that_is_none(world: World) -> None:
    (world.image.parent / "manifest.json").write_text("{")


def of_other_files(world: World) -> None:
    file = world.image.parent / "manifest.json"
    file.write_text(file.read_text().replace(world.image.name, "other.qcow2"))


@pytest.mark.parametrize(
    "spoil", [without_manifest, not_clone_safe, of_another_image, that_is_none, of_other_files]
)
async def test_image_that_is_not_declared_clone_safe(world: World, spoil: Any) -> None:
    spoil(world)
    async with world.serve() as supervisor:
        refused = await post(supervisor.http, template="require")
        assert refused.status_code == 409
        assert refused.headers["Content-Type"] == "application/problem+json"
        all_of_it = await templates(supervisor.http)
        assert (all_of_it["possible"], all_of_it["templates"]) == (False, [])
        assert all_of_it["why"] in refused.json()["detail"]
        assert "manifest" in all_of_it["why"]
        shown = await run(supervisor.http)
        assert not is_clone(shown)
        assert (shown["purpose"], shown["template"]) == ("run", None)
        # Nobody was started but for this run.
        assert (await world.guest()).vm_id == shown["id"]
        assert not directories(world)


async def test_templates_that_are_off(world: World) -> None:
    async with world.serve(MANAGER_TEMPLATES="off") as supervisor:
        all_of_it = await templates(supervisor.http)
        assert (all_of_it["use"], all_of_it["possible"]) == ("off", False)
        assert "MANAGER_TEMPLATES" in all_of_it["why"]
        for wish in ({}, {"template": "auto"}, {"template": "off"}):
            shown = await run(supervisor.http, **wish)
            assert not is_clone(shown)
            assert (await world.guest()).vm_id == shown["id"]
        refused = await post(supervisor.http, template="require")
        assert refused.status_code == 409
        assert not directories(world)


@pytest.mark.parametrize("template", ["maybe", "", None, 1, "AUTO"])
async def test_wish_that_makes_no_sense(world: World, template: object) -> None:
    async with world.serve(MANAGER_TEMPLATES="off") as supervisor:
        refused = await post(supervisor.http, template=template)
        assert refused.status_code == 400
        assert refused.json()["member"] == "template"


# --- when it cannot be made -----------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "process exits": {"exits": 1, "says": "no such machine"},
    "agent never comes": {"agent": "none"},
    "agent is deaf": {"agent": "deaf"},
    "guest refuses": {"prepare": "refuse"},
    "guest does not answer": {"prepare": "silence"},
    "migration fails": {"migration": "fails"},
    "QEMU refuses": {"refuses": {"migrate": ("GenericError", "not this machine")}},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_template_that_cannot_be_made(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    world.hasten(template_retry=Backoff(3600.0, 3600.0))
    world.scenario(**FAULTS[fault])
    async with world.serve(MANAGER_BOOT_TIMEOUT="1s") as supervisor:
        one = await failed(supervisor.http)
        assert one["problem"]
        assert one["vm"] is None
        builder = list(supervisor.running.service.vms)[:1]
        for vm in builder:
            await vm.wait_ended()
        world.scenario()
        refused = await post(supervisor.http, template="require")
        assert refused.status_code == 409
        assert one["problem"] in refused.json()["detail"]
        vm_id = await supervisor.begin()  # its agent may need more than that second
        await supervisor.wait_record(vm_id, lambda record: bool(record.command))
        assert not is_clone(await show(supervisor.http, vm_id))
        assert not directories(world)


async def test_it_is_tried_again(world: World) -> None:
    world.soon()
    world.scenario(prepare="refuse")
    async with world.serve() as supervisor:
        for _ in range(3):
            builder = await world.guest()
            await builder.until("Prepare")
            await builder.until("end")
        world.scenario()
        digest = (await ready(supervisor.http))["digest"]
        assert (await run(supervisor.http))["template"] == digest


@pytest.mark.parametrize("moment", ["cont", "Prepare", "migrate"])
async def test_builder_that_dies(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    world.hasten(template_retry=Backoff(3600.0, 3600.0))
    behaviour = {"cont": {"agent": "none"}, "Prepare": {"prepare": "silence"}}
    world.scenario(**behaviour.get(moment, {"migration": "hangs"}))
    async with world.serve() as supervisor:
        builder = await world.guest()
        await builder.until(moment)
        await builder.exit(-9)
        await builder.until("end")
        assert (await failed(supervisor.http))["problem"]
        world.scenario()
        assert not is_clone(await run(supervisor.http))
        assert not directories(world)


async def test_template_is_not_waited_for_if_its_guest_says_that_it_has_no_network(
    world: World,
) -> None:
    world.scenario(agent="none", console="[guest 9.70] problem: no network device\n")
    world.hasten(agent_look_s=0.01, agent_verdict_s=0.05)
    async with world.serve(MANAGER_BOOT_TIMEOUT="1h") as supervisor:
        one = await failed(supervisor.http)
        assert one["error"] == "AgentTimeout"
        assert "is not there: the guest says: no network device" in one["problem"]


async def test_migration_that_hangs_is_not_waited_for_for_ever(world: World) -> None:
    world.scenario(migration="hangs")
    async with world.serve(MANAGER_START_TIMEOUT="5s") as supervisor:
        builder = await world.guest()
        await builder.until("migrate")
        assert (await failed(supervisor.http))["problem"]
        await builder.until("end")


async def test_builder_that_somebody_deletes(world: World) -> None:
    world.soon()
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        builder = await world.guest()
        await builder.until("cont")
        world.scenario()
        assert (await supervisor.http.delete(f"/vms/{builder.vm_id}")).status_code == 204
        digest = (await ready(supervisor.http))["digest"]
        assert (await run(supervisor.http))["template"] == digest


async def test_stop_while_it_is_built(world: World) -> None:
    world.scenario(agent="none")
    for how in (OnStop.LEAVE, OnStop.END):
        async with world.serve() as supervisor:
            builder = await world.guest()
            await builder.until("cont")
            supervisor.running.stop(how)
            await builder.until("end")
        assert not directories(world)
