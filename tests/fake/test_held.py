"""Guests that are held or reset while something is under way with them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from tests.support.guest import Guest
    from tests.support.world import Supervisor, World

BEAT_S = 0.02
BEAT = {"MANAGER_HEARTBEAT": f"{BEAT_S}s"}


async def act(supervisor: Supervisor, vm_id: str, action: str, status: int = 200) -> Any:
    answer = await supervisor.http.post(f"/vms/{vm_id}/{action}")
    assert answer.status_code == status, answer.text
    return answer.json()


#: Long enough to hold the guest in. While it is held this must not be enough to be told of.
TIMEOUT_S = 2
TIMEOUT = f"{TIMEOUT_S}s"


async def beyond_timeout(guest: Guest) -> None:
    """Return once the guest has been asked so often that the timeout is over."""
    for _ in range(round(1.25 * TIMEOUT_S / BEAT_S)):
        await guest.until("query-status")


async def test_agent_that_is_held_is_not_too_slow(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve(**BEAT, MANAGER_AGENT_GRPC_TIMEOUT=TIMEOUT) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await act(supervisor, vm.id, "pause")
        await beyond_timeout(guest)
        assert vm.record.relay == "sent"
        await act(supervisor, vm.id, "resume")
        await vm.wait_ended()  # it runs, and is silent still
        assert "MANAGER_AGENT_GRPC_TIMEOUT" in (vm.record.error or "")


async def test_guest_that_is_held_does_not_boot_too_slowly(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(**BEAT, MANAGER_BOOT_TIMEOUT=TIMEOUT) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        await supervisor.wait_state(vm.id, "running")
        await act(supervisor, vm.id, "pause")
        await beyond_timeout(await world.guest())
        assert vm.status.state is VmState.PAUSED
        assert vm.record.relay == "waiting"


@pytest.mark.parametrize("how", ["suspended", "watchdog"])
async def test_guest_cannot_stop_the_clock_of_its_answer(world: World, how: str) -> None:
    world.scenario(agent="silent")
    async with world.serve(MANAGER_AGENT_GRPC_TIMEOUT="500ms") as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await pause_itself(guest, how)
        await supervisor.wait_record(vm.id, lambda record: record.relay == "failed")
        assert "MANAGER_AGENT_GRPC_TIMEOUT" in (vm.record.error or "")


async def test_guest_cannot_stop_the_clock_of_its_boot(world: World) -> None:
    """Nor begin it anew: it wakes, and sleeps again."""
    world.scenario(agent="none")
    async with world.serve(MANAGER_BOOT_TIMEOUT="500ms") as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await supervisor.wait_state(vm.id, "running")
        with suppress(trio.BrokenResourceError):  # at an order to a guest that is ended
            while vm.record.relay == "waiting":
                await guest.order("suspend")
                await vm.until(lambda: vm.status.state is not VmState.RUNNING)
                await guest.order("wake")
                await vm.until(lambda: vm.status.state is not VmState.PAUSED)
        assert "MANAGER_BOOT_TIMEOUT" in (vm.record.error or "")


async def test_guest_that_has_suspended_itself_is_woken_to_power_off(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("suspend")
        await supervisor.wait_state(vm.id, "paused")
        await act(supervisor, vm.id, "shutdown")
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


async def pause_itself(guest: Guest, how: str) -> None:
    if how == "suspended":
        await guest.order("suspend")
    else:
        await guest.order("hold", status=how)


async def test_reset_of_a_held_guest(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        await vm.until(lambda: vm.agent_ready)
        await act(supervisor, vm.id, "pause")
        reset = await act(supervisor, vm.id, "reset")
        assert (reset["state"], reset["agent"]["ready"]) == ("paused", False)
        await act(supervisor, vm.id, "resume")
        guest = await world.guest()
        await guest.order("start-agent", kind="recorder")
        await vm.until(lambda: vm.agent_ready)


@pytest.mark.parametrize(
    ("mode", "reason"), [("graceful", "guest-shutdown"), ("force", "host-qmp-quit")]
)
async def test_held_guest_is_shut_down(world: World, mode: str, reason: str) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        await act(supervisor, vm.id, "pause")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown", json={"mode": mode})
        assert vm.status == Status(VmState.SHUTOFF, reason)


@pytest.mark.parametrize("action", ["pause", "resume", "reset"])
async def test_guest_that_has_not_run_yet(world: World, action: str) -> None:
    world.scenario(greeting="nothing")
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin()
        await (await world.guest()).until("connected")
        assert "prelaunch" in (await act(supervisor, vm_id, action, 409))["detail"]


@pytest.mark.parametrize(("action", "command"), [("pause", "stop"), ("reset", "system_reset")])
async def test_command_that_qemu_refuses(world: World, action: str, command: str) -> None:
    world.scenario(refuses={command: ("GenericError", "not today")})
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        problem = await act(supervisor, vm.id, action, 503)
        assert "not today" in problem["detail"]
        # A reboot of the guest's own is an end, as before.
        await (await world.guest()).order("reboot")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-reset")
