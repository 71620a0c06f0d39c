"""Agents that dial the supervisor: a stand-in for the successor's, at the socket of its VM."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio
from google.protobuf import json_format

from supervisor.errors import SupervisorError
from supervisor.pb import cvms_pb2, vm_pb2
from tests.support.dialling_agent import Dialling, dialling
from tests.support.namespaces import needs_namespaces
from tests.support.tenants import ALICE, BOB, Asking
from tests.support.world import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.world import Supervisor, World

pytestmark = needs_namespaces

MANIFEST = cvms_pb2.ComputationRunReq(
    id="c-1",
    name="sum",
    algorithm=cvms_pb2.Algorithm(hash=bytes(32), userKey=b"key", algo_type="python"),
    datasets=[cvms_pb2.Dataset(hash=b"d" * 32, userKey=b"key", filename="a.csv")],
    result_consumers=[cvms_pb2.ResultConsumer(userKey=b"key")],
)
IN_BYTES = MANIFEST.SerializeToString()
IN_JSON = json_format.MessageToJson(MANIFEST).encode()


@pytest.fixture
def world(world: World) -> World:
    world.settings["MANAGER_AGENT_DIALS"] = "chunked"
    # With forwards, what leads the host's ports to the guest ends a moment after QEMU.
    world.settings["MANAGER_FORWARDS"] = "none"
    return world


@asynccontextmanager
async def agent_of(world: World, vm_id: str, **behaviour: Any) -> AsyncIterator[Dialling]:
    """The VM's agent, which has dialled."""
    target = f"unix:{world.tmp / vm_id / 'out.sock'}"
    opening = dialling(target, vm_id, **behaviour)
    agent = await in_thread(opening.__enter__)
    try:
        yield agent
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(partial(opening.__exit__, None, None, None))


async def answered(supervisor: Supervisor, vm_id: str) -> Any:
    vm = supervisor.vm(vm_id)
    await vm.wait_answered()
    return json.loads(await vm.read_reply())


@pytest.mark.parametrize("computation", [IN_BYTES, IN_JSON], ids=["bytes", "JSON"])
@pytest.mark.parametrize("how", ["chunked", "whole"])
async def test_agent_gets_its_manifest(world: World, computation: bytes, how: str) -> None:
    async with world.serve(MANAGER_AGENT_DIALS=how) as supervisor:
        vm_id = await supervisor.begin(computation)
        async with agent_of(world, vm_id) as agent:
            assert await answered(supervisor, vm_id) == {"computationId": "c-1"}
            assert agent.manifests.get() == MANIFEST
            sent = [agent.received.get() for _ in range(agent.received.qsize())]
        if how == "whole":
            assert [one.WhichOneof("message") for one in sent] == ["runReq"]
        else:
            assert [(one.runReqChunks.id, one.runReqChunks.is_last) for one in sent] == [
                ("c-1", False),
                ("c-1", True),
            ]
            assert sent[-1].runReqChunks.data == b""
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["relay"]["state"] == "answered"


async def failure(supervisor: Supervisor, vm_id: str) -> str:
    with pytest.raises(SupervisorError) as raised:
        await supervisor.vm(vm_id).wait_answered()
    return str(raised.value)


async def test_agent_that_refuses_its_manifest(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id, refuses="no such\x1b[31m algorithm"):
            assert "FAILED_PRECONDITION: no such algorithm" in await failure(supervisor, vm_id)
        record = supervisor.vm(vm_id).record
        assert (record.relay, record.end_cause) == ("failed", "run-failed")


async def test_agent_that_does_not_answer_has_said_why(world: World) -> None:
    """So it is with a manifest that it cannot use: it says so in its log alone."""
    async with world.serve(MANAGER_AGENT_GRPC_TIMEOUT="1s") as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id, silent=True) as agent:
            agent.say(agent_log=cvms_pb2.AgentLog(message="wrong state", level="WARN"))
            said = await failure(supervisor, vm_id)
        assert "did not answer Run within 1 s" in said
        assert "its last words: wrong state" in said


async def test_agent_whose_stream_ends_before_its_answer(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id, silent=True) as agent:
            await in_thread(agent.manifests.get)
        assert "its stream ended" in await failure(supervisor, vm_id)


async def test_agent_that_never_dials(world: World) -> None:
    async with world.serve(MANAGER_BOOT_TIMEOUT="1s") as supervisor:
        said = await failure(supervisor, await supervisor.begin(IN_JSON))
        assert "was not ready 1 s after the guest's start" in said


async def test_state_and_stop_over_both_wires(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        path, vms = f"/vms/{vm_id}/computation", supervisor.vm_service
        early = await supervisor.http.post(f"{path}/stop")
        assert early.status_code == 409
        async with agent_of(world, vm_id, silent=True) as agent:
            await in_thread(agent.manifests.get)
            early = await supervisor.http.post(f"{path}/stop")
            assert (early.status_code, "no computation to stop" in early.text) == (409, True)
            agent.say(run_res=cvms_pb2.RunResponse(computation_id="c-1"))
            await answered(supervisor, vm_id)
            state = {"vm": vm_id, "state": "ReceivingAlgorithm"}
            assert (await supervisor.http.get(path)).json() == state
            request = vm_pb2.ComputationRequest(id=vm_id)
            said = await supervisor.call(vms.Computation, request)
            assert said.state == "ReceivingAlgorithm"
            stopped = await supervisor.http.post(f"{path}/stop")
            assert (stopped.status_code, stopped.json()["state"]) == (200, "running")
            with pytest.raises(grpc.RpcError) as raised:
                await supervisor.call(vms.StopComputation, vm_pb2.StopComputationRequest(id=vm_id))
            assert "no computation to stop" in str(raised.value.details())
            assert agent.stopped == ["c-1", "c-1"]
        await supervisor.vm(vm_id).until(lambda: supervisor.vm(vm_id).agent_lost)
        gone = await supervisor.http.get(path)
        assert (gone.status_code, "has not dialled again" in gone.text) == (409, True)
        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        over = await supervisor.http.get(path)
        assert (over.status_code, "it is shutoff" in over.text) == (409, True)


async def test_agent_that_is_called_has_no_such_state(world: World) -> None:
    async with world.serve(MANAGER_AGENT_DIALS="no") as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.get(f"/vms/{vm_id}/computation")
        assert (answer.status_code, "does not dial" in answer.text) == (409, True)


async def events_of(supervisor: Supervisor, vm_id: str, *kinds: str) -> list[dict[str, Any]]:
    page = await supervisor.http.get(f"/vms/{vm_id}/events?after=0&limit=1000")
    found = [one for one in page.json()["events"] if one["event"] in kinds]
    return [
        {name: one[name] for name in one if name not in ("sequence", "at", "vm")} for one in found
    ]


async def test_logs_and_events_are_told(world: World) -> None:
    event = cvms_pb2.AgentEvent(
        event_type="AlgorithmRun",
        status="InProgress",
        originator="agent",
        computation_id="c-1",
        details=b'{"a": 1}\xff',
    )
    line = cvms_pb2.AgentLog(message="\x1b[2Jready\nnow" + "x" * 2000, level="INFO")
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id) as agent:
            await answered(supervisor, vm_id)
            with supervisor.running.service.journal.events.subscribe() as news:
                agent.say(agent_event=event)
                while (await news.receive()).kind != "agent-event":
                    pass
                async with agent_of(world, vm_id, forwards_logs=True) as forwarder:
                    forwarder.say(agent_log=line)
                    while (await news.receive()).kind != "agent-log":
                        pass
            assert not supervisor.vm(vm_id).agent_lost  # the forwarder's stream is not the agent's
        told, logged = await events_of(supervisor, vm_id, "agent-event", "agent-log")
        assert told == {
            "event": "agent-event",
            "type": "AlgorithmRun",
            "status": "InProgress",
            "originator": "agent",
            "computation": "c-1",
            "details": '{"a": 1}\ufffd',
        }
        assert logged["message"].startswith("ready nowxxx")
        assert len(logged["message"].encode()) == 1024


async def test_flood_of_logs_is_counted(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id) as agent:
            await answered(supervisor, vm_id)
            for _ in range(300):
                agent.say(agent_log=cvms_pb2.AgentLog(message="again"))
            # An answer comes after all that was said before.
            assert (await supervisor.http.get(f"/vms/{vm_id}/computation")).status_code == 200
            logs = await events_of(supervisor, vm_id, "agent-log")
            assert 200 <= len(logs) < 300
            with supervisor.running.service.journal.events.subscribe() as news:
                while True:
                    agent.say(agent_log=cvms_pb2.AgentLog(message="and again"))
                    with trio.move_on_after(0.1):
                        while (event := await news.receive()).kind != "dropped":
                            pass
                        break
        assert event.data["count"] >= 300 - len(logs)


async def test_stream_that_breaks_and_comes_back(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        vm = supervisor.vm(vm_id)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
        await vm.until(lambda: vm.agent_lost)
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()["agent"]
        assert (shown["ready"], shown["reason"]) == (False, "its stream ended")
        async with agent_of(world, vm_id) as agent:
            await vm.until(lambda: vm.agent_ready)
            assert agent.manifests.empty()  # it has it
        await vm.until(lambda: vm.agent_lost)
        await vm.write_deferred()  # its events are being written
        found = await events_of(supervisor, vm_id, "agent", "agent-lost")
        assert [one["event"] for one in found] == ["agent", "agent-lost", "agent", "agent-lost"]
        assert found[1]["reason"] == "disconnected"


async def test_later_stream_takes_the_place_of_an_earlier_one(world: World) -> None:
    """The earlier one's connection may have died without a word."""
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id) as first:
            await answered(supervisor, vm_id)
            async with agent_of(world, vm_id):
                assert await in_thread(first.wait_ended) is grpc.StatusCode.OK
                answer = await supervisor.http.get(f"/vms/{vm_id}/computation")
                assert answer.status_code == 200


async def test_agent_that_opens_too_many_streams(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        codes = []
        for _ in range(12):
            async with agent_of(world, vm_id, forwards_logs=True) as agent:
                agent.say(agent_log=cvms_pb2.AgentLog(message=""))
                agent.end()
                codes.append(await in_thread(agent.wait_ended))
        # Beyond its share its connection is cut.
        assert codes[:8] == [grpc.StatusCode.OK] * 8
        assert grpc.StatusCode.UNAVAILABLE in codes[8:]
        assert set(codes[8:]) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


async def test_agent_that_calls_other_methods(world: World) -> None:
    """They do not exist, and each call would be work all the same."""
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
        with grpc.insecure_channel(f"unix:{world.tmp / vm_id / 'out.sock'}") as channel:
            call: Any = channel.unary_unary("/cvms.Service/Other")
            codes = []
            for _ in range(12):
                with pytest.raises(grpc.RpcError) as raised:
                    await supervisor.call(call, b"")
                codes.append(raised.value.code())
        assert codes[0] is grpc.StatusCode.UNIMPLEMENTED
        assert grpc.StatusCode.UNAVAILABLE in codes


async def test_many_who_ask_at_once(world: World) -> None:
    """On one stream no two write at a time, and none comes between a manifest's parts."""
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        path, states = f"/vms/{vm_id}/computation", []

        async def ask() -> None:
            answer = await supervisor.http.get(path)
            states.append((answer.status_code, answer.json()["state"]))

        async with agent_of(world, vm_id), trio.open_nursery() as nursery:
            await answered(supervisor, vm_id)
            for _ in range(16):
                nursery.start_soon(ask)
        assert states == [(200, "ReceivingAlgorithm")] * 16


async def test_what_is_no_message_and_what_nobody_asked_for(world: World) -> None:
    async with world.serve_apart() as supervisor:
        body = {"computation": list(IN_JSON)}
        begun = await supervisor.http.post("/run", json=body, headers={"Prefer": "respond-async"})
        vm_id = begun.json()["id"]
        path = f"/vms/{vm_id}"
        async with agent_of(world, vm_id) as agent:
            await in_thread(agent.manifests.get)
            agent.say_bytes(b"\x0a\x03\x0a\x01\xff")  # a log that is not UTF-8
            for number in range(400):
                answer = cvms_pb2.RunResponse(computation_id=str(number))
                agent.say(run_res=answer)
            agent.say(agent_log=cvms_pb2.AgentLog(message="\n" * 60_000))
            assert (await supervisor.http.get(f"{path}/computation")).status_code == 200
        await supervisor.http.post(f"{path}/shutdown", json={"mode": "force"})
        told = [one for one in supervisor.log if "nobody asked" in one["message"]]
        assert 0 < len(told) <= 202
        assert not [one for one in supervisor.log if "DecodeError" in str(one)]


async def test_host_that_cannot_listen_again(world: World) -> None:
    """A VM that has answered is not ended for that."""
    world.hasten(housekeeping_retry_s=0.05)
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
            await supervisor.leave(await world.guest())
    out = world.tmp / vm_id / "out.sock"
    out.unlink()
    out.mkdir()
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: "out.sock" in vm.agent_problem)
        out.rmdir()
        # It tries until there is somebody.
        async with agent_of(world, vm_id):
            await vm.until(lambda: vm.agent_ready)
        await supervisor.http.delete(f"/vms/{vm_id}")
    await world.reap()


async def test_paused_guest_is_not_asked(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
            await supervisor.http.post(f"/vms/{vm_id}/pause")
            answer = await supervisor.http.get(f"/vms/{vm_id}/computation")
            assert (answer.status_code, "it is paused" in answer.text) == (409, True)


async def test_way_in_that_is_no_vms(world: World) -> None:
    """The socket that grpc listens on knows nobody but whom the supervisor passes on."""
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
            inner = world.tmp / "agents-inner.sock"
            assert inner.stat().st_mode & 0o022 == 0
            with dialling(f"unix:{inner}", vm_id) as stranger:
                code = await in_thread(stranger.wait_ended)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert not supervisor.vm(vm_id).agent_lost


async def test_restart_of_the_supervisor(world: World) -> None:
    """Whatever the next one's settings say: it is on record that this agent dials."""
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id):
            await answered(supervisor, vm_id)
            guest = await world.guest()
            await supervisor.leave(guest)
    (world.tmp / vm_id / "vm.json").write_text("")  # the events know as well
    async with world.serve(MANAGER_AGENT_DIALS="no") as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: vm.status.state.value == "running")
        async with agent_of(world, vm_id) as agent:
            await vm.until(lambda: vm.agent_ready)
            answer = await supervisor.http.post(f"/vms/{vm_id}/computation/stop")
            assert (answer.status_code, agent.stopped) == (200, ["c-1"])
        await supervisor.http.delete(f"/vms/{vm_id}")
    await world.reap()


async def test_vm_of_the_pool_has_its_agent_already(world: World) -> None:
    async with world.serve(MANAGER_POOL_SIZE="1") as supervisor:
        waiting = (await world.guest()).vm_id
        async with agent_of(world, waiting) as agent:
            vm = supervisor.vm(waiting)
            await vm.until(lambda: vm.agent_ready)
            assert (await supervisor.run(IN_JSON))["id"] == waiting
            assert agent.manifests.get() == MANIFEST


async def test_guest_reads_whom_to_dial_and_nobody_asks_for_a_credential(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(IN_JSON)
        await supervisor.wait_state(vm_id, "running")
        environment = world.tmp / vm_id / "environment" / "environment"
        assert environment.read_text().splitlines() == [
            "AGENT_LOG_LEVEL=info",
            "AGENT_CVM_GRPC_URL=10.0.2.2:701",
            "AGENT_CERTS_TOKEN=",
            "AGENT_CVM_CA_URL=",
            f"AGENT_CVM_ID={vm_id}",
        ]
        assert supervisor.vm(vm_id).credential is None
        argv = " ".join((await supervisor.http.get(f"/vms/{vm_id}")).json()["argv"])
        assert "mount_tag=env_share" in argv
        assert "restrict=on" not in argv  # its QEMU's namespace holds it


async def test_computation_of_another_is_nobodys(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = await supervisor.begin(IN_JSON)
        async with agent_of(world, vm_id) as agent:
            await answered(supervisor, vm_id)
            path = f"/vms/{vm_id}/computation"
            with asking(BOB):
                assert (await supervisor.http.get(path)).status_code == 404
                assert (await supervisor.http.post(f"{path}/stop")).status_code == 404
            assert agent.stopped == []
            with asking(ALICE):
                assert (await supervisor.http.post(f"{path}/stop")).status_code == 200
