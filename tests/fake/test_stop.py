"""The supervisor's own end: every VM is ended first, by its guest if there is time."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from supervisor.state.status import Status, VmState
from supervisor.state.store import Store
from tests.support.scenario import ALWAYS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World


async def test_stop_has_every_guest_power_off(world: World) -> None:
    async with world.serve() as supervisor:
        ids = {(await supervisor.run(b"1"))["id"], (await supervisor.run(b"2"))["id"]}
        vms = [supervisor.vm(vm_id) for vm_id in ids]
        guests = [await world.guest(), await world.guest()]
        supervisor.running.stop(OnStop.END)
        for guest in guests:
            await guest.until("system_powerdown")
            await guest.until("end")
        for vm in vms:
            await vm.wait_ended()
            assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
            assert vm.record.exit_code == 0


async def test_hurry_does_not_wait_for_the_guests(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        supervisor.running.stop(OnStop.END)
        await guest.until("system_powerdown")
        supervisor.running.hurry()
        await guest.until("quit")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "host-qmp-quit")


async def test_caller_that_waits_is_told_of_its_vms_end(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:

        async def caller() -> None:
            answer = await supervisor.post(b"1")
            assert answer.status_code == 502
            assert supervisor.only_vm().id in answer.json()["detail"]

        nursery.start_soon(caller)
        guest = await world.guest()
        await guest.until("Run")
        vm = supervisor.only_vm()
        supervisor.running.stop(OnStop.END)
        await vm.wait_ended()
        assert vm.record.exit_code == 0


@pytest.mark.parametrize("what", list(OnStop))
async def test_run_that_is_being_put_on_record_is_ended_and_told(
    world: World, monkeypatch: pytest.MonkeyPatch, what: OnStop
) -> None:
    writes, may_write, create = threading.Event(), threading.Event(), Store.create

    def late(*args: Any) -> None:
        writes.set()
        assert may_write.wait(60)
        create(*args)

    monkeypatch.setattr(Store, "create", late)
    async with world.serve() as supervisor, trio.open_nursery() as nursery:

        async def caller() -> None:
            answer = await supervisor.post(b"1")
            vm = supervisor.only_vm()
            assert (answer.status_code, vm.id in answer.json()["detail"]) == (502, True)
            assert vm.record.ended

        nursery.start_soon(caller)
        assert await trio.to_thread.run_sync(writes.wait, 60)
        supervisor.running.stop(what)
        await supervisor.running.service.vms.closed.wait()
        may_write.set()


@pytest.fixture
def host_shuts_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what systemd says of it."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\necho stopping\nexit 1\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("host_shuts_down")
async def test_guests_power_off_before_the_host_does(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        supervisor.running.stop(OnStop.LEAVE)
        await guest.until("system_powerdown")
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert world.free_again()


@pytest.mark.usefixtures("host_shuts_down")
async def test_guest_that_is_booted_again_stays_on_record(world: World) -> None:
    async with world.serve(MANAGER_RESTART="on-failure") as supervisor:
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        ended = (await supervisor.http.post(f"/vms/{guest.vm_id}/shutdown")).json()
        assert ended["state"] == "shutoff"
