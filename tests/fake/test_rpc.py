"""The gRPC APIs: the original manager's Run, the VMs, watching them, reflection and health."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio
from google.protobuf import empty_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from supervisor.api.callers import serving
from supervisor.api.grpc.services import VmServicer
from supervisor.api.rates import AtOnce
from supervisor.bridge import aio_as_trio, open_loop, trio_as_aio
from supervisor.caller import ANYBODY
from supervisor.config import MAX_COMPUTATION
from supervisor.pb import manager_pb2, vm_pb2
from supervisor.state.record import EventKind
from tests.support.scenario import ALWAYS
from tests.support.world import PATIENCE_S, in_thread, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.world import Supervisor, World

Code = grpc.StatusCode

#: Of the servicers that a test calls itself.
READERS = AtOnce(100, "readers", "no setting")


async def run(supervisor: Supervisor, computation: bytes = b"1") -> Any:
    return await supervisor.call(
        supervisor.manager.Run, manager_pb2.RunRequest(computation=computation)
    )


async def refused(code: Code, fn: Callable[..., Any], *args: Any) -> str:
    """The text of a call that must end with this status."""
    with pytest.raises(grpc.RpcError) as caught:
        await fn(*args)
    error: Any = caught.value
    assert error.code() is code, error
    return str(error.details())


# --- manager.ManagerService -----------------------------------------------------------------


async def test_run(world: World) -> None:
    async with world.serve() as supervisor:
        computation = bytes(range(256))
        response = await run(supervisor, computation)
        guest = await world.guest()
        assert guest.vm_id == response.ID
        assert response.computation == hashlib.sha256(computation).hexdigest()
        assert world.received(response.computation) == computation


async def test_the_largest_computation_and_one_byte_more(world: World) -> None:
    largest = bytes(range(256)) * (MAX_COMPUTATION // 256)
    async with world.serve() as supervisor:
        response = await run(supervisor, largest)
        assert response.computation == hashlib.sha256(largest).hexdigest()
        text = await refused(Code.RESOURCE_EXHAUSTED, run, supervisor, largest + b"!")
        assert str(MAX_COMPUTATION) in text
        assert len(supervisor.running.service.vms) == 1


async def test_much_more_than_the_largest(world: World) -> None:
    async with world.serve() as supervisor:
        await refused(Code.RESOURCE_EXHAUSTED, run, supervisor, bytes(2 * MAX_COMPUTATION))


async def test_empty_computation(world: World) -> None:
    async with world.serve() as supervisor:
        assert await refused(Code.INVALID_ARGUMENT, run, supervisor, b"") == "computation is empty"


async def test_each_computation_reaches_the_agent_of_its_own_vm(world: World) -> None:
    async with world.serve() as supervisor:
        one, two = await run(supervisor, b"one"), await run(supervisor, b"two")
        assert one.ID != two.ID
        assert one.computation == hashlib.sha256(b"one").hexdigest()
        assert two.computation == hashlib.sha256(b"two").hexdigest()


async def test_capacity(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        await run(supervisor)
        assert "MANAGER_MAX_VMS" in await refused(Code.RESOURCE_EXHAUSTED, run, supervisor)


async def test_capacity_says_when_to_try_again(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        await run(supervisor)
        with pytest.raises(grpc.RpcError) as caught:
            await run(supervisor)
        error: Any = caught.value
        assert int(dict(error.trailing_metadata())["retry-after"]) > 0


async def test_second_vm_of_a_fixed_agent(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_AGENT_GRPC_URL="agent.invalid:1") as supervisor:
        await supervisor.begin()
        assert "agent.invalid:1" in await refused(Code.FAILED_PRECONDITION, run, supervisor)


async def test_agent_that_never_comes_up(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_BOOT_TIMEOUT="100ms") as supervisor:
        text = await refused(Code.DEADLINE_EXCEEDED, run, supervisor)
        assert "MANAGER_BOOT_TIMEOUT" in text


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED])
async def test_no_agent_chooses_the_status_of_a_call(world: World, code: Code) -> None:
    world.scenario(agent="status", status=[code.name, "the disk is full"])
    async with world.serve() as supervisor:
        with pytest.raises(grpc.RpcError) as caught:
            await run(supervisor)
        error: Any = caught.value
        assert error.code() is Code.UNAVAILABLE
        assert f"answered {code.name}: the disk is full" in error.details()
        assert dict(error.trailing_metadata())["agent-code"] == code.name


@pytest.mark.parametrize("letter", ["a", "é", "漢", "%"])
async def test_long_words_of_an_agent_do_not_become_another_status(
    world: World, letter: str
) -> None:
    world.scenario(agent="status", status=["INTERNAL", letter * 2500])
    async with world.serve() as supervisor:
        text = await refused(Code.UNAVAILABLE, run, supervisor)
        assert f"INTERNAL: {letter * 500}" in text


async def test_launch_that_fails(world: World) -> None:
    world.scenario(says="no such CPU\n", exits=1)
    async with world.serve() as supervisor:
        assert "no such CPU" in await refused(Code.FAILED_PRECONDITION, run, supervisor)


async def test_vm_that_ends_meanwhile(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(refused, Code.UNAVAILABLE, run, supervisor)
        guest = await world.guest()
        await guest.until("Run")
        await guest.exit(-9)


async def test_vm_of_a_caller_that_cancels_is_ended(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        call = supervisor.manager.Run.future(manager_pb2.RunRequest(computation=b"1"))
        guest = await world.guest()
        await guest.until("Run")
        call.cancel()
        await supervisor.vm(guest.vm_id).wait_ended()
        assert world.free_again()


async def test_vm_of_a_caller_whose_deadline_passes_is_ended(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        late = partial(supervisor.manager.Run, manager_pb2.RunRequest(computation=b"1"), timeout=3)
        await refused(Code.DEADLINE_EXCEEDED, in_thread, late)
        for vm in [*supervisor.running.service.vms]:  # its QEMU may never have come up
            await vm.wait_ended()
        assert world.free_again()


# --- supervisor.v1.VmService ----------------------------------------------------------------


async def get(supervisor: Supervisor, vm_id: str) -> Any:
    return await supervisor.call(supervisor.vm_service.Get, vm_pb2.GetRequest(id=vm_id))


async def test_list_and_get(world: World) -> None:
    first, _ = world.ports
    async with world.serve() as supervisor:
        empty = await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())
        assert not empty.vms
        vm_id = (await run(supervisor)).ID
        listed = await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())
        shown = await get(supervisor, vm_id)
        assert list(listed.vms) == [shown]
        assert shown.id == vm_id
        assert (shown.state, shown.reason) == (vm_pb2.VM_STATE_RUNNING, "running")
        assert shown.agent_ready
        assert shown.command.startswith(str(world.qemu))
        ports = [(one.guest_port, one.host_address, one.host_port) for one in shown.forwards]
        assert ports[2] == (7002, "127.0.0.1", first + 2)
        assert not shown.HasField("exit_code")
        assert not shown.HasField("ended_at")
        assert shown.created_at.ToDatetime().year > 2000


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (vm_pb2.ShutdownRequest.MODE_GRACEFUL, "guest-shutdown"),
        (vm_pb2.ShutdownRequest.MODE_FORCE, "host-qmp-quit"),
    ],
)
async def test_shutdown(world: World, mode: Any, reason: str) -> None:
    async with world.serve() as supervisor:
        vm_id = (await run(supervisor)).ID
        request = vm_pb2.ShutdownRequest(id=vm_id, mode=mode)
        ended = await supervisor.call(supervisor.vm_service.Shutdown, request)
        assert (ended.state, ended.reason) == (vm_pb2.VM_STATE_SHUTOFF, reason)
        assert ended.HasField("exit_code")
        assert ended.exit_code == 0
        assert ended.HasField("ended_at")
        assert not ended.agent_ready


async def test_delete(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm_id = (await run(supervisor)).ID
        request = vm_pb2.DeleteRequest(id=vm_id)
        answer = await supervisor.call(supervisor.vm_service.Delete, request)
        assert answer == empty_pb2.Empty()
        await refused(Code.NOT_FOUND, get, supervisor, vm_id)
        assert not (world.tmp / vm_id).exists()
        assert not [file for file in world.tmp.iterdir() if file.is_dir()]


@pytest.mark.parametrize("name", ["Get", "Shutdown", "Delete"])
async def test_ids_that_are_none(world: World, name: str) -> None:
    async with world.serve() as supervisor:
        method = getattr(supervisor.vm_service, name)
        request = getattr(vm_pb2, f"{name}Request")(id="no-such")
        text = await refused(Code.NOT_FOUND, supervisor.call, method, request)
        assert "'no-such'" in text


async def test_watch_of_an_id_that_is_none(world: World) -> None:
    async with world.serve() as supervisor, watching(supervisor, "no-such") as change:
        await refused(Code.NOT_FOUND, change)


async def test_watch_tells_first_the_states_and_then_each_change(world: World) -> None:
    async with world.serve() as supervisor:
        old = (await run(supervisor)).ID
        async with watching(supervisor) as change:
            first = await change()
            assert (first.id, first.state) == (old, vm_pb2.VM_STATE_RUNNING)
            new = (await run(supervisor)).ID
            told = [await change() for _ in range(6)]
            assert {one.id for one in told} == {new}
            kinds = ["state", "launched", "state", "agent", "relay", "relay"]
            assert [one.kind for one in told] == kinds
            assert told[0].state == vm_pb2.VM_STATE_PRELAUNCH
            assert told[2].state == vm_pb2.VM_STATE_RUNNING
            assert told[1].state == vm_pb2.VM_STATE_UNSPECIFIED
            assert [one.data["state"] for one in told[4:]] == ["sent", "answered"]
            numbers = [first.sequence, *(one.sequence for one in told)]
            assert numbers == sorted(set(numbers))
            await supervisor.http.post(f"/vms/{old}/shutdown")
            assert (await change()).kind == "ending"
            going, gone = await change(), await change()
            assert (going.id, going.state) == (old, vm_pb2.VM_STATE_SHUTDOWN)
            assert (gone.id, gone.state) == (old, vm_pb2.VM_STATE_SHUTOFF)
            assert going.reason == gone.reason == "guest-shutdown"
            assert first.at.ToNanoseconds() < going.at.ToNanoseconds() < gone.at.ToNanoseconds()


async def test_watch_of_one_vm_tells_of_no_other(world: World) -> None:
    async with world.serve() as supervisor:
        one, other = (await run(supervisor)).ID, (await run(supervisor)).ID
        async with watching(supervisor, one) as change:
            await change()
            await supervisor.http.post(f"/vms/{other}/shutdown")
            await supervisor.http.post(f"/vms/{one}/shutdown")
            assert (await change()).id == one


class SlowReader:
    """A watcher's side of the call that takes no second message until it is told to."""

    def __init__(self, until: int) -> None:
        self.written: list[Any] = []
        self.first = trio.Event()
        self.go_on = trio.Event()
        self.enough = trio.Event()
        self._until = until

    async def write(self, message: Any) -> None:
        """asyncio-flavoured, as grpc.aio's."""
        self.written.append(message)
        self.first.set()
        if len(self.written) == self._until:
            self.enough.set()
        await trio_as_aio(self.go_on.wait)()

    async def abort(self, code: Code, details: str) -> None:
        """asyncio-flavoured, likewise."""
        raise grpc.aio.AbortError(code, details)


async def test_each_change_is_told_as_it_was(world: World) -> None:
    """However late it is read: the state after the change, and when that was."""
    async with (
        world.serve() as supervisor,
        open_loop(),
        trio.open_nursery() as nursery,
    ):
        reader = SlowReader(until=9)
        watch = aio_as_trio(VmServicer(supervisor.running.service, READERS, None).Watch)
        with serving(lambda: ANYBODY):
            nursery.start_soon(watch, vm_pb2.WatchRequest(), reader)
        vm_id = (await supervisor.run())["id"]
        await reader.first.wait()
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        over_at = datetime.now(UTC)
        reader.go_on.set()
        await reader.enough.wait()
        nursery.cancel_scope.cancel()
        assert [change.state for change in reader.written if change.kind == "state"] == [
            vm_pb2.VM_STATE_PRELAUNCH,
            vm_pb2.VM_STATE_RUNNING,
            vm_pb2.VM_STATE_SHUTDOWN,
            vm_pb2.VM_STATE_SHUTOFF,
        ]
        assert reader.written[-1].at.ToDatetime(UTC) <= over_at


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("turns", range(20))
async def test_reader_who_leaves_at_any_moment_leaves_nothing_open(
    world: World, turns: int, ended: bool
) -> None:
    """So many turns of the loop after Watch begins, or after there is no more to tell."""
    async with world.serve() as supervisor, open_loop():
        service = supervisor.running.service
        told = service.journal.events
        await service.journal.note(EventKind.MONITOR, None, monitor="ok")
        reader = SlowReader(until=1)

        async def watch_and_leave() -> None:
            """asyncio-flavoured"""
            watch = VmServicer(service, READERS, None).Watch(vm_pb2.WatchRequest(after=0), reader)
            with serving(lambda: ANYBODY):
                watching = asyncio.ensure_future(watch)
            if ended:
                await trio_as_aio(reader.first.wait)()
                told.close()
            reader.go_on.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            watching.cancel()
            over, _ = await asyncio.wait({watching}, timeout=PATIENCE_S)
            assert over, "it goes on for nobody"
            await asyncio.gather(*over, return_exceptions=True)
            assert not told.subscribers

        await aio_as_trio(watch_and_leave)()


# --- what every gRPC server should answer ---------------------------------------------------

SERVICES = {
    "manager.ManagerService",
    "supervisor.v1.VmService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}


async def reflect(supervisor: Supervisor, question: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(supervisor.channel)
    requests = iter([question])
    stream = stub.ServerReflectionInfo(requests, timeout=PATIENCE_S)
    (answer,) = await in_thread(partial(list, stream))
    return answer


async def test_reflection(world: World) -> None:
    async with world.serve() as supervisor:
        ask = reflection_pb2.ServerReflectionRequest
        listed = await reflect(supervisor, ask(list_services="*"))
        assert {one.name for one in listed.list_services_response.service} == SERVICES
        found = await reflect(supervisor, ask(file_containing_symbol="manager.ManagerService"))
        assert found.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("service", ["", "manager.ManagerService", "supervisor.v1.VmService"])
async def test_health(world: World, service: str) -> None:
    async with world.serve() as supervisor:
        stub: Any = health_pb2_grpc.HealthStub(supervisor.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await supervisor.call(stub.Check, request)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
