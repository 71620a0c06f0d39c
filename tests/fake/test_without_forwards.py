"""A VM into which no port of the host leads: the supervisor alone reaches its agent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trio

from supervisor.pb import manager_pb2, vm_pb2
from supervisor.qemu import guest_namespace
from supervisor.state.status import Status, VmState
from tests.fake.test_agent_watch import BEAT, agent_events
from tests.fake.test_control import act
from tests.fake.test_restart import AT_ONCE
from tests.support.clones import clonable, is_clone, pool, pooling, post, ready, run
from tests.support.namespaces import needs_namespaces
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from supervisor.vm.vm import Vm
    from tests.support.world import World

pytestmark = needs_namespaces

NONE = {"MANAGER_FORWARDS": "none"}


def processes_of(vm: Vm) -> tuple[psutil.Process, psutil.Process]:
    """QEMU and what passes connections on to it."""
    assert vm.pid
    qemu = psutil.Process(vm.pid)
    (proxy,) = qemu.children(recursive=True)
    assert "systemd-socket-proxyd" in proxy.cmdline()[0]
    return qemu, proxy


def on_host(*processes: psutil.Process) -> list[object]:
    """What these have of the TCP of the host's own namespace."""
    pids = {one.pid for one in processes}
    return [one for one in psutil.net_connections("tcp") if one.pid in pids]


def sockets(process: psutil.Process) -> set[str]:
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    return {target for file in files if (target := str(file.readlink())).startswith("socket:")}


def is_without(vm: Vm) -> bool:
    """Whether the VM is as it was asked for."""
    address = f"unix:{vm.dir.path}/rpc.sock"
    return (vm.record.forwards, vm.record.agent_address) == ((), address) and not on_host(
        *processes_of(vm)
    )


async def gone(process: psutil.Process) -> None:
    """The kernel ends it a moment after its QEMU."""
    await trio.to_thread.run_sync(process.wait, 10)


# --- what there is --------------------------------------------------------------------------


async def test_run_answer_and_end(world: World) -> None:
    async with world.serve(**NONE) as supervisor:
        answer = await supervisor.run()
        assert answer["forwards"] == []
        vm = supervisor.vm(answer["id"])
        assert is_without(vm)
        qemu, proxy = processes_of(vm)
        assert sockets(qemu)
        assert not sockets(qemu) & sockets(proxy)
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["forwards"], shown["agent"]["address"]) == ([], vm.dir.agent_address)
        request = vm_pb2.GetRequest(id=vm.id)
        assert not (await supervisor.call(supervisor.vm_service.Get, request)).forwards
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert not vm.dir.agent_socket.exists()
        await gone(proxy)


async def test_run_asks_for_either(world: World) -> None:
    async with world.serve() as supervisor:
        assert (await run(supervisor.http, forwards="none"))["forwards"] == []
        vm = supervisor.vm((await supervisor.run())["id"])
        assert len(vm.record.forwards) == 3
        assert on_host(psutil.Process(vm.pid))
    async with world.serve(**NONE) as supervisor:
        assert len((await run(supervisor.http, forwards="host"))["forwards"]) == 3


async def test_run_asks_over_grpc(world: World) -> None:
    async with world.serve() as supervisor:
        request, metadata = manager_pb2.RunRequest(computation=b"1"), [("forwards", "none")]
        call = partial(supervisor.manager.Run, request, metadata=metadata, timeout=PATIENCE_S)
        answer = await in_thread(call)
        assert is_without(supervisor.vm(answer.ID))


async def test_pool_has_the_kind_of_the_settings(world: World) -> None:
    async with pooling(world).serve(MANAGER_MAX_VMS="20") as supervisor:
        await ready(supervisor.http)
        waiting = await pool(supervisor.http, 2)
        shown = await run(supervisor.http, forwards="none", template="require")
        assert (shown["id"] in waiting, shown["forwards"]) == (False, [])
        assert (await run(supervisor.http, forwards="host"))["id"] in waiting


async def test_vm_of_the_pool_and_clone(world: World) -> None:
    settings = {**NONE, "MANAGER_POOL_SIZE": "1"}
    async with clonable(world).serve(**settings) as supervisor:
        await ready(supervisor.http)
        (waiting,) = await pool(supervisor.http, 1)
        shown = await run(supervisor.http, template="require")
        assert (shown["id"], is_clone(shown)) == (waiting, True)
        assert is_without(supervisor.vm(waiting))


# --- over time ------------------------------------------------------------------------------


async def test_next_supervisor_takes_it_up(world: World) -> None:
    async with world.serve(**NONE) as supervisor:
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.until(lambda: vm.agent_ready)
        assert is_without(vm)
        _, proxy = processes_of(vm)
        await guest.order("exit", status=3)
        await vm.wait_ended()
        await gone(proxy)


@pytest.mark.parametrize("keeps_events", [True, False])
async def test_damaged_record(world: World, keeps_events: bool) -> None:
    async with world.serve(**NONE) as supervisor:
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    directory = world.tmp / guest.vm_id
    (directory / "vm.json").write_bytes(b"{")
    if not keeps_events:
        (directory / "events.jsonl").unlink()
    async with world.serve() as supervisor:
        vm = supervisor.vm(guest.vm_id)
        assert vm.record.options.forwards == "none"
        await vm.until(lambda: vm.agent_ready)
        assert is_without(vm)


async def test_reset_leaves_the_way_to_the_agent(world: World) -> None:
    async with world.serve(**NONE) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        before = processes_of(vm)
        await act(supervisor, vm.id, "reset")
        await vm.until(lambda: vm.agent_ready)
        assert processes_of(vm) == before


async def test_restart_is_without_as_well(world: World) -> None:
    async with world.serve(**AT_ONCE) as supervisor:
        headers = {"Prefer": "respond-async"}
        body = {"computation": "aGk=", "forwards": "none"}
        answer = await supervisor.http.post("/run", json=body, headers=headers)
        vm = supervisor.vm(answer.json()["id"])
        guest = await world.guest()
        await guest.until("Run")
        _, proxy = processes_of(vm)
        await guest.exit(-9)
        again = await world.guest()
        await again.until("Run")
        await gone(proxy)
        await vm.wait_answered()
        assert is_without(vm)


async def test_qemu_that_is_killed_takes_its_proxy_along(world: World) -> None:
    async with world.serve(**NONE) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        qemu, proxy = processes_of(vm)
        qemu.kill()
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:-9")
        await gone(proxy)


async def test_proxy_that_is_killed_is_an_agent_that_is_lost(world: World) -> None:
    async with world.serve(**NONE, **BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        _, proxy = processes_of(vm)
        proxy.kill()
        await vm.until(lambda: vm.agent_lost)
        await vm.write_deferred()
        assert agent_events(world, vm.id) == [("agent", ""), ("agent-lost", "refused")]


# --- what there cannot be -------------------------------------------------------------------


async def test_host_that_lacks_the_program_refuses_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serve() as supervisor:
        monkeypatch.setattr(guest_namespace, "search_path", lambda: "/usr/bin:/usr/sbin")
        answer = await post(supervisor.http, forwards="none")
        assert answer.status_code == 500
        problem: dict[str, Any] = answer.json()
        assert "there is no systemd-socket-proxyd on the PATH" in problem["detail"]
        assert problem["advice"] == "install the package systemd"
        vm = supervisor.only_vm()
        assert (vm.record.process, vm.dir.qemu_log.exists()) == (None, False)


async def test_setting_that_excludes_it_refuses_the_run(world: World) -> None:
    async with world.serve(MANAGER_QEMU_GUEST_NETWORK="open") as supervisor:
        answer = await post(supervisor.http, forwards="none")
        assert (answer.status_code, answer.json()["member"]) == (400, "forwards")
        assert "MANAGER_QEMU_GUEST_NETWORK=open" in answer.json()["detail"]
        assert not list(supervisor.running.service.vms)
