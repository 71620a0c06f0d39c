"""VMs that are started from a template."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import pytest
import trio

from supervisor.config import OnStop
from supervisor.pb import manager_pb2
from tests.support.clones import (
    CLONE_STEPS,
    COLD_STEPS,
    change,
    clonable,
    declare,
    events,
    guest_of,
    heard,
    is_clone,
    metrics,
    post,
    ready,
    run,
    show,
    timing,
    until,
)
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return clonable(world)


#: What a clone's QEMU is told, from its greeting to its guest's first instruction.
ASKED = (
    *("set-action", "query-status", "query-sev"),
    *("getfd", "chardev-add", "device_add"),
)
RESTORE = {
    "7.2": [*ASKED, "getfd", "migrate-set-capabilities", "migrate-incoming", "cont"],
    "11.1": [*ASKED, "add-fd", "migrate-set-capabilities", "migrate-incoming", "remove-fd", "cont"],
}


# --- a clone --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", RESTORE)
async def test_run_is_served_by_a_clone(world: World, version: str) -> None:
    world.scenario(version=version)
    async with world.serve() as supervisor:
        template = await ready(supervisor.http)
        digest = template["digest"]
        answer = await post(supervisor.http)
        assert answer.status_code == 200
        assert list(timing(answer)) == [*CLONE_STEPS, "total"]
        shown = await show(supervisor.http, answer.json()["id"])
        assert (shown["purpose"], shown["template"]) == ("run", digest)
        assert list(shown["phases_s"]) == CLONE_STEPS
        assert sorted(shown["phases_s"].values()) == list(shown["phases_s"].values())
        argv = " ".join(shown["argv"])
        ram = world.tmp / "templates" / digest / "ram"
        assert f"memory-backend-file,id=ram,size={16 * 2**20},mem-path={ram},share=off" in argv
        assert "-machine q35,memory-backend=ram" in argv
        assert "-device vmgenid,guid=auto" in argv
        assert "-incoming defer" in argv
        guest = await guest_of(world, shown["id"])
        await guest.until("Run")
        seen = [one["saw"] for one in guest.seen if one["saw"] != "qmp_capabilities"]
        restore = RESTORE[version]
        assert seen[: 1 + len(restore)] == ["started", *restore]
        assert [saw for saw in seen if saw in ("Renew", "Run", "refused")] == ["Renew", "Run"]
        (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert (row["purpose"], row["template"]) == ("run", digest)
        assert (await ready(supervisor.http))["clones"] == 1
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_templates{state="ready"}'] == 1
        assert counted['qmp_supervisor_clones_total{outcome="restored"}'] == 1
        assert counted['qmp_supervisor_clones_total{outcome="fallback"}'] == 0


async def test_no_clone_is_told_what_another_is(world: World) -> None:
    before = time.time_ns()
    async with world.serve(MANAGER_MAX_VMS="20") as supervisor:
        await ready(supervisor.http)
        answers: list[dict[str, Any]] = []

        async def one() -> None:
            answers.append(await run(supervisor.http))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        await (await world.guest()).until("end")
        told = []
        for _ in answers:
            guest = await world.guest()
            renewed = await guest.until("Renew")
            assert renewed["vm"] == guest.vm_id
            told.append(renewed)
            await guest.until("Run")
            assert (guest.count("Renew"), guest.count("refused")) == (1, 0)
        assert len({one["entropy"] for one in told}) == 4
        assert min(len(bytes.fromhex(one["entropy"])) for one in told) >= 32
        assert len({one["hostname"] for one in told}) == 4
        assert {str(UUID(one["vm"])) for one in told} == {one["id"] for one in answers}
        assert all(before <= one["unix_time_ns"] <= time.time_ns() for one in told)
        assert {one["template"] for one in answers} == {(await ready(supervisor.http))["digest"]}


async def test_each_clone_has_a_disk_of_its_own_on_the_templates(world: World) -> None:
    async with world.serve() as supervisor:
        template = world.tmp / "templates" / (await ready(supervisor.http))["digest"]
        before = {file.name: file.stat().st_mtime_ns for file in template.iterdir()}
        for _ in range(2):
            shown = await run(supervisor.http)
            information = await trio.run_process(
                ["qemu-img", "info", "-U", "--output=json", f"{shown['directory']}/overlay.qcow2"],
                capture_stdout=True,
            )
            backing = json.loads(information.stdout)["full-backing-filename"]
            assert backing == str(template / "overlay.qcow2")
        assert {file.name: file.stat().st_mtime_ns for file in template.iterdir()} == before


async def test_cold_run_says_so(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        answer = await post(supervisor.http, template="off")
        assert list(timing(answer)) == [*COLD_STEPS, "total"]
        shown = await show(supervisor.http, answer.json()["id"])
        assert list(shown["phases_s"]) == COLD_STEPS
        assert not is_clone(shown)
        assert shown["template"] is None
        assert not [word for word in shown["argv"] if "memory-backend" in word]
        guest = await guest_of(world, shown["id"])
        await guest.until("Run")
        assert guest.count("Renew") == 0


async def test_times_add_up(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        for wish in ("off", "require"):
            answer = await post(supervisor.http, template=wish)
            *steps, total = timing(answer).values()
            # Each is rounded to a tenth of a millisecond.
            assert sum(steps) <= total + len(steps) / 10
            phases = (await show(supervisor.http, answer.json()["id"]))["phases_s"]
            # Each is told to the millisecond in one place, and as a difference in the other.
            assert abs(sum(steps) - 1000 * phases["relay"]) < len(steps)


@pytest.mark.parametrize("wish", ["auto", "off", "require"])
async def test_wish_over_grpc(world: World, wish: str) -> None:
    async with world.serve() as supervisor:
        digest = (await ready(supervisor.http))["digest"]

        def call() -> Any:
            request = manager_pb2.RunRequest(computation=b"{}")
            metadata = (("template", wish),)
            return supervisor.manager.Run(request, timeout=PATIENCE_S, metadata=metadata)

        shown = await show(supervisor.http, (await in_thread(call)).ID)
        assert shown["template"] == (None if wish == "off" else digest)


async def test_wish_over_grpc_that_makes_no_sense(world: World) -> None:
    async with world.serve(MANAGER_TEMPLATES="off") as supervisor:

        def call() -> Any:
            request = manager_pb2.RunRequest(computation=b"{}")
            metadata = (("template", "maybe"),)
            return supervisor.manager.Run(request, timeout=PATIENCE_S, metadata=metadata)

        with pytest.raises(grpc.RpcError) as refused:
            await in_thread(call)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not supervisor.running.service.vms


async def test_run_that_is_not_waited_for(world: World) -> None:
    async with world.serve() as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        vm_id = await supervisor.begin(b"later")
        shown = await until(
            supervisor.http, f"/vms/{vm_id}", lambda vm: vm["relay"]["state"] == "answered"
        )
        assert shown["template"] == digest


async def test_same_key_with_another_wish_is_another_request(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        first = await post(supervisor.http, key="k", template="require")
        again = await post(supervisor.http, key="k", template="require")
        assert again.json() == first.json()
        assert (await post(supervisor.http, key="k", template="off")).status_code == 409


# --- a clone's life -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["graceful", "force"])
async def test_clone_is_ended_like_any_vm(world: World, mode: str) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        ended = await supervisor.http.post(f"/vms/{clone['id']}/shutdown", json={"mode": mode})
        reason = "guest-shutdown" if mode == "graceful" else "host-qmp-quit"
        assert (ended.json()["state"], ended.json()["reason"]) == ("shutoff", reason)
        assert ended.json()["error"] is None
        assert (await ready(supervisor.http))["clones"] == 0
        assert not (world.tmp / clone["id"] / "overlay.qcow2").exists()
        again = await run(supervisor.http)
        assert (await supervisor.http.delete(f"/vms/{again['id']}")).status_code == 204
        assert (await ready(supervisor.http))["clones"] == 0
        assert not (world.tmp / again["id"]).exists()
        assert is_clone(await run(supervisor.http))


async def test_pause_and_resume(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        for action, state in (("pause", "paused"), ("resume", "running")):
            answer = await supervisor.http.post(f"/vms/{clone['id']}/{action}")
            assert (answer.status_code, answer.json()["state"]) == (200, state)


async def test_reset_of_a_clone_boots_its_guest_anew(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        answer = await supervisor.http.post(f"/vms/{clone['id']}/reset")
        assert (answer.status_code, answer.json()["state"]) == (200, "running")
        vm = supervisor.vm(clone["id"])
        await vm.until(lambda: vm.agent_ready)
        shown = await show(supervisor.http, vm.id)
        assert shown["relay"] == clone["relay"]
        assert (await ready(supervisor.http))["clones"] == 1  # its disk is still on it
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        guest = await guest_of(world, vm.id)
        assert (await heard(guest, "Run"), guest.count("Renew")) == (1, 1)


async def test_reset_before_it_is_renewed(world: World) -> None:
    """What comes up then is no copy any more: there is nothing to renew."""
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(renew="silence")
        vm_id = await supervisor.begin(b"x")
        guest = await guest_of(world, vm_id)
        await guest.until("Renew")
        answer = await supervisor.http.post(f"/vms/{vm_id}/reset")
        assert answer.status_code == 200
        await guest.until("Run")
        await supervisor.vm(vm_id).wait_answered()
        assert (guest.count("Renew"), guest.count("refused")) == (1, 0)
        assert not events(world, vm_id, "fallback")


async def test_crashed_clone_boots_cold_on_its_own_disk(world: World) -> None:
    settings = {"MANAGER_RESTART": "on-failure", "MANAGER_RESTART_BACKOFF": "1ms"}
    async with world.serve(**settings) as supervisor:
        old = (await ready(supervisor.http))["digest"]
        clone = await run(supervisor.http)
        disk = (world.tmp / clone["id"] / "overlay.qcow2").stat().st_ino
        guest = await guest_of(world, clone["id"])
        await guest.until("Run")
        await guest.exit(-9)
        again = await world.guest()
        await again.until("Run")
        assert again.vm_id == clone["id"]
        vm = supervisor.vm(clone["id"])
        await vm.until(lambda: vm.agent_ready and not vm.record.awaits_answer)
        shown = await show(supervisor.http, clone["id"])
        assert not is_clone(shown)
        assert shown["restart"]["count"] == 1
        assert not events(world, clone["id"], "fallback")
        assert (world.tmp / clone["id"] / "overlay.qcow2").stat().st_ino == disk
        # The disk is on the template's still, also for those who come after us.
        change(world.image)
        declare(world.image)
        await run(supervisor.http)  # finds none, which has one made
        await ready(supervisor.http, other_than=old)
        assert (world.tmp / "templates" / old / "overlay.qcow2").exists()
        assert (again.count("Renew"), again.count("Run")) == (0, 1)


async def test_guest_that_is_held_while_it_is_renewed(world: World) -> None:
    """The time allowed stands still; then it is asked again."""
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(clones_agent="none")
        vm_id = await supervisor.begin(b"x")
        guest = await guest_of(world, vm_id)
        await supervisor.wait_state(vm_id, "running")
        for action in ("pause", "resume"):
            answer = await supervisor.http.post(f"/vms/{vm_id}/{action}")
            assert answer.status_code == 200, answer.text
        await guest.order("start-agent", kind="recorder")
        await supervisor.vm(vm_id).wait_answered()
        await guest.until("Run")
        assert (guest.count("Renew"), guest.count("refused")) == (1, 0)


async def test_stop_ends_clones_by_their_guests(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        supervisor.running.stop(OnStop.END)
        guest = await guest_of(world, clone["id"])
        await guest.until("system_powerdown")
        await guest.until("end")
    async with world.serve() as supervisor:
        shown = await show(supervisor.http, clone["id"])
        assert (shown["state"], shown["reason"]) == ("shutoff", "guest-shutdown")
        assert (await ready(supervisor.http))["clones"] == 0


async def test_time_to_live(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        # Not waited for: its time may be over before its agent has answered.
        answer = await supervisor.http.post(
            "/run",
            json={"computation": "aGk=", "ttl": "500ms"},
            headers={"Prefer": "respond-async"},
        )
        vm = supervisor.vm(answer.json()["id"])
        guest = await guest_of(world, vm.id)
        await guest.until("system_powerdown")
        await vm.wait_ended()
        assert is_clone(await show(supervisor.http, vm.id))
        assert vm.status.reason == "guest-shutdown"
