"""What stays of VMs that have ended, and for how long."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.caller import ANYBODY
from supervisor.state.status import VmState
from tests.support.world import SetClock

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

DISK = {"overlay.qcow2", "firmware_vars.fd"}
REST = {"vm.json", "events.jsonl", "qemu.log"}


async def ended(supervisor: Supervisor, key: str = "", **members: Any) -> str:
    """A VM that has been answered, and shut down; its id."""
    headers = {"Idempotency-Key": key} if key else {}
    body = {"computation": "aGk=", **members}
    answer = await supervisor.http.post("/run", json=body, headers=headers)
    vm_id = str(answer.json()["id"])
    await supervisor.http.post(f"/vms/{vm_id}/shutdown")
    return vm_id


async def deleted(supervisor: Supervisor, *vm_ids: str) -> None:
    """Return once these have been deleted."""
    left = set(vm_ids)
    async with supervisor.running.service.follow(ANYBODY, 0) as (old, news):
        async for event in old:
            if event.kind == "deleted":
                left.discard(event.vm_id or "")
        while left:
            event = await news.receive()
            if event.kind == "deleted":
                left.discard(event.vm_id or "")


def files(world: World, vm_id: str) -> set[str]:
    return {file.name for file in (world.tmp / vm_id).iterdir()}


@pytest.mark.parametrize(
    ("setting", "members", "kept"),
    [
        ("false", {}, False),
        ("true", {}, True),
        ("true", {"keep_disk": False}, False),
        ("false", {"keep_disk": True}, True),
    ],
)
async def test_disks(world: World, setting: str, members: dict[str, Any], kept: bool) -> None:
    async with world.serve(MANAGER_KEEP_DISKS=setting) as supervisor:
        vm_id = await ended(supervisor, **members)
        assert files(world, vm_id) >= REST
        assert files(world, vm_id) & DISK == (DISK if kept else set())
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["keep_disk"] is kept


async def test_disk_of_a_vm_that_crashed(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        assert files(world, vm.id) >= DISK | REST
        await guest.exit(-9)
        await vm.wait_ended()
        assert files(world, vm.id) & DISK == set()
        assert files(world, vm.id) >= REST


async def test_vm_that_never_ran_leaves_its_logs(world: World) -> None:
    world.scenario(exits=1, says="no such machine")
    async with world.serve() as supervisor:
        await supervisor.post(b"x")
        vm = supervisor.only_vm()
        assert files(world, vm.id) == REST | {"serial.log"}
        assert "no such machine" in vm.dir.qemu_log.read_text()


async def test_disk_that_a_killed_supervisor_did_not_come_to_remove(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await ended(supervisor)
        kept = await ended(supervisor, keep_disk=True)
    shutil.copy(world.image, world.tmp / vm_id / "overlay.qcow2")
    async with world.serve():
        assert not files(world, vm_id) & DISK
        assert files(world, kept) >= DISK


async def test_oldest_end_goes_first_and_what_runs_stays(world: World) -> None:
    async with world.serve(MANAGER_KEEP_ENDED="1") as supervisor:
        runs = (await supervisor.run())["id"]
        later = (await supervisor.run())["id"]
        first = await ended(supervisor)
        await supervisor.http.post(f"/vms/{later}/shutdown")
        await deleted(supervisor, first)
        assert {vm.id for vm in supervisor.running.service.vms} == {runs, later}
        assert supervisor.vm(runs).status.state is VmState.RUNNING
        assert (await supervisor.http.get(f"/vms/{first}")).status_code == 404


async def test_none_are_kept(world: World) -> None:
    async with world.serve(MANAGER_KEEP_ENDED="0") as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        assert (answer.status_code, answer.json()["state"]) == (200, "shutoff")
        await deleted(supervisor, vm_id)
        world.scenario(exits=1, says="no such machine")
        failed = await supervisor.post(b"x")
        assert failed.status_code == 500
        assert "no such machine" in failed.json()["detail"]


async def test_limits_of_the_next_supervisor(world: World) -> None:
    async with world.serve() as supervisor:
        ids = [await ended(supervisor) for _ in range(3)]
    async with world.serve(MANAGER_KEEP_ENDED="1") as supervisor:
        await deleted(supervisor, *ids[:2])
        assert [vm.id for vm in supervisor.running.service.vms] == ids[2:]
        assert [path.name for path in world.tmp.iterdir() if path.is_dir()] == ids[2:]


async def test_age(world: World) -> None:
    async with world.serve() as supervisor:
        old, young = await ended(supervisor), await ended(supervisor)
    file = world.tmp / old / "vm.json"
    content = json.loads(file.read_text())
    content["vm"]["ended_s"] -= 25 * 3600
    file.write_text(json.dumps(content))
    async with world.serve(MANAGER_KEEP_ENDED_FOR="24h") as supervisor:
        await deleted(supervisor, old)
        assert [vm.id for vm in supervisor.running.service.vms] == [young]


async def test_key_of_a_vm_that_is_no_more(world: World) -> None:
    async with world.serve(MANAGER_KEEP_ENDED="0") as supervisor:
        first = await ended(supervisor, key="k")
        await deleted(supervisor, first)
        answer = await supervisor.http.post(
            "/run", json={"computation": "aG8="}, headers={"Idempotency-Key": "k"}
        )
        assert answer.status_code == 200
        assert answer.json()["id"] != first


async def test_many_that_are_deleted_at_once(world: World) -> None:
    """By us and by a client at the same time; each is told once."""
    async with world.serve() as supervisor:
        ids = [await ended(supervisor) for _ in range(3)]
    async with world.serve(MANAGER_KEEP_ENDED="0") as supervisor:
        for vm_id in ids:
            assert (await supervisor.http.delete(f"/vms/{vm_id}")).status_code in (204, 404)
        await deleted(supervisor, *ids)
        lines = (world.tmp / "events.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        assert sorted(one["vm"] for one in told if one["event"] == "deleted") == sorted(ids)


async def test_clock_that_is_set_right_makes_nothing_old(world: World) -> None:
    async with world.serve() as supervisor:
        here, before = await ended(supervisor), await ended(supervisor)
    for vm_id, boot in ((here, {}), (before, {"ended_boot": "an earlier one"})):
        file = world.tmp / vm_id / "vm.json"
        content = json.loads(file.read_text())
        content["vm"] |= {"ended_at": "1970-01-01T00:01:00+00:00", **boot}
        file.write_text(json.dumps(content))
    # The time since the host's boot counts, which tells nothing of a host that runs for long.
    world.clock = SetClock(world.clock.boottime_s() + 60)
    limit = f"{world.clock.boottime_s() + 60:.0f}s"
    async with world.serve(MANAGER_KEEP_ENDED_FOR=limit) as supervisor:
        last = await ended(supervisor)
        assert {vm.id for vm in supervisor.running.service.vms} == {here, before, last}


async def test_oldest_of_too_many_kept_disks_goes(world: World) -> None:
    async with world.serve(MANAGER_MAX_KEPT_DISKS="2", MANAGER_KEEP_ENDED="1") as supervisor:
        plain = await ended(supervisor)
        kept = [await ended(supervisor, keep_disk=True) for _ in range(3)]
        await deleted(supervisor, kept[0])
        assert {vm.id for vm in supervisor.running.service.vms} == {plain, *kept[1:]}
        assert files(world, kept[1]) >= DISK


async def test_replies_go_before_their_records(world: World) -> None:
    clock = world.clock = SetClock(1000.0)
    settings = {"MANAGER_KEEP_ENDED": "2", "MANAGER_KEEP_REPLIES": "1m"}
    async with world.serve(**settings) as supervisor:
        first, second = await ended(supervisor), await ended(supervisor, "key")
        clock.now_s += 120
        third = await ended(supervisor)
        await deleted(supervisor, first)
        assert "reply" not in files(world, second)
        assert "reply" in files(world, third)
        gone = await supervisor.http.get(f"/vms/{second}/reply")
        assert gone.status_code == 409
        assert "MANAGER_KEEP_REPLIES" in gone.json()["advice"]
