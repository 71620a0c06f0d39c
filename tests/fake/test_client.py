"""`supervisor.client` against a supervisor: in trio, and in a thread without a loop."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from supervisor.client import AsyncClient, Client, Refused
from tests.fake.test_results import COUNT, world
from tests.support.world import PATIENCE_S, in_thread

__all__ = ["world"]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.world import World


async def test_from_a_run_to_its_result(world: World) -> None:
    async with world.serve() as supervisor, AsyncClient(str(supervisor.http.base_url)) as client:
        assert (await client.health())["status"] == "pass"
        answer = await client.run({"computation": "e30=", "labels": {"team": "a"}})
        vm_id = answer["id"]
        (listed,) = (await client.vms({"label": ["team=a"], "state": ["running"]}))["vms"]
        assert listed["id"] == vm_id
        assert (await client.vm(vm_id))["relay"]["state"] == "answered"
        assert await client.reply(vm_id) == answer["computation"]
        assert (await client.status(vm_id, live=True))["query_status"]

        async def pieces() -> AsyncIterator[bytes]:
            yield b"da"
            yield b"ta"

        digest = hashlib.sha256(b"data").digest()
        await client.send_algorithm(vm_id, COUNT)
        stored = await client.send_data(vm_id, 0, pieces(), size=4, sha256=digest)
        assert stored["sha256"] == digest.hex()
        with pytest.raises(Refused) as caught:
            await client.send_data(vm_id, 0, b"other", sha256=digest)
        assert caught.value.status == 400
        outcome = await client.compute(vm_id, {"time_limit": "1m"})
        assert outcome == await client.outcome(vm_id)
        async with client.result(vm_id) as result:
            got = b"".join([piece async for piece in result])
        assert hashlib.sha256(got).hexdigest() == outcome["result_sha256"]
        async with client.logs(vm_id, {"source": "algorithm"}) as printed:
            assert outcome["stdout"].encode() == b"".join([piece async for piece in printed])

        assert (await client.pause(vm_id))["state"] == "paused"
        assert (await client.resume(vm_id))["state"] == "running"
        assert (await client.shutdown(vm_id, "force"))["ended"]
        with pytest.raises(Refused) as caught:
            await client.pause(vm_id)
        assert caught.value.kind == "busy"
        await client.delete(vm_id)
        with pytest.raises(Refused) as caught:
            await client.vm(vm_id)
        assert (caught.value.status, caught.value.kind) == (404, "vm-not-found")


async def test_repeated(world: World) -> None:
    async with world.serve() as supervisor, AsyncClient(str(supervisor.http.base_url)) as client:
        first = await client.run({"computation": "e30="}, idempotency_key="k")
        assert (await client.run({"computation": "e30="}, idempotency_key="k"))["id"] == first["id"]


async def test_events_over_a_restart(world: World) -> None:
    """What comes while nobody is there is told afterwards, and nothing twice."""
    told: list[int] = []
    async with world.serve() as supervisor:
        port = str(supervisor.http.base_url.port)
        client = AsyncClient(str(supervisor.http.base_url))
        first = await supervisor.run()
        await supervisor.leave()
    seen = trio.Event()

    async def read() -> None:
        async with client, client.events(after=0) as events:
            async for event in events:
                told.append(event["sequence"])
                seen.set()
                if event["event"] == "deleted":
                    return

    with trio.fail_after(PATIENCE_S):
        async with (
            world.serve(MANAGER_HTTP_PORT=port) as supervisor,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(read)
            await seen.wait()
            await supervisor.http.delete(f"/vms/{first['id']}")
    assert told == sorted(set(told))


async def test_events_over_a_restart_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has been told nothing yet has a place to go on from, too."""
    monkeypatch.setattr("supervisor.client.aio._RETRY_S", 0.0)
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 2:
            raise httpx.ConnectError("nobody is there")
        text = ": events\n\nid: 7\n\n"
        if len(asked) == 1:
            text += "id: 8\nevent: adopted\n"  # the connection breaks here
        if len(asked) == 3:
            return httpx.Response(502, text="<html>no\n\nserver</html>")
        if len(asked) == 4:
            text += 'id: 8\nevent: adopted\ndata: {"sequence": 8, "event": "adopted"}\n\n'
        return httpx.Response(200, text=text)

    client = AsyncClient("http://127.0.0.1:9")
    await client.http.aclose()
    client.http = httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:9"
    )
    async with client, client.events() as events:
        assert (await anext(aiter(events)))["sequence"] == 8
    assert asked == [None, "7", "7", "7"]


async def test_stream_says_where_it_begins(world: World) -> None:
    async with world.serve() as supervisor:
        await supervisor.run()
        (*_, last) = (await supervisor.http.get("/events?limit=1000")).json()["events"]
        async with supervisor.http.stream("GET", "/events") as stream:
            lines = stream.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == [
                ": events",
                "",
                f"id: {last['sequence']}",
            ]


async def test_without_a_loop(world: World) -> None:
    async with world.serve() as supervisor:
        url = str(supervisor.http.base_url)

        def work() -> list[str]:
            with Client(url) as client:
                vm = client.start({"computation": "e30="})
                with client.events(vm["id"], after=0) as events:
                    kinds: list[str] = []
                    for event in events:
                        kinds.append(event["event"])
                        if event.get("state") == "answered":
                            break
                client.delete(vm["id"])
                return kinds

        assert "agent" in await in_thread(work)
