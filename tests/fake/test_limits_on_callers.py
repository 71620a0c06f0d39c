"""No caller takes what others need: requests, connections, readers, bodies, time."""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio
import trio.testing

from supervisor.api.http import connections
from supervisor.pb import manager_pb2, vm_pb2
from tests.fake.test_connections import ask
from tests.support.event_reader import reading
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import Supervisor, World

POST = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def code_of(supervisor: Supervisor, call: Any, request: object) -> tuple[Any, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as caught:
        await supervisor.call(call, request)
    return caught.value.code(), {one.key: one.value for one in caught.value.trailing_metadata()}


async def test_too_many_requests_a_second(world: World) -> None:
    async with world.serve(MANAGER_CALLER_RATE="1") as supervisor:
        answers = [await supervisor.http.get("/vms") for _ in range(3)]
        while answers[-1].status_code == 200:  # a slow machine had time for another token
            answers.append(await supervisor.http.get("/vms"))
        assert [one.status_code for one in answers[:2]] == [200, 200]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert "MANAGER_CALLER_RATE" in answers[-1].json()["advice"]
        assert (await supervisor.http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/vms", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/vms", {"Host": "evil.example"}, 421),
        ("/nowhere", {}, 404),
    ],
)
async def test_requests_that_are_refused_count(
    world: World, path: str, headers: dict[str, str], status: int
) -> None:
    async with world.serve(MANAGER_CALLER_RATE="1") as supervisor:
        answers = [await supervisor.http.get(path, headers=headers) for _ in range(3)]
        while answers[-1].status_code == status:  # a slow machine had time for another token
            answers.append(await supervisor.http.get(path, headers=headers))
        assert [one.status_code for one in answers[:2]] == [status, status]
        assert answers[-1].status_code == 429


async def test_too_many_requests_at_once(world: World) -> None:
    world.scenario(agent="silent")
    settings = {"MANAGER_CALLER_REQUESTS": "1"}
    async with world.serve(**settings) as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.post, b"x")
        guest = await world.guest()
        while (await guest.next())["saw"] != "Run":
            pass
        assert (await supervisor.http.get("/vms")).status_code == 429
        # Both wires count together.
        code, metadata = await code_of(supervisor, supervisor.vm_service.List, vm_pb2.ListRequest())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert metadata["retry-after"]
        assert (await supervisor.http.get("/health")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_too_many_readers(world: World) -> None:
    async with world.serve(MANAGER_CALLER_READERS="1") as supervisor:
        async with reading(supervisor):
            answer = await supervisor.http.get("/events")
            assert answer.status_code == 429
            assert "MANAGER_CALLER_READERS" in answer.json()["advice"]
            assert (await supervisor.http.get("/events?limit=1")).status_code == 200
        with trio.fail_after(PATIENCE_S):
            while (await supervisor.http.head("/events")).status_code == 429:
                pass


async def test_too_many_connections(world: World) -> None:
    async with world.serve(MANAGER_HTTP_CONNECTIONS="2") as supervisor:
        port = supervisor.running.http_port
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        async with AsyncExitStack() as stack:
            for _ in range(2):
                stream = await stack.enter_async_context(
                    await trio.open_tcp_stream("127.0.0.1", port)
                )
                await stream.send_all(get)
                assert await stream.receive_some()
            head, _ = await ask(supervisor, get)
            assert head == b""
        while not (await ask(supervisor, b"GET /health HTTP/1.0\r\n\r\n"))[0]:
            pass


async def test_too_many_connections_over_grpc(world: World) -> None:
    async with world.serve(MANAGER_HTTP_CONNECTIONS="1") as supervisor:
        port = supervisor.running.grpc_port
        assert (
            list((await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())).vms)
            == []
        )
        async with await trio.open_tcp_stream("127.0.0.1", port) as another:
            assert await another.receive_some() == b""
        # The one that was there goes on.
        assert (
            list((await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())).vms)
            == []
        )


async def get_over(path: Path) -> bytes:
    """What a connection to a unix socket answers; empty if it is closed at once."""
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_unix_socket(path) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"GET /health HTTP/1.0\r\n\r\n")
                return b"".join([part async for part in stream])
    return b""


@pytest.mark.parametrize("limit", ["of one user", "of all"])
async def test_user_of_the_socket_leaves_connections_to_root(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    uids = [0]
    monkeypatch.setattr(connections, "uid_of", lambda _: uids[0])
    settings = {"MANAGER_HTTP_CONNECTIONS": "2"} if limit == "of one user" else {}
    if limit == "of all":
        monkeypatch.setattr(connections, "_most_connections", lambda: 2)
    path = world.tmp / "api.sock"
    async with world.serve(**settings), AsyncExitStack() as stack:
        uids[0] = 12345
        for _ in range(2):
            stream = await stack.enter_async_context(await trio.open_unix_socket(path))
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await stream.receive_some()
        assert await get_over(path) == b""
        for uids[0] in (0, os.geteuid()):
            assert b" 200 " in await get_over(path)


async def test_connections_beyond_the_limit_are_told_once_a_second(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.serve(MANAGER_HTTP_CONNECTIONS="1") as supervisor:
        port = supervisor.running.http_port
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await stream.receive_some()
            for _ in range(20):
                assert await ask(supervisor, b"") == (b"", b"")
    told = [line for line in capsys.readouterr().out.splitlines() if "connection refused" in line]
    assert 0 < len(told) < 20


async def test_headers_that_come_too_slowly(world: World) -> None:
    """Bytes that come now and then do not put it off."""
    async with world.serve(MANAGER_HTTP_HEADER_TIMEOUT="50ms") as supervisor:
        port = supervisor.running.http_port
        with trio.fail_after(PATIENCE_S):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nX: ")
                async with trio.open_nursery() as nursery:

                    async def drip() -> None:
                        with suppress(trio.BrokenResourceError):
                            while True:
                                await stream.send_all(b"x")
                                await trio.testing.wait_all_tasks_blocked()

                    nursery.start_soon(drip)
                    async for _ in stream:
                        pass
                    nursery.cancel_scope.cancel()
        # What is in time is answered.
        head, _ = await ask(supervisor, b"GET /health HTTP/1.0\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("length", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
async def test_body_that_comes_too_slowly(world: World, length: bytes) -> None:
    async with world.serve(MANAGER_BODY_TIMEOUT="50ms") as supervisor:
        head, body = await ask(supervisor, POST + length + b"\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert "65536 bytes a second" in json.loads(body)["advice"]


async def test_message_that_does_not_come(world: World) -> None:
    async with world.serve(MANAGER_BODY_TIMEOUT="50ms") as supervisor:
        call = supervisor.channel.stream_unary(
            "/manager.ManagerService/Run",
            request_serializer=manager_pb2.RunRequest.SerializeToString,
            response_deserializer=manager_pb2.RunResponse.FromString,
        )

        never: SimpleQueue[manager_pb2.RunRequest | None] = SimpleQueue()

        def ask_without_a_word() -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                call(iter(never.get, None), timeout=PATIENCE_S)
            code: grpc.StatusCode = caught.value.code()
            never.put(None)
            return code

        assert await in_thread(ask_without_a_word) is grpc.StatusCode.DEADLINE_EXCEEDED
    (line,) = map(json.loads, (world.tmp / "audit.jsonl").read_text().splitlines())
    assert (line["outcome"], line["error"]) == ("refused", "TooSlow")


async def test_bodies_beyond_the_budget(world: World) -> None:
    """Of one caller: three of the largest are half of the budget of seven."""
    settings = {"MANAGER_BODY_BUDGET": "114M", "MANAGER_BODY_WAIT": "50ms"}
    async with world.serve(**settings) as supervisor:
        port = supervisor.running.http_port
        async with AsyncExitStack() as stack:
            for _ in range(3):
                stream = await stack.enter_async_context(
                    await trio.open_tcp_stream("127.0.0.1", port)
                )
                await stream.send_all(POST + b"Content-Length: 80000000\r\n\r\n{")
            while supervisor.running.gate.budget.held_bytes < 3 * 2**24:
                await trio.testing.wait_all_tasks_blocked()
            head, body = await ask(
                supervisor, POST + b"Content-Length: 80000000\r\nConnection: close\r\n\r\n{"
            )
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 5" in head.lower()
            assert "MANAGER_BODY_BUDGET" in json.loads(body)["advice"]
            # Over the other wire it is the same caller, if it comes from the same address.
            assert (await supervisor.post(b"a small one")).status_code == 200
        with trio.fail_after(PATIENCE_S):
            while supervisor.running.gate.budget.held_bytes:
                await trio.testing.wait_all_tasks_blocked()


async def test_room_is_given_back_once_the_computation_is_on_disk(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.post, b"x")
        guest = await world.guest()
        while (await guest.next())["saw"] != "Run":
            pass
        assert supervisor.running.gate.budget.held_bytes == 0
        nursery.cancel_scope.cancel()
