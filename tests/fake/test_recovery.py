"""What a supervisor makes of the VMs that the one before it left running."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.qemu.connection import MonitorState
from supervisor.state.record import (
    EndCause,
    EndMode,
)
from supervisor.state.status import Status, VmState
from tests.support.scenario import ALWAYS

if TYPE_CHECKING:
    from tests.support.guest import Guest
    from tests.support.world import Supervisor, World


async def show(supervisor: Supervisor, vm_id: str) -> dict[str, Any]:
    answer = await supervisor.http.get(f"/vms/{vm_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def left(world: World, **settings: str) -> Guest:
    """A VM that was answered, and then left by its supervisor."""
    async with world.serve(**settings) as supervisor:
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    return guest


def edit_record(world: World, vm_id: str, **changes: Any) -> None:
    """Change the record of a VM while no supervisor looks."""
    file = world.tmp / vm_id / "vm.json"
    content = json.loads(file.read_text())
    content["vm"] |= changes
    file.write_text(json.dumps(content))


async def test_vm_that_was_left_runs_on_and_is_taken_up(world: World) -> None:
    async with world.serve() as supervisor:
        await supervisor.run()
        guest = await world.guest()
        before = await show(supervisor, guest.vm_id)
        await supervisor.leave(guest)
    os.kill(guest.pid, 0)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.agent_ready)
        after = await show(supervisor, vm.id)
        for name in ("pid", "state", "reason", "created_at", "forwards", "command", "ttl_s"):
            assert after[name] == before[name], name
        assert after["pid"] == guest.pid
        assert after["state"] == "running"
        assert after["relay"] == {"state": "answered"}
        assert after["uptime_s"] >= before["uptime_s"]
        assert after["agent"]["ready"]
        # And it is whole: it can be ended like any other.
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert (ended.json()["state"], ended.json()["reason"]) == ("shutoff", "guest-shutdown")
        assert ended.json()["error"] is None
    await guest.until("end")
    assert guest.count("Run") == 1


async def test_what_is_known_of_a_qemu_is_not_asked_again(world: World) -> None:
    guest = await left(world)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.monitor_state is MonitorState.OK)
        assert vm.facts
        assert not vm.facts.sev.enabled
        await supervisor.http.post(f"/vms/{vm.id}/pause")
        await guest.until("stop")
    asked = [guest.count(what) for what in ("qmp_capabilities", "set-action", "query-sev")]
    assert asked == [2, 1, 1]


async def test_ports_of_an_adopted_vm_are_not_given_to_another(world: World) -> None:
    guest = await left(world)
    async with world.serve() as supervisor:
        await supervisor.run()
        one, other = (vm.record.forwards for vm in supervisor.running.service.vms)
        assert not {forward.host_port for forward in one} & {forward.host_port for forward in other}
        assert supervisor.vm(guest.vm_id).status.state is VmState.RUNNING


async def test_adopted_vms_count(world: World) -> None:
    await left(world)
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        assert (await supervisor.post(b"x")).status_code == 429


async def test_guest_that_was_paused_meanwhile(world: World) -> None:
    guest = await left(world)
    await guest.order("hold", status="io-error")
    async with world.serve() as supervisor:
        await supervisor.wait_state(guest.vm_id, "paused")
        assert supervisor.vm(guest.vm_id).status == Status(VmState.PAUSED, "io-error")


async def test_guest_that_was_reset_while_held_is_not_taken_for_new(world: World) -> None:
    """QEMU calls it ``prelaunch`` then, as one that has never run."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        for action in ("pause", "reset"):
            answer = await supervisor.http.post(f"/vms/{vm_id}/{action}")
            assert (answer.status_code, answer.json()["state"]) == (200, "paused")
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        for _ in range(2):
            await guest.until("qmp_capabilities")
        live = await supervisor.http.get(f"/vms/{vm_id}/status?live=1")
        assert live.json()["query_status"]["status"] == "prelaunch"
        assert live.json()["state"] == "paused"
        assert guest.count("cont") <= 1
        answer = await supervisor.http.post(f"/vms/{vm_id}/resume")
        assert answer.json()["state"] == "running"


async def test_guest_that_powered_off_meanwhile(world: World) -> None:
    guest = await left(world)
    await guest.order("power-off")
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "shutdown")
        assert vm.record.error is None
        await guest.until("quit")


async def test_guest_that_panicked_meanwhile(world: World) -> None:
    guest = await left(world)
    await guest.order("panic")
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "guest-panicked")
        await guest.until("end")


async def test_process_that_was_killed_meanwhile(world: World) -> None:
    guest = await left(world)
    os.kill(guest.pid, signal.SIGKILL)
    await guest.until("end")
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:unknown")
        assert not vm.dir.overlay.exists()


async def test_shutdown_on_record_and_its_process_gone(world: World) -> None:
    world.scenario(ignores_quit=True)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        await guest.order("power-off")
        await supervisor.wait_state(vm_id, "shutdown")
        await supervisor.leave(guest)
    await guest.exit(0)
    await guest.until("end")
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert vm.record.error is None


async def test_shutdown_on_record_and_its_process_waiting_to_be_told(world: World) -> None:
    """The supervisor went between the guest's end and ``quit``; the next one says it."""
    world.scenario(ignores_quit=True)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        await guest.order("power-off")
        await supervisor.wait_state(vm_id, "shutdown")
        await guest.until("quit")
        await supervisor.leave(guest)
    async with world.serve(MANAGER_QUIT_GRACE="1s") as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        await guest.until("quit")  # once more
        await guest.until("SIGTERM")


async def left_with_its_end_begun(world: World) -> Guest:
    """A guest that does not hear the button, left by the supervisor that was ending it."""
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        vm.request_end(EndMode.GRACEFUL, EndCause.API, "of the test")
        await guest.until("system_powerdown")
        await supervisor.leave(guest)
    return guest


async def test_end_that_was_asked_for_goes_on(world: World) -> None:
    guest = await left_with_its_end_begun(world)
    async with world.serve(MANAGER_POWERDOWN_GRACE="10ms") as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "host-qmp-quit")


async def test_qemu_that_is_slow_to_be_met_again_is_asked_to_quit_all_the_same(
    world: World,
) -> None:
    guest = await left_with_its_end_begun(world)
    await guest.order("swallow", commands=["qmp_capabilities"])
    async with world.serve(MANAGER_POWERDOWN_GRACE="10ms") as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await guest.until("qmp_capabilities")
        await guest.order("swallow", commands=[])
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "host-qmp-quit")
        assert guest.count("SIGTERM") == 0


async def test_relay_that_was_cut_off_is_interrupted_and_not_sent_again(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        await supervisor.begin()
        guest = await world.guest()
        await guest.until("Run")
        await supervisor.leave(guest)
        assert supervisor.vm(guest.vm_id).record.relay == "interrupted"
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.agent_ready)
        shown = await show(supervisor, vm.id)
        assert shown["relay"]["state"] == "interrupted"
        assert shown["state"] == "running"
    await guest.until("end")
    assert guest.count("Run") == 1


async def test_relay_that_still_waits_is_sent_by_the_next_one(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        await supervisor.begin(b"late")
        guest = await world.guest()
        await guest.until("cont")
        await supervisor.wait_state(guest.vm_id, "running")
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        await guest.order("start-agent", kind="recorder")
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_answered()
        assert world.received(await vm.read_reply()) == b"late"
        assert not vm.dir.computation.exists()


async def test_socket_that_is_gone_while_its_process_lives(world: World) -> None:
    guest = await left(world)
    (world.tmp / guest.vm_id / "qmp.sock").unlink()
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        await guest.until("SIGTERM")
        assert guest.count("quit") == 0
        ending = [json.loads(line) for line in vm.dir.events.read_text().splitlines()]
        told = {event["event"]: event for event in ending}
        assert told["monitor"]["monitor"] == "lost"
        assert "socket" in told["ending"]["why"]


async def test_other_process_with_the_recorded_pid_is_left_alone(world: World) -> None:
    guest = await left(world)
    await guest.exit(0)
    await guest.until("end")
    record = json.loads((world.tmp / guest.vm_id / "vm.json").read_text())["vm"]
    mine = record["process"] | {"pid": os.getpid()}
    edit_record(world, guest.vm_id, process=mine)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:unknown")


async def test_record_from_before_the_host_was_booted(world: World) -> None:
    guest = await left(world)
    await guest.exit(0)
    await guest.until("end")
    record = json.loads((world.tmp / guest.vm_id / "vm.json").read_text())["vm"]
    edit_record(world, guest.vm_id, process=record["process"] | {"boot_id": "another"})
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "host-reboot")


async def test_vms_that_have_ended_are_still_listed(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        before = (await supervisor.http.post(f"/vms/{vm_id}/shutdown")).json()
        world.scenario(exits=3, says="no such CPU")
        await supervisor.post(b"x")
        failed = [vm.id for vm in supervisor.running.service.vms if vm.id != vm_id]
    async with world.serve() as supervisor:
        after = await show(supervisor, vm_id)
        drop = {"query_status", "query_sev", "asked_at"}
        assert {**after, **dict.fromkeys(drop)} == {**before, **dict.fromkeys(drop)}
        again = await show(supervisor, failed[0])
        assert (again["state"], again["reason"], again["exit_code"]) == ("crashed", "exit:3", 3)
        assert "no such CPU" in again["error"]


@pytest.mark.parametrize("guests", [0, 2])
async def test_adoption_is_told_of(world: World, guests: int) -> None:
    async with world.serve() as supervisor:
        for _ in range(guests):
            await supervisor.run()
        some = [await world.guest() for _ in range(guests)]
        await supervisor.leave(*some)
    async with world.serve():
        lines = [json.loads(line) for line in _own_events(world)]
        adopted = [line for line in lines if line["event"] == "adopted"]
        assert len(adopted) == bool(guests)
        if guests:
            assert set(adopted[0]["running"]) == {guest.vm_id for guest in some}
            assert adopted[0]["vm"] is None


def _own_events(world: World) -> list[str]:
    file = world.tmp / "events.jsonl"
    return file.read_text().splitlines() if file.exists() else []
