"""What another member answers: it is closed with its request, and may be anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from quart import Quart

from supervisor.api.callers import serving
from supervisor.api.fleet.others import Others
from supervisor.api.http import listing
from supervisor.api.http.at_end import closing
from supervisor.api.http.elsewhere import Elsewhere, passed_on
from supervisor.caller import ANYBODY, Caller
from supervisor.errors import Unauthenticated


class Endless(httpx.AsyncByteStream, AsyncIterator[bytes]):
    closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return b"more" * 4096

    async def aclose(self) -> None:
        self.closed = True


async def test_an_answer_that_nobody_begins_to_read_is_closed() -> None:
    stream = Endless()
    with serving(lambda: ANYBODY):
        async with closing():
            passed_on(httpx.Response(200, stream=stream))
            assert not stream.closed
    assert stream.closed


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "1000000"}])
async def test_an_answer_without_an_end_ends_with_its_callers_right(
    headers: dict[str, str],
) -> None:
    revoked = False

    def ask() -> Caller:
        if revoked:
            raise Unauthenticated("the token was revoked")
        return ANYBODY

    async with Quart(__name__).app_context():
        with serving(ask):
            async with closing():
                answer = passed_on(httpx.Response(200, stream=Endless(), headers=headers))
                got = 0
                async with answer.response as pieces:
                    async for _ in pieces:
                        revoked, got = True, got + 1
                        if got == 3:
                            break
    assert got == (3 if headers else 1)


class Broken(Endless):
    async def __anext__(self) -> bytes:
        raise httpx.ReadError("reset")


@pytest.mark.parametrize(
    "content",
    [
        Endless(),
        Broken(),
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"vms": [{}], "next": null}',
        b'{"vms": [1], "next": null}',
        b'{"vms": null, "next": null}',
    ],
)
async def test_a_list_does_without_a_member_that_answers_anything_else(
    content: bytes | Endless,
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        stream = httpx.ByteStream(content) if isinstance(content, bytes) else content
        return httpx.Response(200, stream=stream)

    b = SimpleNamespace(address="127.0.0.1:1")
    identity = SimpleNamespace(sign=lambda *_: "a.b.c")
    members = SimpleNamespace(hosts={"a": b, "b": b}, lost={})
    fleet: Any = SimpleNamespace(name="a", identity=identity, members=members)
    here = {"vms": [{"place": "1"}], "next": None}
    with serving(lambda: ANYBODY):
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            elsewhere = Elsewhere(Others(fleet, lambda: client))
            found = await elsewhere.list(here, None, listing.check, "/vms")
    assert found == ([here], ["b"])
    if isinstance(content, Endless):
        assert content.closed
