"""Server-sent events: each once and in order, whatever happens to reader and supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from supervisor.caller import ANYBODY
from supervisor.pb import vm_pb2
from supervisor.state.record import EventKind
from tests.support.event_reader import numbers, reading
from tests.support.world import in_thread

if TYPE_CHECKING:
    from tests.support.world import World


async def test_life_of_a_vm(world: World) -> None:
    async with world.serve() as supervisor, reading(supervisor) as reader:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        await supervisor.http.delete(f"/vms/{vm_id}")
        events = await reader.until("deleted")
        assert {event["vm"] for event in events} == {vm_id}
        states = [event["state"] for event in events if event["event"] == "state"]
        assert states == ["prelaunch", "running", "shutdown", "shutoff"]
        relays = [event["state"] for event in events if event["event"] == "relay"]
        assert relays == ["sent", "answered"]
        first = events[0]["sequence"]
        assert numbers(events) == list(range(first, first + len(events)))


async def test_vm_that_comes_while_a_reader_does(world: World) -> None:
    """A reader asks first, and its answer begins a little later."""
    async with world.serve() as supervisor:
        following = supervisor.running.service.follow(ANYBODY, 0)
        vm_id = (await supervisor.run())["id"]
        async with following as (old, _):
            told = [event async for event in old]
    assert next(event.kind for event in told if event.vm_id == vm_id) is EventKind.STATE
    assert [event.sequence for event in told] == list(range(1, len(told) + 1))


async def test_of_one_vm_alone(world: World) -> None:
    async with world.serve() as supervisor:
        one, other = (await supervisor.run())["id"], (await supervisor.run())["id"]
        async with reading(supervisor, f"/vms/{one}/events", after=0) as reader:
            await supervisor.http.post(f"/vms/{other}/shutdown")
            await supervisor.http.post(f"/vms/{one}/shutdown")
            events = await reader.until("state", state="shutoff")
            assert {event["vm"] for event in events} == {one}
            assert events[0]["state"] == "prelaunch"


async def test_reader_that_comes_back_misses_nothing_and_hears_nothing_twice(
    world: World,
) -> None:
    async with world.serve() as supervisor:
        async with reading(supervisor) as reader:
            await supervisor.run()
            guest = await world.guest()
            seen = await reader.until("relay", state="answered")
        await supervisor.http.post(f"/vms/{guest.vm_id}/pause")
        async with reading(supervisor, after=seen[-1]["sequence"]) as reader:
            await supervisor.http.post(f"/vms/{guest.vm_id}/resume")
            seen += await reader.until("state", state="running")
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        await supervisor.http.post(f"/vms/{guest.vm_id}/shutdown")
        async with reading(supervisor, after=seen[-1]["sequence"]) as reader:
            seen += await reader.until("state", state="shutoff")
        async with reading(supervisor, "/events?after=0") as reader:
            assert await reader.until("state", state="shutoff") == seen
    assert numbers(seen) == sorted(set(numbers(seen)))


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 30])
async def test_what_is_no_number_of_an_event(world: World, given: str) -> None:
    async with world.serve() as supervisor:
        for answer in (
            await supervisor.http.get("/events", headers={"Last-Event-ID": given}),
            await supervisor.http.get("/events", params={"after": given}),
        ):
            assert answer.status_code == 400
            assert answer.headers["Content-Type"] == "application/problem+json"


async def test_events_of_no_vm(world: World) -> None:
    async with world.serve() as supervisor:
        assert (await supervisor.http.get("/vms/no-such/events")).status_code == 404


async def test_slow_reader_is_cut_off_and_can_go_on(world: World) -> None:
    async with world.serve() as supervisor:
        told = supervisor.running.service.journal
        vm_id = (await supervisor.run())["id"]
        async with told.follow(None, list) as (_, news):
            for _ in range(world.timing.reader_buffer + 1):
                await told.note(EventKind.MONITOR, None, monitor="ok")
            got = [event.sequence async for event in news]
        assert len(got) == world.timing.reader_buffer
        async with reading(supervisor, after=got[-1]) as reader:
            assert (await reader.next())["sequence"] == got[-1] + 1
        assert supervisor.vm(vm_id).status.state == "running"


async def test_watch_goes_on_after_a_number(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        request = vm_pb2.WatchRequest(after=0)
        stream = supervisor.vm_service.Watch(request, timeout=60)
        events = [await in_thread(lambda: next(stream))]
        while events[-1].state != vm_pb2.VM_STATE_SHUTOFF:
            events.append(await in_thread(lambda: next(stream)))
        stream.cancel()
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_numbers_go_on_after_all_vms_are_deleted(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        async with reading(supervisor) as reader:
            await supervisor.http.delete(f"/vms/{vm_id}")
            last = (await reader.until("deleted"))[-1]["sequence"]
    async with world.serve() as supervisor, reading(supervisor) as reader:
        await supervisor.run()
        assert (await reader.next())["sequence"] > last
