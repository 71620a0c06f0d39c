"""What is on disk: before it is seen, complete, and mended where it is not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.config import OnStop
from supervisor.state.record_file import VERSION
from supervisor.state.status import VmState
from tests.support.world import refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

SOMEBODY = "11111111-2222-3333-4444-555555555555"


def events(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_record_says_what_is_shown(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        content = json.loads((world.tmp / vm_id / "vm.json").read_text())
        assert content["version"] == VERSION
        record = content["vm"]
        assert record["status"] == {"state": "running", "reason": "running"}
        assert record["process"]["pid"] == (await world.guest()).pid
        told = events(world.tmp / vm_id / "events.jsonl")
        numbers = [event["sequence"] for event in told]
        assert numbers == sorted(set(numbers))
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["sequence"] == record["sequence"] == numbers[-1]


def damage(file: Path, how: str) -> None:
    content = json.loads(file.read_text())
    match how:
        case "garbage":
            file.write_bytes(b"\x00\xff" * 100)
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            os.truncate(file, file.stat().st_size // 2)
        case "version":
            file.write_text(json.dumps(content | {"version": 99}))
        case "id":
            content["vm"]["id"] = SOMEBODY
            file.write_text(json.dumps(content))
        case "member":
            content["vm"]["surprise"] = 1
            file.write_text(json.dumps(content))
        case "gone":
            file.unlink()


WAYS = ["garbage", "empty", "truncated", "version", "id", "member", "gone"]


@pytest.mark.parametrize("how", WAYS)
async def test_damaged_record_is_set_aside_and_its_vm_taken_up(world: World, how: str) -> None:
    async with world.serve() as supervisor:
        await supervisor.run()
        guest = await world.guest()
        whole = await supervisor.http.get("/vms")
        await supervisor.leave(guest)
    directory = world.tmp / guest.vm_id
    damage(directory / "vm.json", how)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.status.state is VmState.RUNNING and vm.pid is not None)
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert shown["pid"] == guest.pid
        assert shown["forwards"] == whole.json()["vms"][0]["forwards"]
        aside = list(directory.glob("vm.json.bad-*"))
        assert len(aside) == (how != "gone")
        told = events(directory / "events.jsonl")
        assert [event["event"] for event in told].count("damaged") == 1
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert ended.json()["state"] == "shutoff"


async def test_one_damaged_record_does_not_touch_the_others(world: World) -> None:
    async with world.serve() as supervisor:
        ended = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{ended}/shutdown")
        other = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{other}/shutdown")
    damage(world.tmp / ended / "vm.json", "garbage")
    async with world.serve() as supervisor:
        assert supervisor.vm(other).status.state is VmState.SHUTOFF
        vm = supervisor.vm(ended)
        await vm.wait_ended()
        assert (await supervisor.http.delete(f"/vms/{ended}")).status_code == 204


async def test_half_a_line_of_events_is_cut_off(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
    file = world.tmp / vm_id / "events.jsonl"
    whole = events(file)
    with file.open("ab") as opened:
        opened.write(b'{"sequence": 9')
    async with world.serve():
        assert events(file) == whole


async def test_event_that_only_the_record_has_is_told_all_the_same(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
    file = world.tmp / vm_id / "events.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole[:-1]))
    async with world.serve():
        assert file.read_bytes().splitlines(keepends=True) == whole


async def test_directories_that_were_half_made_or_half_removed(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
    (world.tmp / vm_id).rename(world.tmp / f"{vm_id}.gone")
    (world.tmp / f"{SOMEBODY}.new").mkdir()
    (world.tmp / "something else").mkdir()
    async with world.serve() as supervisor:
        assert not supervisor.running.service.vms
        left = {file.name for file in world.tmp.iterdir()}
        assert {"lock", "events.jsonl", "something else"} <= left
        assert not [name for name in left if name.endswith((".new", ".gone"))]
        told = events(world.tmp / "events.jsonl")
        assert [event["vm"] for event in told if event["event"] == "deleted"] == [vm_id]


async def test_second_supervisor_is_refused(world: World) -> None:
    async with world.serve():
        error = await refusal(world.serve())
        assert str(os.getpid()) in str(error)
        assert "MANAGER_QEMU_TMP_FILE_LOC" in str(error)


async def test_supervisor_that_is_killed(world: World) -> None:
    async with world.serve_apart() as apart:
        answer = await apart.run()
        guest = await world.guest()
        await apart.kill()
    async with world.serve() as supervisor:
        vm = supervisor.vm(answer["id"])
        await vm.until(lambda: vm.agent_ready)
        assert vm.pid == guest.pid
        assert await vm.read_reply() == answer["computation"]
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert ended.json()["reason"] == "guest-shutdown"


@pytest.mark.parametrize("keep", [True, False])
async def test_disk_of_an_ended_vm(world: World, keep: bool) -> None:
    async with world.serve() as supervisor:
        body = {"computation": "aGk=", "keep_disk": keep}
        vm_id = (await supervisor.http.post("/run", json=body)).json()["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        assert (world.tmp / vm_id / "overlay.qcow2").exists() is keep
        assert (world.tmp / vm_id / "vm.json").exists()


async def test_so_many_ended_vms_are_kept(world: World) -> None:
    async with world.serve(MANAGER_KEEP_ENDED="2") as supervisor:
        ids = []
        with supervisor.running.service.journal.events.subscribe() as news:
            for _ in range(3):
                ids.append((await supervisor.run())["id"])
                await supervisor.http.post(f"/vms/{ids[-1]}/shutdown")
            while (await news.receive()).kind != "deleted":
                pass
        assert [vm.id for vm in supervisor.running.service.vms] == ids[1:]
        assert not (world.tmp / ids[0]).exists()


async def test_record_that_cannot_be_written_does_not_end_the_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        file = world.tmp / vm_id / "events.jsonl"
        before = events(file)
        kept = file.read_bytes()
        file.unlink()
        file.mkdir()  # as good as a full disk: it cannot be written to
        paused = await supervisor.http.post(f"/vms/{vm_id}/pause")
        assert paused.json()["state"] == "paused"
        file.rmdir()
        file.write_bytes(kept)
        resumed = await supervisor.http.post(f"/vms/{vm_id}/resume")
        assert resumed.json()["state"] == "running"
        told = [event["state"] for event in events(file)[len(before) :]]
        assert told == ["paused", "running"]
        supervisor.running.stop(OnStop.END)
