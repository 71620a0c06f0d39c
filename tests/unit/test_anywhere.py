"""Calls of gRPC that other members of a fleet answer, or do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest

from supervisor.api.callers import serving
from supervisor.api.fleet.others import Others
from supervisor.api.grpc import anywhere, errors
from supervisor.caller import ANYBODY
from supervisor.errors import MemberBroke, RefusedElsewhere
from supervisor.pb import vm_pb2

GET = "supervisor.v1.VmService/Get"


async def ask(answer: httpx.Response) -> Any:
    """What becomes of another member's answer to Get."""
    there = SimpleNamespace(address="127.0.0.1:1")
    fleet: Any = SimpleNamespace(
        name="a",
        identity=SimpleNamespace(sign=lambda *_: "a.b.c"),
        members=SimpleNamespace(hosts={"a": there, "b": there}, lost={}),
    )
    with serving(lambda: ANYBODY):
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer)) as client:
            member: Any = SimpleNamespace(fleet=fleet, others=Others(fleet, lambda: client))
            return await anywhere.ask(member, "b", GET, b"", vm_pb2.Vm)


def answered(status: int, content: bytes) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(content))


async def test_an_answer() -> None:
    vm = vm_pb2.Vm(id="one")
    assert await ask(answered(200, vm.SerializeToString())) == vm


@pytest.mark.parametrize("content", [b"\xff", b"<html>", b"\x0a\xff"])
async def test_what_is_no_message_is_a_broken_member(content: bytes) -> None:
    with pytest.raises(MemberBroke):
        await ask(answered(200, content))


async def test_a_refusal_is_the_callers() -> None:
    document = b'{"type": "urn:qmp-supervisor:problem:vm-not-found", "detail": "no VM x"}'
    with pytest.raises(RefusedElsewhere, match="no VM x") as refused:
        await ask(answered(404, document))
    assert errors.code_of(refused.value) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"type": 1, "detail": null}'])
async def test_a_refusal_that_says_nothing(content: bytes) -> None:
    with pytest.raises(RefusedElsewhere) as refused:
        await ask(answered(500, content))
    assert errors.code_of(refused.value) is grpc.StatusCode.UNAVAILABLE
