"""Pause, resume and reset; the restart of what has crashed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.pb import vm_pb2
from supervisor.state.record import RelayState
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from supervisor.vm.on_record import OnRecord
    from tests.support.world import Supervisor, World


async def act(supervisor: Supervisor, vm_id: str, action: str, status: int = 200) -> Any:
    answer = await supervisor.http.post(f"/vms/{vm_id}/{action}")
    assert answer.status_code == status, answer.text
    return answer.json()


def events_of(world: World, vm_id: str) -> list[dict[str, Any]]:
    lines = (world.tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_pause_and_resume(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        for _ in range(2):  # what is held stays held
            assert (await act(supervisor, vm_id, "pause"))["state"] == "paused"
        for _ in range(2):
            resumed = await act(supervisor, vm_id, "resume")
            assert resumed["state"] == "running"
        status = (await supervisor.http.get(f"/vms/{vm_id}/status")).json()
        assert resumed.keys() == status.keys()
        guest = await world.guest()
        await act(supervisor, vm_id, "shutdown")
        await guest.until("end")
        assert (guest.count("stop"), guest.count("cont")) == (1, 2)


async def test_suspended_guest_is_woken(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        await guest.order("set-status", status="suspended")
        await guest.emit("SUSPEND")
        await supervisor.wait_state(vm_id, "paused")
        assert (await act(supervisor, vm_id, "resume"))["state"] == "running"
        await guest.until("system_wakeup")


@pytest.mark.parametrize("action", ["pause", "resume", "reset"])
async def test_what_has_ended_cannot_be_controlled(world: World, action: str) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await act(supervisor, vm_id, "shutdown")
        problem = await act(supervisor, vm_id, action, 409)
        assert vm_id in problem["detail"]
        await act(supervisor, "no-such", action, 404)


async def test_reset_boots_the_guest_anew(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        assert (await act(supervisor, vm.id, "reset"))["state"] == "running"
        await vm.until(lambda: vm.agent_ready)
        # The answer it gave before stays its answer.
        assert vm.record.relay == "answered"
        kinds = [event["event"] for event in events_of(world, vm.id)]
        assert kinds.count("reset") == 1
        # A reboot of the guest's own is an end again.
        await guest.order("reboot")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-reset")


async def test_guest_reboots_whose_supervisor_was_killed_as_it_reset_it(world: World) -> None:
    """Nobody has told its QEMU again that a reboot is an end."""
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.emit("RESET", guest=True, reason="guest-reset")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-reset")


async def test_computation_that_a_reset_cut_off_is_not_sent_again(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await act(supervisor, vm.id, "reset")
        assert vm.record.relay == "interrupted"
        await vm.until(lambda: vm.agent_ready)
        await act(supervisor, vm.id, "shutdown")
        await guest.until("end")
        assert guest.count("Run") == 1


async def test_control_over_grpc(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        stub = supervisor.vm_service
        paused = await supervisor.call(stub.Pause, vm_pb2.PauseRequest(id=vm_id))
        assert paused.state == vm_pb2.VM_STATE_PAUSED
        running = await supervisor.call(stub.Resume, vm_pb2.ResumeRequest(id=vm_id))
        assert running.state == vm_pb2.VM_STATE_RUNNING
        reset = await supervisor.call(stub.Reset, vm_pb2.ResetRequest(id=vm_id))
        assert reset.state == vm_pb2.VM_STATE_RUNNING
        await act(supervisor, vm_id, "shutdown")
        with pytest.raises(grpc.RpcError) as caught:
            await supervisor.call(stub.Pause, vm_pb2.PauseRequest(id=vm_id))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- restarts -------------------------------------------------------------------------------


async def begin(supervisor: Supervisor, **members: Any) -> str:
    answer = await supervisor.http.post(
        "/run",
        json={"computation": "aGk=", **members},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_crashed_vm_is_booted_again_under_its_id(world: World) -> None:
    async with world.serve(MANAGER_RESTART_BACKOFF="10ms") as supervisor:
        vm = supervisor.vm(await begin(supervisor, restart="on-failure"))
        first = await world.guest()
        await first.until("Run")
        await vm.wait_answered()
        await first.exit(-9)
        second = await world.guest()
        assert (second.vm_id, second.pid != first.pid) == (vm.id, True)
        digest = (await second.until("Run"))["digest"]
        assert world.received(digest) == b"hi"
        await vm.until(lambda: vm.status.state is VmState.RUNNING and not vm.record.awaits_answer)
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert shown["restart"] == {"policy": "on-failure", "count": 1}
        states = [one["state"] for one in events_of(world, vm.id) if one["event"] == "state"]
        assert states == ["prelaunch", "running", "crashed", "prelaunch", "running"]
        await act(supervisor, vm.id, "shutdown")
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


async def test_caller_gets_the_answer_of_the_guest_that_was_booted_again(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve(
        MANAGER_RESTART="on-failure", MANAGER_RESTART_BACKOFF="10ms"
    ) as supervisor:
        vm = supervisor.vm(await supervisor.begin(b"hi"))
        first = await world.guest()
        await first.until("Run")
        world.scenario()
        await first.exit(-11)
        await vm.wait_answered()
        assert world.received(await vm.read_reply()) == b"hi"


async def test_crash_loop_has_an_end(world: World) -> None:
    async with world.serve(
        MANAGER_RESTART="on-failure", MANAGER_RESTART_BACKOFF="1ms", MANAGER_RESTART_LIMIT="2"
    ) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        for _ in range(3):
            guest = await world.guest()
            await guest.until("Run")
            await guest.order("panic")
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "guest-panicked")
        waits = [one["in_s"] for one in events_of(world, vm.id) if one["event"] == "restarting"]
        assert waits == [0.001, 0.002]


@pytest.mark.parametrize("policy", ["never", "on-failure"])
async def test_what_was_asked_to_end_is_not_booted_again(world: World, policy: str) -> None:
    world.scenario(ignores_quit=True, ignores_sigterm=True)
    async with world.serve(
        MANAGER_RESTART_BACKOFF="1ms", MANAGER_QUIT_GRACE="10ms", MANAGER_TERM_GRACE="10ms"
    ) as supervisor:
        vm = supervisor.vm(await begin(supervisor, restart=policy))
        guest = await world.guest()
        await guest.until("Run")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown", json={"mode": "force"})
        assert vm.ended
        assert vm.record.restarts == 0


async def test_end_asked_for_in_the_wait_before_a_restart(world: World) -> None:
    async with world.serve(
        MANAGER_RESTART="on-failure", MANAGER_RESTART_BACKOFF="1m"
    ) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await guest.exit(-9)
        await supervisor.wait_state(vm.id, "crashed")
        await act(supervisor, vm.id, "shutdown")
        assert vm.status == Status(VmState.CRASHED, "exit:-9")


async def test_restart_that_was_to_come_is_made_by_the_next_supervisor(world: World) -> None:
    async with world.serve(
        MANAGER_RESTART="on-failure", MANAGER_RESTART_BACKOFF="1m"
    ) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await guest.exit(-9)
        await supervisor.wait_state(vm.id, "crashed")
        await supervisor.leave(guest)
    async with world.serve(MANAGER_RESTART_BACKOFF="1ms") as supervisor:
        again = await world.guest()
        assert again.vm_id == guest.vm_id
        await again.until("Run")


async def test_resets_at_once_do_not_end_the_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(supervisor.http.post, f"/vms/{vm.id}/reset")
        assert vm.status.state is VmState.RUNNING
        assert vm.session is not None
        assert vm.session.resets == 3


class Unproved:
    """A fleet whose record cannot be reached once the agent has answered."""

    def __init__(self) -> None:
        self.asked = trio.Event()

    async def prove(self, vm: OnRecord, relay: RelayState) -> None:
        if relay is RelayState.ANSWERED:
            self.asked.set()
            await trio.sleep_forever()


async def test_reset_before_the_answer_is_on_record(world: World) -> None:
    """The answer is lost then, and who waits for it is told so."""
    fleet = Unproved()
    async with world.serve() as supervisor:
        supervisor.running.service.vms._ownership = fleet
        vm_id = await supervisor.begin()
        await fleet.asked.wait()
        assert (await supervisor.http.post(f"/vms/{vm_id}/reset")).status_code == 200
        await supervisor.wait_record(vm_id, lambda record: record.relay == "interrupted")
