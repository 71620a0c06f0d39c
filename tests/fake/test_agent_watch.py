"""An agent that was ready is asked whether it still is; and its guest's clock is set."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.pb import vm_pb2
from supervisor.state.record import EndCause, EndMode
from supervisor.state.status import VmState
from tests.fake.test_control import act, events_of
from tests.support.clones import clonable, guest_of, ready, run

if TYPE_CHECKING:
    from tests.support.guest import Guest
    from tests.support.world import Supervisor, World

#: A guest is asked all the time.
BEAT = {"MANAGER_HEARTBEAT": "20ms"}


def agent_events(world: World, vm_id: str) -> list[tuple[str, str]]:
    events = events_of(world, vm_id)
    return [(one["event"], one.get("reason", "")) for one in events if "agent" in one["event"]]


async def agent_shown(supervisor: Supervisor, vm_id: str) -> dict[str, Any]:
    return dict((await supervisor.http.get(f"/vms/{vm_id}/status")).json()["agent"])


async def asked_again(guest: Guest) -> None:
    """The question that was under way may have been asked before."""
    for _ in range(3):
        await guest.until("Status")


async def test_agent_that_ends_is_missed_until_it_is_back(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await asked_again(guest)
        await guest.order("end-agent", how="signal 9")
        await vm.until(lambda: vm.agent_lost)
        shown = await agent_shown(supervisor, vm.id)
        assert (shown["ready"], shown["reason"]) == (
            False,
            "nothing listens on the agent's port any more",
        )
        request = vm_pb2.GetRequest(id=vm.id)
        by_grpc = await supervisor.call(supervisor.vm_service.Get, request)
        assert (by_grpc.agent_ready, by_grpc.agent_problem) == (False, shown["reason"])
        await guest.order("start-agent", kind="recorder")
        await vm.until(lambda: vm.agent_ready)
        shown = await agent_shown(supervisor, vm.id)
        assert shown["reason"] is None
        assert shown["last_lost"]  # it has gone, and is another one now
        await vm.write_deferred()
        assert agent_events(world, vm.id) == [
            ("agent", ""),
            ("agent-lost", "refused"),
            ("agent", ""),
        ]


async def test_agent_that_is_started_again_between_two_questions(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(MANAGER_HEARTBEAT="20ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await asked_again(guest)
        await act(supervisor, vm.id, "pause")  # so that it is not asked meanwhile
        await guest.order("end-agent", how="signal 9, for want of memory", again=True)
        await act(supervisor, vm.id, "resume")
        await supervisor.wait_record(vm.id, lambda _: len(agent_events(world, vm.id)) == 3)
        assert agent_events(world, vm.id)[1:] == [("agent-lost", "restarted"), ("agent", "")]
        (lost,) = [one for one in events_of(world, vm.id) if one["event"] == "agent-lost"]
        assert lost["why"].endswith("the one before ended: signal 9, for want of memory")


async def test_agent_that_ended_before_it_was_first_asked(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("end-agent", how="status 1", again=True)
        await act(supervisor, vm.id, "pause")
        await act(supervisor, vm.id, "resume")  # after which it is asked at once
        await supervisor.wait_record(vm.id, lambda _: len(agent_events(world, vm.id)) == 3)
        assert agent_events(world, vm.id)[1] == ("agent-lost", "restarted")


async def test_a_copys_agent_is_asked_soon_so_that_a_later_one_is_known(world: World) -> None:
    """A copy has the past of its template's agent, which tells nothing of the copy's own."""
    clonable(world)
    world.hasten(agent_first_look_s=0.0)
    world.scenario(tells_life=True)
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        await ready(supervisor.http)
        clone = await run(supervisor.http)
        guest = await guest_of(world, clone["id"])
        await guest.until("Status")
        await act(supervisor, clone["id"], "pause")
        await guest.order("end-agent", how="signal 9", again=True)
        await act(supervisor, clone["id"], "resume")
        vm = supervisor.vm(clone["id"])
        await vm.until(lambda: bool(vm.agent_last_lost))
        shown = await agent_shown(supervisor, vm.id)
        assert shown["last_lost"].endswith("the one before ended: signal 9")


async def test_agent_that_hangs(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(**BEAT, MANAGER_QMP_TIMEOUT="200ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await asked_again(guest)
        await guest.order("end-agent", how="")
        await guest.order("start-agent", kind="deaf")
        await vm.until(lambda: "no answer within" in vm.agent_problem)
        assert not vm.agent_ready


async def test_paused_guest_is_not_lost(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(**BEAT, MANAGER_QMP_TIMEOUT="200ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await asked_again(guest)
        for pause, wake in (("hold", "run"), ("suspend", "wake")):
            await guest.order(pause, **({"status": "paused"} if pause == "hold" else {}))
            await vm.until(lambda: vm.status.state is VmState.PAUSED)
            await guest.order("end-agent", how="")
            before = guest.count("query-status")
            while guest.count("query-status") < before + 30:
                await guest.until("query-status")
            assert vm.agent_ready
            await guest.order("start-agent", kind="recorder")
            await guest.order(wake)
            await vm.until(lambda: vm.status.state is VmState.RUNNING)
            await vm.until(lambda: vm.agent_ready)


async def test_computation_does_not_wait_for_an_agent_that_has_died(world: World) -> None:
    """Its connection hangs, for the guest has no word for it any more."""
    world.scenario(tells_life=True, agent="silent")
    async with world.serve(**BEAT, MANAGER_AGENT_GRPC_TIMEOUT="1h") as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await asked_again(guest)
        console = "[guest 9.5] problem: the agent ended: signal 9, for want of memory\n"
        await guest.order("print", text=console)
        await guest.order("abandon-agent")
        await vm.wait_ended()
        assert "the agent ended: signal 9, for want of memory" in (vm.record.error or "")


async def test_agent_of_the_original_knows_nothing_of_this(world: World) -> None:
    world.scenario(tells_life=True, agent="original")
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await act(supervisor, vm.id, "pause")
        await act(supervisor, vm.id, "resume")
        seen = guest.count("query-status")
        while guest.count("query-status") < seen + 30:
            await guest.until("query-status")
        assert vm.agent_ready
        assert agent_events(world, vm.id) == [("agent", "")]


async def test_agent_of_a_vm_on_its_way_to_its_end_is_not_missed(world: World) -> None:
    world.scenario(tells_life=True, deaf_to_powerdown=2)
    async with world.serve(**BEAT, MANAGER_POWERDOWN_INTERVAL="500ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        vm.request_end(EndMode.GRACEFUL, EndCause.API, "the test wants it")
        await guest.until("system_powerdown")
        await guest.order("end-agent", how="")
        await vm.wait_ended()
        assert agent_events(world, vm.id) == [("agent", "")]


async def test_guest_that_sleeps_and_wakes_without_end_is_not_asked_each_time(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        for _ in range(30):
            await guest.order("suspend")
            await supervisor.wait_state(vm.id, "paused")
            await guest.order("wake")
            await supervisor.wait_state(vm.id, "running")
        await act(supervisor, vm.id, "shutdown")
        await guest.until("end")
        assert guest.count("Status") <= 4


@pytest.mark.parametrize("life", ["refuse", "huge"])
async def test_agent_that_gives_no_proper_answer_lives(world: World, life: str) -> None:
    world.scenario(tells_life=True, life=life)
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        await asked_again(await world.guest())
        assert vm.agent_ready
        assert agent_events(world, vm.id) == [("agent", "")]


@pytest.mark.parametrize("how", ["paused", "suspended"])
async def test_clock_is_set_after_a_pause(world: World, how: str) -> None:
    world.scenario(tells_life=True)
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        if how == "paused":
            await act(supervisor, vm.id, "pause")
        else:
            await guest.order("suspend")
            await supervisor.wait_state(vm.id, "paused")
        assert guest.count("SetClock") == 0
        began = time.time_ns()
        await act(supervisor, vm.id, "resume")
        assert began <= (await guest.until("SetClock"))["unix_time_ns"] <= time.time_ns()


async def test_adopted_guest_may_have_been_paused_and_its_agent_may_be_gone(world: World) -> None:
    world.scenario(tells_life=True)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        await guest.until("SetClock")
        await supervisor.leave(guest)
    await guest.order("end-agent", how="")
    async with world.serve(MANAGER_HEARTBEAT="1h") as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: vm.agent_lost)
        await vm.write_deferred()  # its event is being written
        assert agent_events(world, vm_id)[-1] == ("agent-lost", "refused")


async def test_pool_replaces_a_vm_whose_agent_is_lost(world: World) -> None:
    world.soon()
    world.scenario(tells_life=True)
    async with world.serve(**BEAT, MANAGER_POOL_SIZE="1", MANAGER_TEMPLATES="off") as supervisor:
        first = await world.guest()
        vm = supervisor.vm(first.vm_id)
        await vm.until(lambda: vm.agent_ready)
        await asked_again(first)
        await first.order("end-agent", how="")
        assert (await world.guest()).vm_id != first.vm_id
        await vm.wait_ended()
