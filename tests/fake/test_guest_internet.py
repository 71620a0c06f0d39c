"""A VM whose network is a namespace of its own: the supervisor has it as it has any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio

from supervisor.state.status import Status, VmState
from tests.support.namespaces import needs_namespaces

if TYPE_CHECKING:
    from tests.support.world import World

pytestmark = needs_namespaces

INTERNET = {"MANAGER_QEMU_GUEST_NETWORK": "internet"}


def namespace_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


async def gone(pasta: psutil.Process) -> None:
    """The kernel ends it a moment after its QEMU."""
    await trio.to_thread.run_sync(pasta.wait, 10)


async def test_run_answer_and_end(world: World) -> None:
    async with world.serve(**INTERNET) as supervisor:
        answer = await supervisor.run()
        vm = supervisor.vm(answer["id"])
        assert vm.pid
        assert namespace_of(vm.pid) != namespace_of(psutil.Process().pid)
        (pasta,) = psutil.Process(vm.pid).children()
        assert "pasta" in pasta.cmdline()[0]
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert vm.record.exit_code == 0
        await gone(pasta)


async def test_next_supervisor_takes_it_up(world: World) -> None:
    async with world.serve(**INTERNET) as supervisor:
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.agent_ready)
        assert vm.pid
        (pasta,) = psutil.Process(vm.pid).children()
        await guest.order("exit", status=3)
        await vm.wait_ended()
        assert vm.record.exit_code is None  # it was nobody's child any more
        await gone(pasta)


async def test_qemu_that_is_killed_takes_its_packets_carrier_along(world: World) -> None:
    async with world.serve(**INTERNET) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        assert vm.pid
        (pasta,) = psutil.Process(vm.pid).children()
        psutil.Process(vm.pid).kill()
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:-9")
        await gone(pasta)
