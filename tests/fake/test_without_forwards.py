"""A VM into which no port of the host leads: the supervisor alone reaches its agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import trio

from supervisor.state.status import Status, VmState
from tests.support.namespaces import needs_namespaces

if TYPE_CHECKING:
    from tests.support.world import World

pytestmark = needs_namespaces

NONE = {"MANAGER_FORWARDS": "none"}


def processes_of(pid: int) -> list[psutil.Process]:
    """QEMU and what passes connections on to it."""
    qemu = psutil.Process(pid)
    (proxy,) = qemu.children(recursive=True)
    assert "systemd-socket-proxyd" in proxy.cmdline()[0]
    return [qemu, proxy]


def on_host(*processes: psutil.Process) -> list[object]:
    """What these have of the TCP of the host's own namespace."""
    pids = {one.pid for one in processes}
    return [one for one in psutil.net_connections("tcp") if one.pid in pids]


async def gone(process: psutil.Process) -> None:
    """The kernel ends it a moment after its QEMU."""
    await trio.to_thread.run_sync(process.wait, 10)


async def test_with_forwards_the_host_has_its_ports(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        assert vm.pid
        assert on_host(psutil.Process(vm.pid))


async def test_run_answer_and_end(world: World) -> None:
    async with world.serve(**NONE) as supervisor:
        answer = await supervisor.run()
        vm = supervisor.vm(answer["id"])
        assert answer["forwards"] == []
        assert vm.record.agent_address == f"unix:{vm.dir.path}/rpc.sock"
        assert vm.pid
        qemu, proxy = processes_of(vm.pid)
        assert not on_host(qemu, proxy)
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert not vm.dir.agent_socket.exists()
        await gone(proxy)
