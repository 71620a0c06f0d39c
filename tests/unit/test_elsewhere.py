"""What another member answers is closed with the request that it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from quart import Quart

from supervisor.api.callers import serving
from supervisor.api.http.at_end import closing
from supervisor.api.http.elsewhere import passed_on
from supervisor.caller import ANYBODY, Caller
from supervisor.errors import Unauthenticated


class Endless(httpx.AsyncByteStream, AsyncIterator[bytes]):
    closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return b"more"

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
