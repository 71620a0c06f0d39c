"""The way to QEMU while a VM runs: watched, lost, made again; and what comes over it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from supervisor.state.record import EventKind
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from supervisor.vm.vm import Vm
    from tests.support.world import World

#: Hardly any time between questions.
BEAT = {"MANAGER_HEARTBEAT": "20ms"}
#: And little for an answer that does not come.
SOON = {**BEAT, "MANAGER_QMP_TIMEOUT": "500ms"}


def _turns(vm: Vm) -> list[str]:
    """What was told of the VM's monitor, in order."""
    told = [json.loads(line) for line in vm.dir.events.read_text().splitlines()]
    return [event["monitor"] for event in told if event["event"] == "monitor"]


async def test_qemu_that_answers_no_more_and_then_again(world: World) -> None:
    async with world.serve(**SOON) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("swallow", commands=["query-status"])
        await guest.until("swallowed")  # it may have been lost for a moment before
        await vm.until(lambda: vm.monitor_state == "lost")
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["state"], shown["monitor"]) == ("running", "lost")
        live = await supervisor.http.get(f"/vms/{vm.id}/status?live=1")
        assert live.status_code == 503
        await guest.order("swallow", commands=[])
        await vm.until(lambda: _turns(vm)[-2:] == ["lost", "ok"])
        assert vm.monitor_state == "ok"


async def test_lost_vm_can_be_ended(world: World) -> None:
    async with world.serve(**SOON, MANAGER_POWERDOWN_GRACE="10ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("swallow", commands=["query-status", "system_powerdown", "quit"])
        await guest.until("swallowed")
        await vm.until(lambda: vm.monitor_state == "lost")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.ended
        await guest.until("SIGTERM")


async def test_link_that_breaks_is_made_again_and_what_was_missed_is_found(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("hang-up")
        await guest.order("hold", status="io-error")
        await supervisor.wait_state(vm.id, "paused")
        assert vm.status == Status(VmState.PAUSED, "io-error")
        assert guest.count("cont") <= 1
        await supervisor.http.post(f"/vms/{vm.id}/resume")
        assert vm.status.state is VmState.RUNNING


async def test_heartbeat_finds_what_no_event_told(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("set-status", status="watchdog")
        await supervisor.wait_state(vm.id, "paused")
        assert vm.status.reason == "watchdog"
        await guest.order("set-status", status="shutdown")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "shutdown")


@pytest.mark.parametrize("text", ["no json\r\n", '{"event": "ST', "[1]\r\n"])
async def test_what_is_no_qmp_has_the_link_made_anew(world: World, text: str) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("raw", text=text)
        await vm.until(lambda: _turns(vm) == ["lost", "ok"])
        assert vm.status.state is VmState.RUNNING
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert ended.json()["reason"] == "guest-shutdown"


async def test_answer_to_no_question_is_passed_over(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("raw", text='{"return": {}, "id": "?"}\r\n')
        await guest.order("hold", status="io-error")
        await supervisor.wait_state(vm.id, "paused")
        assert _turns(vm) == []


async def test_storm_of_disk_errors_is_one_event(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        with supervisor.running.service.journal.events.subscribe() as news:
            for _ in range(50):
                await guest.emit(
                    "BLOCK_IO_ERROR", operation="write", action="report", nospace=False
                )
            await guest.emit("WATCHDOG", action="none")
            while (await news.receive()).kind is not EventKind.WATCHDOG:
                pass
        lines = vm.dir.events.read_text().splitlines()
        assert [json.loads(line)["event"] for line in lines].count("io-error") == 1
        assert vm.status.state is VmState.RUNNING


async def test_guest_that_suspends_itself_without_end_causes_few_events(world: World) -> None:
    world.hasten(guest_events=10, guest_event_interval_s=600.0)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        for _ in range(50):
            await guest.emit("SUSPEND")
            await guest.emit("WAKEUP")
        await guest.emit("SUSPEND")
        await guest.until("Run")
        await guest.order("power-off")
        await vm.wait_ended()
        told = [json.loads(line) for line in vm.dir.events.read_text().splitlines()]
        caused = [one for one in told if one.get("state") in ("paused", "running")]
        (dropped,) = [one["count"] for one in told if one["event"] == "dropped"]
        assert len(caused) == 1 + 10  # the first is that the guest runs
        assert dropped == 101 - 10
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


async def test_state_that_was_not_told_is_told_at_the_heartbeat(world: World) -> None:
    world.hasten(guest_events=1, guest_event_interval_s=600.0)
    async with world.serve(MANAGER_HEARTBEAT="10ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        with supervisor.running.service.journal.events.subscribe() as news:
            for _ in range(3):
                await guest.emit("SUSPEND")
                await guest.emit("WAKEUP")
            while (event := await news.receive()).kind is not EventKind.DROPPED:
                pass
            assert event.data["count"] > 0
            assert (await news.receive()).kind is EventKind.STATE
        assert vm.status.state in (VmState.RUNNING, VmState.PAUSED)


async def test_guest_that_floods_its_monitor_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GUEST_CRASHLOADED comes as fast as a guest can write to a port."""
    world.hasten(qmp_flood_s=600.0)  # however slowly we read
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        event = '{"event": "GUEST_CRASHLOADED", "timestamp": {"seconds": 0, "microseconds": 0}}\r\n'
        for _ in range(70):
            await guest.order("raw", text=event * 300)
        await vm.wait_ended()
        told = [json.loads(line) for line in vm.dir.events.read_text().splitlines()]
        (why,) = [one["why"] for one in told if one["event"] == "ending"]
        assert "floods" in why
        assert (await supervisor.http.get("/health")).status_code == 200
