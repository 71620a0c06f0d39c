"""A QEMU that is silent, stopped, or cut off from us; and what is done about it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

BEAT = {"MANAGER_HEARTBEAT": "20ms"}
#: Of a QEMU that falls silent. One that is only slow for a while is not to be taken for it.
SOON = {**BEAT, "MANAGER_QMP_TIMEOUT": "2s"}
NO_GRACE = {"MANAGER_POWERDOWN_GRACE": "10ms", "MANAGER_QUIT_GRACE": "10ms"}


async def get(supervisor: Supervisor, path: str) -> Any:
    answer = await supervisor.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_every_vm_is_asked_again_and_again(world: World) -> None:
    async with world.serve(MANAGER_HEARTBEAT="20ms") as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        before = (await get(supervisor, f"/vms/{vm_id}"))["asked_at"]
        while (shown := await get(supervisor, f"/vms/{vm_id}"))["asked_at"] == before:
            await guest.until("query-status")
        assert shown["monitor"] == "ok"


async def test_lost_and_found_again_is_told_everywhere(world: World) -> None:
    async with world.serve(**SOON) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        with supervisor.running.service.journal.events.subscribe() as news:
            await guest.order("swallow", commands=["query-status"])
            while (event := await news.receive()).kind != "monitor":
                pass
            assert (event.vm_id, event.data) == (vm.id, {"monitor": "lost"})
            (listed,) = (await get(supervisor, "/vms"))["vms"]
            assert (listed["state"], listed["monitor"]) == ("running", "lost")
            assert (await get(supervisor, f"/vms/{vm.id}/status"))["monitor"] == "lost"
            metrics = (await supervisor.http.get("/metrics")).text
            assert "\nqmp_supervisor_monitors_lost 1.0\n" in metrics
            await guest.order("swallow", commands=[])
            while (event := await news.receive()).kind != "monitor":
                pass
            assert event.data == {"monitor": "ok"}
        assert vm.status == Status(VmState.RUNNING, "running")


async def test_qemu_that_is_stopped_and_goes_on(world: World) -> None:
    async with world.serve(**SOON) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        os.kill(guest.pid, signal.SIGSTOP)
        await vm.until(lambda: vm.monitor_state == "lost")
        os.kill(guest.pid, signal.SIGCONT)
        await vm.until(lambda: vm.monitor_state == "ok")
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert ended.json()["reason"] == "guest-shutdown"


@pytest.mark.parametrize("mode", ["graceful", "force"])
async def test_qemu_that_is_stopped_can_be_ended(world: World, mode: str) -> None:
    async with world.serve(**SOON, **NO_GRACE, MANAGER_TERM_GRACE="10ms") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        os.kill(guest.pid, signal.SIGSTOP)
        await vm.until(lambda: vm.monitor_state == "lost")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown", json={"mode": mode})
        assert vm.status == Status(VmState.CRASHED, "exit:-9")
        assert vm.monitor_state == "none"


@pytest.mark.parametrize("action", ["pause", "reset"])
async def test_lost_vm_cannot_be_controlled(world: World, action: str) -> None:
    async with world.serve(**SOON) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("swallow", commands=["query-status", "stop", "system_reset"])
        await vm.until(lambda: vm.monitor_state == "lost")
        answer = await supervisor.http.post(f"/vms/{vm.id}/{action}")
        assert answer.status_code == 503
        assert vm.status.state is VmState.RUNNING


# --- a link that breaks ---------------------------------------------------------------------


async def test_guest_that_powers_off_while_the_link_is_broken(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("hang-up")
        await guest.order("power-off")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "shutdown")


async def test_guest_that_panics_while_the_link_is_broken(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("hang-up")
        await guest.order("panic")
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "guest-panicked")


async def test_computation_is_not_concerned(world: World) -> None:
    """The way to the agent is another one."""
    world.scenario(agent="none")
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("cont")
        await supervisor.wait_state(vm.id, "running")
        await guest.order("hang-up")
        await guest.order("start-agent", kind="recorder")
        await vm.wait_answered()
        await vm.until(lambda: vm.monitor_state == "ok")
        assert vm.status.state is VmState.RUNNING


async def test_link_that_breaks_again_and_again(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        for _ in range(3):
            await guest.order("hang-up")
            await vm.until(lambda: vm.monitor_state == "lost")
            await vm.until(lambda: vm.monitor_state == "ok")
        await vm.write_deferred()  # after the event that is being written
        told = [json.loads(line) for line in vm.dir.events.read_text().splitlines()]
        turns = [event["monitor"] for event in told if event["event"] == "monitor"]
        assert turns == ["lost", "ok"] * 3
        assert guest.count("cont") <= 1
        ended = await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert ended.json()["reason"] == "guest-shutdown"


async def test_end_that_is_asked_for_while_the_link_is_broken(world: World) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("hang-up")
        await vm.until(lambda: vm.monitor_state == "lost")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.status.state is VmState.SHUTOFF


@pytest.mark.parametrize(
    "text",
    [
        *("\x00" * 100, "[" * 50_000, '{"event": 3}', '{"event": "WATCHDOG", "data": 3}'),
        *('{"event": {}}', '{"return": {}, "id": {}}', '{"return": ' + "1" * 5000 + "}"),
        '{"event": "STOP", "data": {"reason": "' + "long" * 50_000 + '"}}',
    ],
    ids=["zeros", "deep", "name", "data", "unhashable name", "unhashable id", "digits", "long"],
)
async def test_garbage_in_place_of_qmp(world: World, text: str) -> None:
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("raw", text=text + "\r\n")
        await guest.order("set-status", status="io-error")
        await supervisor.wait_state(vm.id, "paused")  # so it is asked, and answers
        assert vm.status.reason == "io-error"
        await vm.until(lambda: vm.monitor_state == "ok")
