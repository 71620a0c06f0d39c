"""Readers of events who are slow, stay long, or outlive what they read of."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.config import OnStop
from supervisor.pb import vm_pb2
from supervisor.state.record import EventKind
from tests.support.event_reader import Reader, numbers, reading
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World


async def test_reader_over_http_that_does_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has been sent it can still read, without a gap, and then it is cut off."""
    world.hasten(reader_buffer=8)
    async with world.serve() as supervisor:
        told = supervisor.running.service.journal
        async with supervisor.http.stream("GET", "/events?after=0") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": events"
            # More than this reader's channel and all that is between here and there can hold.
            for _ in range(100):
                await told.note(EventKind.AGENT_LATE, None, why="x" * 200_000)
            reader, got = Reader(lines), []
            with suppress(StopAsyncIteration):
                while True:
                    got.append(await reader.next())
        assert numbers(got) == list(range(1, len(got) + 1))
        assert got[-1]["sequence"] < told.sequence
        async with reading(supervisor, after=got[-1]["sequence"]) as again:
            while got[-1]["sequence"] < told.sequence:
                got.append(await again.next())
        assert numbers(got) == list(range(1, told.sequence + 1))


async def test_silence_is_kept_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hasten(sse_keep_alive_s=0.01)
    async with world.serve() as supervisor, supervisor.http.stream("GET", "/events") as answer:
        lines = answer.aiter_lines()
        first = [await anext(lines) for _ in range(8)]
        assert first == [": events", "", "id: 0", "", ": keep-alive", "", ": keep-alive", ""]


async def test_reader_is_let_go_when_the_supervisor_stops(world: World) -> None:
    async with world.serve() as supervisor, reading(supervisor) as reader:
        await supervisor.run()
        stream = supervisor.vm_service.Watch(vm_pb2.WatchRequest(after=0), timeout=60)
        await in_thread(lambda: next(stream))
        supervisor.running.stop(OnStop.END)
        last = (await reader.until("state", state="shutoff"))[-1]
        assert last["reason"] == "guest-shutdown"
        with pytest.raises(StopAsyncIteration):
            await reader.next()
        with pytest.raises(grpc.RpcError) as caught:
            await in_thread(lambda: list(stream))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_deletion_is_the_last_of_a_vms_events(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        async with reading(supervisor, f"/vms/{vm_id}/events") as reader:
            await supervisor.http.delete(f"/vms/{vm_id}")
            assert (await reader.until("deleted"))[-1]["vm"] == vm_id
        assert (await supervisor.http.get(f"/vms/{vm_id}/events")).status_code == 404


async def test_watch_tells_kinds_and_data(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        stream = supervisor.vm_service.Watch(vm_pb2.WatchRequest(after=0), timeout=60)
        got: list[Any] = [await in_thread(lambda: next(stream))]
        while got[-1].state != vm_pb2.VM_STATE_SHUTOFF:
            got.append(await in_thread(lambda: next(stream)))
        stream.cancel()
        by_kind = {event.kind: event for event in got}
        assert by_kind.keys() >= {"state", "launched", "agent", "relay", "adopted", "ending"}
        assert dict(by_kind["relay"].data) == {"state": "answered"}
        assert by_kind["relay"].state == vm_pb2.VM_STATE_UNSPECIFIED
        assert list(by_kind["adopted"].data["running"]) == [vm_id]
        assert by_kind["adopted"].id == ""
        assert by_kind["launched"].data["pid"] == guest.pid
        assert not by_kind["state"].data


async def test_events_on_record_come_in_pages(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.run()
        for path in ("/events", f"/vms/{vm_id}/events"):
            got, page = [], f"{path}?limit=2"
            while page:
                answer = (await supervisor.http.get(page)).json()
                assert len(answer["events"]) == 2 or answer["next"] is None
                got += answer["events"]
                page = answer["next"]
            whole = (await supervisor.http.get(f"{path}?limit=1000")).json()
            assert whole == {"events": got, "next": None}
            assert {one["vm"] for one in got} == (
                {vm_id} if vm_id in path else set(vms(supervisor))
            )
        last = got[-1]["sequence"]
        assert (await supervisor.http.get(f"{path}?after={last - 1}&limit=9")).json() == {
            "events": got[-1:],
            "next": None,
        }


def vms(supervisor: Supervisor) -> list[str]:
    return [vm.id for vm in supervisor.running.service.vms]


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "9" * 99])
async def test_what_is_no_size_of_a_page(world: World, limit: str) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.get(f"/events?limit={limit}")
        assert (answer.status_code, answer.json()["member"]) == (400, "limit")


async def test_no_more_readers_than_are_allowed(world: World) -> None:
    world.hasten(readers=1)
    async with world.serve() as supervisor:
        async with reading(supervisor):
            refused = await supervisor.http.get("/events")
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            with pytest.raises(grpc.RpcError) as caught:
                await supervisor.call(
                    lambda request, timeout: next(
                        supervisor.vm_service.Watch(request, timeout=timeout)
                    ),
                    vm_pb2.WatchRequest(),
                )
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            # A page needs no place.
            assert (await supervisor.http.get("/events?limit=1")).status_code == 200
        while supervisor.running.service.journal.events.subscribers:
            await trio.lowlevel.checkpoint()
        async with reading(supervisor):
            pass


# --- readers who may read no more -------------------------------------------------------------


@pytest.fixture
def reader(world: World) -> dict[str, str]:
    """The headers of a reader of all events, whose token is not known before there is tmp/."""
    world.tmp.mkdir(mode=0o700, exist_ok=True)
    file = world.tmp / "tokens.json"
    _, secret = tokens.create(file, "reader", Role.READ, None, tokens.now())
    return {"Authorization": f"Bearer {secret}"}


def take_back(world: World) -> None:
    tokens.revoke(world.tmp / "tokens.json", "reader", tokens.now())


async def run_of_another(world: World, supervisor: Supervisor) -> str:
    file = world.tmp / "tokens.json"
    _, secret = tokens.create(file, "another", Role.RUN, None, tokens.now())
    headers = {"Authorization": f"Bearer {secret}"}
    answer = await supervisor.post(b"{}", **headers)
    assert answer.status_code == 200
    return str(answer.json()["id"])


@pytest.mark.parametrize("what", ["keep-alive", "event"])
async def test_stream_of_a_revoked_token_ends(
    world: World, reader: dict[str, str], what: str
) -> None:
    """At the next part of it: nothing that happens later is told."""
    world.hasten(sse_keep_alive_s=0.05 if what == "keep-alive" else 1000)
    async with (
        world.serve(MANAGER_AUTH="on") as supervisor,
        supervisor.http.stream("GET", "/events", headers=reader) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == ": events"
        take_back(world)
        if what == "event":
            await run_of_another(world, supervisor)
        with trio.fail_after(PATIENCE_S):
            assert not [line async for line in lines if line.startswith("data")]


@pytest.mark.parametrize("what", ["keep-alive", "event"])
async def test_watch_of_a_revoked_token_ends(
    world: World, reader: dict[str, str], what: str
) -> None:
    world.hasten(sse_keep_alive_s=0.05 if what == "keep-alive" else 1000)
    async with world.serve(MANAGER_AUTH="on") as supervisor:
        metadata = [("authorization", reader["Authorization"])]
        await run_of_another(world, supervisor)
        stream = supervisor.vm_service.Watch(
            vm_pb2.WatchRequest(), timeout=PATIENCE_S, metadata=metadata
        )
        await in_thread(partial(next, stream))  # the present state: it is followed
        take_back(world)
        later = await run_of_another(world, supervisor) if what == "event" else ""

        def all_told() -> None:
            assert later not in [event.id for event in stream]

        with pytest.raises(grpc.RpcError) as refused:
            await in_thread(all_told)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "revoked" in (refused.value.details() or "")
