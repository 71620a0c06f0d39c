"""The line to a copy's agent, at the supervisor's end. A guest may say anything."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from supervisor.agent.line import MOST_BYTES, Line
from supervisor.errors import AgentError
from supervisor.pb import clone_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWER = clone_pb2.FirstAnswer(computation=b"done").SerializeToString()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@asynccontextmanager
async def line_to(says: bytes, *, stays: bool = True) -> AsyncIterator[tuple[Line, socket.socket]]:
    """The line to a guest that says this."""
    ours, theirs = socket.socketpair()
    theirs.sendall(says)
    if not stays:
        theirs.shutdown(socket.SHUT_WR)
    line = Line("vm-1", trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    with theirs, trio.fail_after(30):
        yield line, theirs
        await line.close()


async def test_the_computation_is_the_first_call() -> None:
    computation = bytes(MOST_BYTES)
    async with line_to(b"r" + framed(ANSWER)) as (line, guest):
        await line.wait_renewed()
        assert await line.run(computation, open_to_all=True) == "done"
        size = int.from_bytes(guest.recv(4, socket.MSG_WAITALL), "big")
        call = clone_pb2.FirstCall.FromString(guest.recv(size, socket.MSG_WAITALL))
    assert (call.computation, call.open_to_all, call.unix_time_ns > 0) == (computation, True, True)


async def test_a_copy_rehearses_before_there_is_a_computation() -> None:
    async with line_to(framed(b"") + framed(ANSWER)) as (line, guest):
        await line.rehearse()
        assert await line.run(b"{}", open_to_all=False) == "done"
        calls = []
        for _ in range(2):
            size = int.from_bytes(guest.recv(4, socket.MSG_WAITALL), "big")
            message = guest.recv(size, socket.MSG_WAITALL)
            calls.append(clone_pb2.FirstCall.FromString(message))
    assert [(call.rehearsal, call.computation) for call in calls] == [(True, b""), (False, b"{}")]
    assert all(call.unix_time_ns > 0 for call in calls)


async def test_a_guest_that_goes_is_not_waited_for() -> None:
    async with line_to(b"", stays=False) as (line, _):
        with pytest.raises(AgentError, match="its line was cut") as caught:
            await line.wait_renewed()
    assert caught.value.code == "UNAVAILABLE"
    async with line_to(framed(ANSWER)[:-1], stays=False) as (line, _):
        with pytest.raises(AgentError, match="its line was cut"):
            await line.run(b"", open_to_all=False)


async def test_a_refusal_is_told_as_the_agent_has_put_it() -> None:
    refusal = clone_pb2.FirstAnswer(code=9, detail="this guest is no copy").SerializeToString()
    async with line_to(framed(refusal)) as (line, _):
        with pytest.raises(AgentError) as caught:
            await line.run(b"", open_to_all=False)
    assert (caught.value.code, caught.value.text) == (
        "FAILED_PRECONDITION",
        "this guest is no copy",
    )


async def test_a_guest_that_closes_its_end_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As when its agent dies: QEMU tells of it, and keeps this end open."""
    async with line_to(framed(ANSWER)[:-1]) as (line, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(AgentError, match="has closed its line") as caught:
                await line.run(b"{}", open_to_all=False)
            assert caught.value.code == "UNAVAILABLE"

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        line.guest_has_closed()
    assert not line.takes(b"{}")


async def test_what_a_guest_said_before_it_closed_its_end_counts() -> None:
    """A guest closes it right after its answer."""
    async with line_to(framed(ANSWER)) as (line, _):
        line.guest_has_closed()
        assert await line.run(b"{}", open_to_all=False) == "done"


async def test_a_long_refusal_is_cut() -> None:
    refusal = clone_pb2.FirstAnswer(code=3, detail="x" * 100_000).SerializeToString()
    async with line_to(framed(refusal)) as (line, _):
        with pytest.raises(AgentError) as caught:
            await line.run(b"", open_to_all=False)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    "says",
    [
        framed(b"\xff"),
        (2**32 - 1).to_bytes(4, "big"),
        framed(clone_pb2.FirstAnswer(code=99).SerializeToString()),
        framed(clone_pb2.FirstAnswer(computation=b"\xff").SerializeToString()),
    ],
    ids=["no message", "too long", "a code that is none", "no UTF-8"],
)
async def test_an_answer_that_is_none_is_an_error_of_the_agents(says: bytes) -> None:
    async with line_to(says) as (line, _):
        with pytest.raises(AgentError, match="not what its protocol says") as caught:
            await line.run(b"", open_to_all=False)
    assert caught.value.code == "INTERNAL"


async def test_a_copy_that_says_something_else_is_not_renewed() -> None:
    async with line_to(b"x") as (line, _):
        with pytest.raises(AgentError, match="not what its protocol says"):
            await line.wait_renewed()
