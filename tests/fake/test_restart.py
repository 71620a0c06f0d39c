"""Which ends of a VM are followed by another boot, and which are not."""

from __future__ import annotations

import errno
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.config import OnStop
from supervisor.state.status import Status, VmState
from supervisor.state.vm_dir import VmDir
from tests.fake.test_recovery import edit_record

if TYPE_CHECKING:
    import socket

    from supervisor.vm.vm import Vm
    from tests.support.world import Supervisor, World

AT_ONCE = {"MANAGER_RESTART": "on-failure", "MANAGER_RESTART_BACKOFF": "1ms"}
LATER = {"MANAGER_RESTART": "on-failure", "MANAGER_RESTART_BACKOFF": "1m"}


def events(vm: Vm, kind: str) -> list[dict[str, Any]]:
    lines = vm.dir.events.read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


async def begin(supervisor: Supervisor, **members: Any) -> Vm:
    body = {"computation": "aGk=", **members}
    answer = await supervisor.http.post("/run", json=body, headers={"Prefer": "respond-async"})
    return supervisor.vm(answer.json()["id"])


async def crashed(supervisor: Supervisor, world: World) -> Vm:
    """A VM that waits to be booted again."""
    vm = await begin(supervisor)
    guest = await world.guest()
    await guest.until("Run")
    await guest.exit(-9)
    await supervisor.wait_state(vm.id, "crashed")
    return vm


# --- what is no failure ---------------------------------------------------------------------


@pytest.mark.parametrize(("order", "reason"), [("power-off", "shutdown"), ("reboot", "reset")])
async def test_good_end_is_an_end(world: World, order: str, reason: str) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()
        await guest.order(order)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, f"guest-{reason}")
        assert vm.record.restarts == 0


async def test_guest_that_never_ran_is_not_booted_again(world: World) -> None:
    world.scenario(exits=1, says="no such machine")
    async with world.serve(**AT_ONCE) as supervisor:
        answer = await supervisor.post(b"x")
        assert answer.status_code == 500
        assert "no such machine" in answer.json()["detail"]
        assert supervisor.only_vm().record.restarts == 0


async def test_run_that_its_agent_refuses_is_not_made_again(world: World) -> None:
    world.scenario(agent="status", status=("INVALID_ARGUMENT", "nonsense"))
    async with world.serve(**AT_ONCE) as supervisor:
        answer = await supervisor.post(b"x")
        assert answer.status_code == 502
        vm = supervisor.only_vm()
        await vm.wait_ended()
        assert vm.record.restarts == 0
        assert vm.record.relay == "failed"


async def test_request_knows_better_than_the_settings(world: World) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor, restart="never")
        guest = await world.guest()
        await guest.until("Run")
        await guest.exit(-9)
        await vm.wait_ended()
        assert vm.record.restarts == 0
        assert not events(vm, "restarting")


# --- what is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ({"do": "panic"}, "guest-panicked"),
        ({"do": "exit", "code": 1}, "exit:1"),
        ({"do": "exit", "code": 0}, "exit:0"),
    ],
)
async def test_ways_to_crash(world: World, crash: dict[str, Any], reason: str) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await guest.order(**crash)
        again = await world.guest()
        await again.until("Run")
        (restarting,) = events(vm, "restarting")
        assert (restarting["number"], restarting["in_s"]) == (1, 0.001)
        reasons = [one["reason"] for one in events(vm, "state") if one["state"] == "crashed"]
        assert set(reasons) == {reason}


async def test_guest_whose_watchdog_ran_out_is_booted_again(world: World) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await guest.emit("WATCHDOG", action="reset")
        await guest.order("reboot")
        again = await world.guest()
        await again.until("Run")
        assert "watchdog" in [one["reason"] for one in events(vm, "state")]


async def test_each_boot_has_its_own_process_and_socket(world: World) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor)
        pids = []
        for _ in range(3):
            guest = await world.guest()
            await guest.until("Run")
            pids.append(guest.pid)
            if len(pids) < 3:
                await guest.exit(-11)
        await vm.until(lambda: vm.agent_ready and vm.record.relay == "answered")
        assert [one["pid"] for one in events(vm, "launched")] == pids
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["pid"], shown["exit_code"]) == (pids[-1], None)
        assert shown["restart"]["count"] == 2
        assert (await supervisor.http.get(f"/vms/{vm.id}/status?live=1")).status_code == 200
        ended = (await supervisor.http.post(f"/vms/{vm.id}/shutdown")).json()
        assert (ended["state"], ended["exit_code"], ended["error"]) == ("shutoff", 0, None)


async def test_launches_that_fail_count_as_crashes(world: World) -> None:
    async with world.serve(**AT_ONCE, MANAGER_RESTART_LIMIT="3") as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()
        world.scenario(exits=1, says="no such machine")
        await guest.exit(-9)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:1")
        assert vm.record.exit_code == 1
        assert "no such machine" in (vm.record.error or "")
        assert [one["number"] for one in events(vm, "restarting")] == [1, 2, 3]
        assert not (vm.dir.path / "overlay.qcow2").exists()


async def test_launch_that_fails_is_followed_by_one_that_does_not(world: World) -> None:
    async with world.serve(**AT_ONCE, MANAGER_RESTART_LIMIT="1000000") as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()
        world.scenario(exits=1, says="Cannot allocate memory")
        await guest.exit(-9)
        await supervisor.wait_record(vm.id, lambda record: record.restarts >= 2)
        world.scenario()
        again = await world.guest()
        await again.until("Run")
        ended = (await supervisor.http.post(f"/vms/{vm.id}/shutdown")).json()
        assert (ended["state"], ended["exit_code"], ended["error"]) == ("shutoff", 0, None)


async def test_launch_that_lacks_a_descriptor_is_followed_by_one_that_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serve(**AT_ONCE, MANAGER_RESTART_LIMIT="1000000") as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()

        def lack(_: VmDir) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patched:
            patched.setattr(VmDir, "listen_qmp", lack)
            await guest.exit(-9)
            await supervisor.wait_record(vm.id, lambda record: record.restarts >= 2)
        again = await world.guest()
        await again.until("Run")
        ended = (await supervisor.http.post(f"/vms/{vm.id}/shutdown")).json()
        assert (ended["state"], ended["exit_code"], ended["error"]) == ("shutoff", 0, None)


async def test_firmware_that_is_gone_is_named(world: World) -> None:
    """The variables of each VM belong to it, so that it is looked at before each boot."""
    async with world.serve(**AT_ONCE, MANAGER_RESTART_LIMIT="1") as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()
        code = world.image.with_name("CODE.fd")
        code.unlink()
        await guest.exit(-9)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:none")
        assert str(code) in (vm.record.error or "")


@pytest.mark.parametrize("how", ["replaced", "rewritten", "gone"])
async def test_disk_is_not_booted_on_another_image(world: World, how: str) -> None:
    """The two together would be a mixture of file systems."""
    async with world.serve(**AT_ONCE, MANAGER_RESTART_LIMIT="1") as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await vm.wait_answered()
        other = world.image.with_name("other.qcow2")
        shutil.copyfile(world.image, other)
        if how == "replaced":
            other.rename(world.image)
        elif how == "rewritten":
            world.image.write_bytes(other.read_bytes())
        else:
            world.image.unlink()
        await guest.exit(-9)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:none")
        assert str(world.image) in (vm.record.error or "")
        assert "was made on" in (vm.record.error or "")
        assert len(events(vm, "launched")) == 1


async def test_interrupted_computation_is_sent_to_the_guest_booted_again(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve(**AT_ONCE) as supervisor:
        vm = await begin(supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.agent_ready)
        assert vm.record.relay == "interrupted"
        world.scenario()
        await guest.exit(-9)
        await world.reap()
        again = await world.guest()
        assert world.received((await again.until("Run"))["digest"]) == b"hi"
        await vm.wait_answered()
        assert vm.record.relay == "answered"
        await vm.until(lambda: vm.record.relay == "answered")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.record.error is None


# --- the wait before it ---------------------------------------------------------------------


async def test_it_is_shown_as_crashed_and_not_ended(world: World) -> None:
    async with world.serve(**LATER) as supervisor:
        vm = await crashed(supervisor, world)
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["state"], shown["reason"]) == ("crashed", "exit:-9")
        assert (shown["ended"], shown["monitor"], shown["exit_code"]) == (False, "none", -9)
        assert not shown["agent"]["ready"]
        for action in ("pause", "resume", "reset"):
            assert (await supervisor.http.post(f"/vms/{vm.id}/{action}")).status_code == 409
        live = await supervisor.http.get(f"/vms/{vm.id}/status?live=1")
        assert live.status_code in (409, 503)


async def test_it_can_be_deleted(world: World) -> None:
    async with world.serve(**LATER) as supervisor:
        vm = await crashed(supervisor, world)
        assert (await supervisor.http.delete(f"/vms/{vm.id}")).status_code == 204
        assert not vm.dir.path.exists()


async def test_it_has_its_place_among_the_vms(world: World) -> None:
    async with world.serve(**LATER, MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        await crashed(supervisor, world)
        assert (await supervisor.post(b"x")).status_code == 429


async def test_it_ends_with_the_supervisor(world: World) -> None:
    async with world.serve(**LATER) as supervisor:
        vm = await crashed(supervisor, world)
        supervisor.running.stop(OnStop.END)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:-9")


async def test_wait_that_another_supervisor_ends_is_one_restart(world: World) -> None:
    async with world.serve(**LATER) as supervisor:
        vm = await crashed(supervisor, world)
        supervisor.running.stop(OnStop.LEAVE)
        await vm.wait_over()
    async with world.serve(MANAGER_RESTART_BACKOFF="1ms") as supervisor:
        again = await world.guest()
        await again.until("Run")
        vm = supervisor.vm(again.vm_id)
        assert vm.record.restarts == 1
        assert {one["number"] for one in events(vm, "restarting")} == {1}


@pytest.mark.parametrize("when", ["while it ran", "while it waited"])
async def test_host_that_is_booted_again_twice_before_the_guest_is(world: World, when: str) -> None:
    """Its time to live begins anew: the clock that it is counted by has."""
    long_ago_s = 1e9
    async with world.serve(**LATER) as supervisor:
        vm = await crashed(supervisor, world)
        supervisor.running.stop(OnStop.LEAVE)
        await vm.wait_over()
    before = json.loads((world.tmp / vm.id / "vm.json").read_text())["vm"]
    status = {"state": "running", "reason": "running"} if when == "while it ran" else {}
    edit_record(
        world,
        vm.id,
        process=before["process"] | {"boot_id": "another"},
        first_ran_s=long_ago_s,
        running_since_s=long_ago_s,
        status=before["status"] | status,
    )
    async with world.serve(MANAGER_RESTART_BACKOFF="1m") as supervisor:
        vm = supervisor.vm(vm.id)
        await supervisor.wait_record(vm.id, lambda record: record.first_ran_s is None)
        supervisor.running.stop(OnStop.LEAVE)
        await vm.wait_over()
    async with world.serve(MANAGER_RESTART_BACKOFF="1ms") as supervisor:
        again = await world.guest()
        await again.until("Run")
        record = supervisor.vm(vm.id).record
        assert record.restarts == 1
        assert record.first_ran_s is not None
        assert record.first_ran_s < long_ago_s


async def test_answer_stays_one_while_a_guest_boots_again(world: World) -> None:
    """A repeat with the key has it at once, and the end of the VM is no failure of the run."""
    body, key = {"computation": "aGk="}, {"Idempotency-Key": "k"}
    async with world.serve(**AT_ONCE) as supervisor:
        first = await supervisor.http.post("/run", json=body, headers=key)
        vm = supervisor.only_vm()
        guest = await world.guest()
        await guest.until("Run")
        world.scenario(agent="none")
        await guest.exit(-9)
        again = await world.guest()
        await again.until("cont")
        await vm.until(lambda: vm.status.state is VmState.RUNNING and vm.record.restarts == 1)
        assert vm.record.relay == "waiting"
        repeat = await supervisor.http.post("/run", json=body, headers=key)
        assert repeat.json()["computation"] == first.json()["computation"]
        ended = (await supervisor.http.post(f"/vms/{vm.id}/shutdown")).json()
        assert (ended["relay"]["state"], ended["error"]) == ("answered", None)


async def test_answer_stays_one_though_the_second_sending_fails(world: World) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.until("Run")
        world.scenario(agent="status", status=("INVALID_ARGUMENT", "nonsense"))
        await guest.exit(-9)
        await vm.wait_ended()
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["relay"]["state"], shown["error"]) == ("answered", None)
        assert vm.record.end_cause == "run-failed"
