"""Runs that come over gRPC or as a form, and calls of gRPC, for VMs that another member has."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.pb import manager_pb2, manager_pb2_grpc, vm_pb2, vm_pb2_grpc
from tests.fleet.posting import ZONE, record_of
from tests.support.agent_process import WRITE
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fleet.conftest import Fleet
    from tests.support.guest import Apart

TO_B = (("host", '{"labels": {"zone": "south"}}'),)
#: Its result is the sum of its data set's numbers.
ALGORITHM = b"import os" + WRITE % (
    b"str(sum(map(int, open(os.environ['DATASET_FILE']).read().split()))).encode()"
)


class Wire:
    """A member's gRPC. Its stubs are blocking, so that no second loop of grpc's is here."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.manager = manager_pb2_grpc.ManagerServiceStub(channel)
        self.vms = vm_pb2_grpc.VmServiceStub(channel)

    async def ask(self, method: Any, request: object, **named: Any) -> Any:
        def call() -> Any:
            return method(request, timeout=PATIENCE_S, **named)

        return await trio.to_thread.run_sync(call)

    async def refusal(self, method: Any, request: object, **named: Any) -> Any:
        with pytest.raises(grpc.RpcError) as refused:
            await self.ask(method, request, **named)
        return refused.value


@contextmanager
def wire(member: Apart) -> Iterator[Wire]:
    port = member.said("ready")["grpc_port"]
    with grpc.insecure_channel(
        f"localhost:{port}", options=(("grpc.enable_http_proxy", 0),)
    ) as channel:
        yield Wire(channel)


async def test_grpc_reaches_vms_of_every_member(fleet: Fleet) -> None:
    async with fleet.serve_both(**ZONE) as (a, b):
        here = await a.run(b"here")
        with wire(a) as at_a:
            ran = await at_a.ask(
                at_a.manager.Run, manager_pb2.RunRequest(computation=b"there"), metadata=TO_B
            )
            there = await record_of(b)
            assert there["id"] == ran.ID
            assert ran.computation
            listed = await at_a.ask(at_a.vms.List, vm_pb2.ListRequest())
            by_host = {vm.id: vm.host for vm in listed.vms}
            assert by_host == {here["id"]: "a", ran.ID: "b"}
            assert not listed.missing
            shown = await at_a.ask(at_a.vms.Get, vm_pb2.GetRequest(id=ran.ID))
            assert (shown.state, shown.host) == (vm_pb2.VM_STATE_RUNNING, "b")
            paused = await at_a.ask(at_a.vms.Pause, vm_pb2.PauseRequest(id=ran.ID))
            assert paused.state == vm_pb2.VM_STATE_PAUSED
            info = await at_a.ask(at_a.manager.CVMInfo, manager_pb2.CVMInfoReq(id=ran.ID))
            assert info.id == ran.ID
            # The other member's refusal is this one's.
            refused = await at_a.refusal(at_a.vms.Computation, vm_pb2.ComputationRequest(id=ran.ID))
            assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert ran.ID in refused.details()
            await at_a.ask(at_a.vms.Delete, vm_pb2.DeleteRequest(id=ran.ID))
            gone = await at_a.refusal(at_a.vms.Get, vm_pb2.GetRequest(id=ran.ID))
            assert gone.code() is grpc.StatusCode.NOT_FOUND


async def test_a_query_reaches_another_host_as_it_was_sent(fleet: Fleet) -> None:
    async with fleet.serve_both(**ZONE) as (a, b):
        answer = await a.http.post(
            "/run", json={"computation": [1], "host": {"labels": {"zone": "south"}}}
        )
        path = f"/vms/{answer.json()['id']}/status"
        queries = ('?since="<x>"', "?tail=1&x=%22", "?x=a+b", "?grep=%zz^|{}")
        for member, query in itertools.product((a, b), queries):
            target = path + query
            for sent in (target, f"{member.http.base_url}{target}"):  # absolute-form, of RFC 9112
                told = await member.http.get(path, extensions={"target": sent.encode()})
                assert told.status_code == 200, (sent, told.text)


async def test_a_list_says_who_has_not_answered(fleet: Fleet) -> None:
    async with fleet.serve_both() as (a, b):
        b.process.kill()
        with wire(a) as at_a:
            listed = await at_a.ask(at_a.vms.List, vm_pb2.ListRequest())
            assert list(listed.missing) == ["b"]


async def test_an_error_of_the_agent_is_passed_on(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="status", status=("OUT_OF_RANGE", "too far"))
    async with fleet.serve_both(**ZONE) as (a, _):
        with wire(a) as at_a:
            refused = await at_a.refusal(
                at_a.manager.Run, manager_pb2.RunRequest(computation=b"x"), metadata=TO_B
            )
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            assert "too far" in refused.details()
            assert ("agent-code", "OUT_OF_RANGE") in refused.trailing_metadata()
            unknown = await at_a.refusal(
                at_a.manager.Run,
                manager_pb2.RunRequest(computation=b"x"),
                metadata=(("host", '{"labels": {"zone": "nowhere"}}'),),
            )
            assert unknown.code() is grpc.StatusCode.FAILED_PRECONDITION
            wrong = await at_a.refusal(
                at_a.manager.Run,
                manager_pb2.RunRequest(computation=b"x"),
                metadata=(("host", "south"),),
            )
            assert wrong.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_form_lands_on_another_host(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="reference")
    async with fleet.serve_both(**ZONE) as (a, b):
        parts: dict[str, Any] = {
            "run": (None, '{"host": {"labels": {"zone": "south"}}}', "application/json"),
            "algorithm": ("sum.py", ALGORITHM),
            "data": ("data", b"1 2 39"),
        }
        answer = await a.http.post("/run", files=parts)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outcome"]["state"] == "succeeded"
        vm = await record_of(b)
        assert answer.json()["id"] == vm["id"]
        result = await a.http.get(f"/vms/{vm['id']}/result", headers={"Range": "bytes=-2"})
        assert (result.status_code, result.content) == (206, b"42")
        assert result.headers["Repr-Digest"].startswith("sha-256=:")


async def test_a_form_that_is_refused_on_another_host_leaves_no_vm(fleet: Fleet) -> None:
    fleet.worlds["b"].scenario(agent="reference")
    async with fleet.serve_both(**ZONE) as (a, _):
        parts: list[Any] = [
            ("run", (None, '{"host": {"labels": {"zone": "south"}}}', "application/json")),
            ("algorithm", ("sum.py", ALGORITHM)),
            ("algorithm", ("sum.py", ALGORITHM)),
        ]
        answer = await a.http.post("/run", files=parts)
        assert answer.status_code == 400, answer.text
        guest = await fleet.worlds["b"].guest()
        with trio.fail_after(PATIENCE_S):
            await guest.until("end")
