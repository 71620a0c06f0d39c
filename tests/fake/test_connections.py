"""HTTP's connections: when they are closed, and what a malformed request gets."""

from __future__ import annotations

import json
import socket
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import pytest
import trio

from supervisor.api.http import connections
from supervisor.api.http.app import MAX_BODY
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World


async def ask(supervisor: Supervisor, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of all that a connection answers until the supervisor closes it."""
    port = supervisor.running.http_port
    answer = b""
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            async for part in stream:
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /nowhere HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /run HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
    ],
)
async def test_connection_is_closed_after_the_answer(world: World, request_: bytes) -> None:
    async with world.serve() as supervisor:
        _, body = await ask(supervisor, request_)
        assert json.loads(body)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /hea",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        # HTTP/2 by prior knowledge, with an empty SETTINGS.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
        b"GET /vms HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 99\r\n\r\n",
    ],
    ids=["nothing", "half", "answered", "http2", "websocket"],
)
async def test_connection_without_a_request_is_closed_in_the_end(world: World, sent: bytes) -> None:
    world.hasten(http_idle_s=0.01)
    async with world.serve() as supervisor:
        await ask(supervisor, sent)  # which reads to the end


async def test_there_are_only_so_many_connections(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_most_connections", lambda: 2)
    async with world.serve() as supervisor:
        port = supervisor.running.http_port
        async with AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(
                    await trio.open_tcp_stream("127.0.0.1", port)
                )
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert await stream.receive_some()
            head, _ = await ask(supervisor, b"")
            assert head == b""
        # Those who have gone make room.
        while not (await ask(supervisor, b"GET /health HTTP/1.0\r\n\r\n"))[0]:
            pass


async def test_answer_reaches_a_client_that_is_still_sending(world: World) -> None:
    """Were the connection closed with bytes unread, the answer would be lost."""
    async with world.serve() as supervisor:
        size = 90 * 2**20
        head = f"POST /run HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n"
        answer, body = await ask(supervisor, f"{head}\r\n".encode() + bytes(size))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert f"at most {MAX_BODY} bytes" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (b"nonsense\r\n\r\n", 400, "request line"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET http://[/health HTTP/1.0\r\n\r\n", 400, "URL"),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
            431,
            "16384 bytes",
        ),
        (
            b"POST /run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "chunked",
        ),
        (
            b"DELETE /vms/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
            400,
            "Transfer-Encoding",
        ),
    ],
    ids=["garbled", "without Host", "address", "long", "encoding", "two lengths"],
)
async def test_malformed_request_gets_a_problem(
    world: World, request_: bytes, status: int, says: str
) -> None:
    async with world.serve() as supervisor:
        head, body = await ask(supervisor, request_)
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"application/problem+json" in head
        problem = json.loads(body)
        assert problem["status"] == status
        assert says in problem["detail"]
        assert problem["advice"]


async def test_websocket_is_refused_with_a_problem(world: World) -> None:
    async with world.serve() as supervisor:
        head, body = await ask(
            supervisor,
            b"GET /events HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        assert head.startswith(b"HTTP/1.1 400 ")
        assert "websocket" in json.loads(body)["detail"]


async def test_error_in_one_connection_is_no_end_of_the_server(world: World) -> None:
    """Hypercorn takes an HTTP/2 path for ASCII, and its nursery takes the server along."""
    lenient: Any = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False
    )
    client = h2.connection.H2Connection(lenient)
    client.initiate_connection()
    head: list[tuple[str | bytes, str | bytes]] = [
        (":method", "GET"),
        (":path", b"/\xff"),
        (":scheme", "http"),
        (":authority", "localhost"),
    ]
    client.send_headers(1, head, end_stream=True)
    async with world.serve() as supervisor:
        await ask(supervisor, client.data_to_send())
        assert (await supervisor.http.get("/health")).status_code == 200


async def test_client_that_reads_nothing_does_not_keep_the_supervisor_from_stopping(
    world: World,
) -> None:
    world.hasten(http_unread_s=0.1)
    world.scenario(reply_bytes=16 * 2**20)
    body = b'{"computation": "AA=="}'
    head = f"POST /run HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.socket() as client:
        # What does not fit into the buffers stays with the supervisor.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await trio.sleep(PATIENCE_S)
                client.close()

            nursery.start_soon(give_up)
            async with world.serve() as supervisor:
                client.connect(("127.0.0.1", supervisor.running.http_port))
                client.sendall(f"{head}\r\n\r\n".encode() + body)
                await in_thread(partial(client.recv, 1, socket.MSG_PEEK))
            nursery.cancel_scope.cancel()
        assert client.fileno() != -1, "the supervisor waited for the client"
