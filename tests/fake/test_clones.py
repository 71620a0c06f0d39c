"""VMs that are started from a template, and what is done where that does not work."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import pytest
import trio

from supervisor.config import OnStop
from supervisor.pb import manager_pb2
from tests.fake.clones import (
    IMPATIENT,
    change,
    clonable,
    declare,
    guest_of,
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
from tests.fake.scenario import ALWAYS
from tests.fake.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from tests.fake.guest import Guest
    from tests.fake.world import Supervisor, World

COLD_STEPS = ["queue", "directory", "overlay", "spawn", "greeting", "running", "agent", "relay"]
CLONE_STEPS = [
    *("queue", "directory", "overlay", "spawn", "greeting"),
    *("restore", "running", "renew", "agent", "relay"),
]

#: What a clone's QEMU is told, from its greeting to its guest's first instruction.
RESTORE = [
    *("set-action", "query-status", "query-sev"),
    *("getfd", "migrate-set-capabilities", "migrate-incoming", "cont"),
]


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return clonable(world, monkeypatch)


def events(world: World, vm_id: str, kind: str) -> list[dict[str, Any]]:
    lines = (world.tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


async def both_guests(world: World, vm_id: str) -> tuple[Guest, Guest]:
    """The runs of the stand-in for a VM that was started twice."""
    return await guest_of(world, vm_id), await guest_of(world, vm_id)


async def heard(guest: Guest, what: str) -> int:
    """How often this was seen there until its end; it has to be over."""
    while (await guest.next())["saw"] != "end":
        pass
    return guest.count(what)


# --- a clone --------------------------------------------------------------------------------


async def test_run_is_served_by_a_clone(world: World) -> None:
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
        assert seen == ["started", *RESTORE, "Renew", "Run"]
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
    "spoil", [spoil_state, remove_state, spoil_ram, remove_ram, remove_clone_disk]
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
        await until(
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
        await vm.until(lambda: vm.relay.agent_ready)
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
        await vm.until(lambda: vm.relay.agent_ready and not vm.relay.pending)
        shown = await show(supervisor.http, clone["id"])
        assert not is_clone(shown)
        assert shown["restart"]["count"] == 1
        assert not events(world, clone["id"], "fallback")
        assert (world.tmp / clone["id"] / "overlay.qcow2").stat().st_ino == disk
        # The disk is on the template's still, also for those who come after us.
        change(world.image)
        declare(world.image)
        await run(supervisor.http, template="off")
        assert (await ready(supervisor.http))["digest"] != old
        assert (world.tmp / "templates" / old / "overlay.qcow2").exists()
        assert (again.count("Renew"), again.count("Run")) == (0, 1)


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
        clone = await run(supervisor.http, ttl="500ms")
        guest = await guest_of(world, clone["id"])
        await guest.until("system_powerdown")
        vm = supervisor.vm(clone["id"])
        await vm.wait_ended()
        assert vm.status.reason == "guest-shutdown"


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
        seen = [one["saw"] for one in guest.seen if "query-" not in one["saw"]]
        assert seen[-2:] == ["Renew", "Run"]
        assert seen.count("Renew") == 1
        assert (await show(supervisor.http, vm_id))["template"]


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
    async with world.serve(**settings) as supervisor:
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
