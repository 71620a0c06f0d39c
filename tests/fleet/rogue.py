"""A member that was taken over: b's certificate and key, and what the test has it say."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.bridge import open_loop
from supervisor.fleet.facts import HostFacts
from supervisor.fleet.ledger import Run, RunState
from supervisor.membership import _server_context
from tests.fleet.test_engine import member

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from supervisor.fleet.nats import NatsEngine
    from tests.fleet.conftest import Fleet

    #: From the request's head to all of the answer.
    Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def rogue(fleet: Fleet, address: str = "", **labels: str) -> AsyncIterator[NatsEngine]:
    """Is b, at NATS and in the others' eyes.

    :param address: where it says that it is
    """
    (at,) = (str(one.address) for one in fleet.brokers.members if one.name == "b")
    facts = HostFacts(name="b", address=address or at, seat="rogue", labels=labels)
    async with open_loop(), member(fleet.brokers, "b") as engine:
        await engine.create("hosts", "b", facts.encode())
        yield engine


async def take(engine: NatsEngine) -> None:
    """Claim the next run that is queued, so that its entry host sends it."""
    async with engine.watch("runs") as runs:
        async for one in runs:
            run = Run.decode(one.value) if one and one.value else None
            if one and run and run.state is RunState.QUEUED:
                claimed = run.claimed("b", run.epoch)
                await engine.update("runs", run.id, claimed.encode(), one.revision)
                words = f"{run.id} b {claimed.epoch}"
                assert await engine.call(run.entry, "claimed", words.encode(), 2) == b"coming"
                return


@asynccontextmanager
async def having_all(engine: NatsEngine) -> AsyncIterator[None]:
    """Says of each VM that it has it."""

    async def answer(subject: str, _: bytes) -> bytes:
        return b"b" if subject == "find" else b""

    async with engine.answering("b", answer):
        yield


@asynccontextmanager
async def answering(fleet: Fleet, answer: Answer) -> AsyncIterator[None]:
    """Answers each request at b's address, and closes the connection."""
    (at,) = (one.address for one in fleet.brokers.members if one.name == "b")
    context = _server_context(fleet.brokers.files("b"))
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, ssl_context=context, host=at.host)
        await nursery.start(serve, partial(_answer, answer), at.port)
        yield
        nursery.cancel_scope.cancel()


async def _answer(answer: Answer, stream: trio.SSLStream[trio.SocketStream]) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        received = await stream.receive_some()
        if not received:
            return
        head += received
    try:
        await stream.send_all(answer(head))
        await stream.aclose()
    except trio.BrokenResourceError:
        pass  # who asks has heard enough


def said(status: int, content: bytes = b"", **headers: str) -> bytes:
    """One answer."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content
