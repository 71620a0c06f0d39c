"""Copies for the pool: they rehearse before there is a computation, and keep their line for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.line import MOST_BYTES, NAME
from supervisor.state.record import Purpose
from supervisor.state.status import VmState
from supervisor.state.store import Store
from supervisor.state.vm_dir import VmDir
from tests.support.clones import (
    clonable,
    declare,
    events,
    guest_of,
    is_clone,
    pool,
    post,
    ready,
    run,
    show,
    timing,
    until,
)

if TYPE_CHECKING:
    from supervisor.state.record import Event, Record
    from tests.support.world import World


POOL_OF_ONE = {"MANAGER_POOL_SIZE": "1", "MANAGER_POOL_INTERVAL": "1ms"}


@pytest.fixture
def world(world: World) -> World:
    clonable(world)
    declare(world.image, renews_itself=True)
    world.scenario(renews_itself=True)
    return world


async def test_vm_of_the_pool_is_renewed_before_anybody_wants_it(world: World) -> None:
    """Nobody has a computation for it yet, so it rehearses, and its line is kept for one."""
    world.settings |= POOL_OF_ONE
    async with world.serve() as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        assert len(events(world, waiting, "renewed")) == 1
        guest = await guest_of(world, waiting)
        assert not (await guest.until("rehearsal"))["open_to_all"]
        answer = await post(supervisor.http, b"mine")
        assert list(timing(answer)) == ["pool", "relay", "total"]
        assert answer.json()["id"] == waiting
        assert world.received(answer.json()["computation"]) == b"mine"
        assert (await guest.until("line"))["open_to_all"]
        await guest.until("Run")
        counted = [guest.count(what) for what in ("renewed", "rehearsal", "line", "Renew")]
        assert counted == [1, 1, 1, 0]
        assert len(events(world, waiting, "renewed")) == 1


async def test_long_computation_does_not_go_to_the_pool_over_the_line(world: World) -> None:
    world.settings |= POOL_OF_ONE
    async with world.serve() as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        computation = bytes(MOST_BYTES + 1)
        answer = await post(supervisor.http, computation)
        assert world.received(answer.json()["computation"]) == computation
        guest = await guest_of(world, waiting)
        await guest.until("Run")
        assert (guest.count("line"), guest.count("Renew")) == (0, 0)


async def test_line_that_the_guest_has_closed_is_not_used(world: World) -> None:
    """Its agent was started again: what is said there would be heard by nobody."""
    world.settings |= POOL_OF_ONE
    async with world.serve() as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        guest = await guest_of(world, waiting)
        await guest.emit("VSERPORT_CHANGE", id=f"port-{NAME}", open=False)
        await guest.emit("VSERPORT_CHANGE", id=f"port-{NAME}", open=True)
        await guest.emit("WATCHDOG", action="none")
        told = partial(events, world, waiting, "watchdog")
        await until(supervisor.http, f"/vms/{waiting}", lambda _: bool(told()))
        answer = await post(supervisor.http, b"mine")
        assert answer.json()["id"] == waiting
        assert world.received(answer.json()["computation"]) == b"mine"
        await guest.until("Run")
        assert guest.count("line") == 0


async def test_pool_of_an_earlier_supervisor_is_called_over_tcp(world: World) -> None:
    world.settings |= POOL_OF_ONE
    async with world.serve() as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        guest = await guest_of(world, waiting)
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        await pool(supervisor.http, 1)
        answer = await post(supervisor.http, b"mine")
        assert answer.json()["id"] == waiting
        assert world.received(answer.json()["computation"]) == b"mine"
        await guest.until("Run")
        assert (guest.count("line"), guest.count("Renew")) == (0, 0)


async def test_copy_that_does_not_rehearse_makes_room_for_a_cold_guest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the pool it has not crashed meanwhile, else it would be replaced: again and again."""
    on_record, plain = set(), Store.write

    def write(store: Store, record: Record, news: list[Event]) -> None:
        if record.purpose is Purpose.POOL:
            on_record.add(record.status.state)
        plain(store, record, news)

    monkeypatch.setattr(Store, "write", write)
    async with world.serve() as supervisor:
        await ready(supervisor.http)
    world.scenario(renews_itself=True, rehearses=False)
    async with world.serve(**POOL_OF_ONE) as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        assert not is_clone(await show(supervisor.http, waiting))
        (told,) = events(world, waiting, "fallback")
        assert "this guest waits for its time" in told["why"]
        states = [one["state"] for one in events(world, waiting, "state")]
        assert states == ["prelaunch", "running", "crashed", "prelaunch", "running"]
        assert on_record == {VmState.PRELAUNCH, VmState.RUNNING}
        answer = await post(supervisor.http, b"mine")
        assert answer.json()["id"] == waiting
        assert world.received(answer.json()["computation"]) == b"mine"


async def test_run_whose_computation_cannot_be_written_does_not_get_the_vm(world: World) -> None:
    world.settings |= POOL_OF_ONE
    async with world.serve() as supervisor:
        (waiting,) = await pool(supervisor.http, 1)
        VmDir(world.tmp / waiting).computation.mkdir()
        answer = await post(supervisor.http)
        assert answer.status_code == 500
        assert "cannot be put on record" in answer.json()["detail"], answer.text
        await supervisor.vm(waiting).wait_ended()
        assert events(world, waiting, "taken") == []
        assert (await run(supervisor.http))["id"] != waiting
