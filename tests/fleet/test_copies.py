"""Copies of runs that nobody waits for, and what sees those runs through."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from supervisor.api.fleet.copies import Copies, Copy
from supervisor.api.fleet.runs import Answered, FleetRuns
from supervisor.caller import ANYBODY
from supervisor.errors import NotOwner, RefusedElsewhere
from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run, RunState
from supervisor.state.files import write_synced
from supervisor.waiting import Signal
from tests.support.memory_engine import Broker
from tests.support.simulated_fleet import SimulatedFleet
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from supervisor.fleet.entry import Claim
    from tests.support.simulated_fleet import SimulatedHost

COPY: Any = Copy(ANYBODY, {}, b"{}", "")
R = "00000000-0000-4000-8000-000000000000"
OWNED = Run(id=R, entry="a", needs=Needs()).claimed("a", 0).taken()


class Keeper:
    """A host that keeps copies, and the tasks that see runs through."""

    def __init__(self, host: Any, tmp: Path, nursery: trio.Nursery) -> None:
        self.host: SimulatedHost = host
        self.started = list[str]()
        self._running = 0
        self._changed = Signal()
        self._nursery = nursery
        service: Any = SimpleNamespace(
            config=SimpleNamespace(qemu=SimpleNamespace(tmp=tmp)),
            vms=SimpleNamespace(spawn=self._spawn),
        )
        self.runs = FleetRuns(host, service, host)

    def _spawn(self, task: Any, run_id: str, is_there: bool) -> None:
        self.started.append(run_id)
        self._running += 1
        self._nursery.start_soon(self._run, task, run_id, is_there)

    async def _run(self, task: Any, *args: Any) -> None:
        await task(*args)
        self._running -= 1
        self._changed.notify()

    async def until_over(self, patience_s: float = PATIENCE_S) -> None:
        with trio.fail_after(patience_s):
            await self._changed.until(lambda: not self._running)


async def _at_once(act: Callable[..., object], *args: object) -> object:
    await trio.lowlevel.checkpoint()
    return act(*args)


@pytest.fixture
async def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Keeper]:
    # The clock that jumps does not wait for threads.
    monkeypatch.setattr(trio.to_thread, "run_sync", _at_once)
    async with trio.open_nursery() as nursery:
        host = await SimulatedFleet(Broker(nursery)).add("a", room=1)
        await trio.sleep(1)
        await host.records.create(OWNED)
        yield Keeper(host, tmp_path, nursery)
        nursery.cancel_scope.cancel()


def kept(at: Path) -> list[str]:
    return [file.name for file in (at / "copies").iterdir()]


async def test_a_run_that_is_asked_for_again_is_seen_through_once(
    autojump_clock: trio.testing.MockClock, keeper: Keeper, tmp_path: Path
) -> None:
    """Else who asks a million times with its key has a million tasks."""
    records = keeper.host.records
    for _ in range(3):
        await keeper.runs.keep(R, COPY)
    assert keeper.started == kept(tmp_path) == [R]
    await records.change(R, lambda run: run.advanced("a", 1, RunState.FAILED, ""))
    await keeper.until_over()
    # What comes afterwards does not stay.
    await keeper.runs.keep(R, COPY)
    await keeper.until_over()
    assert not kept(tmp_path)
    assert records.known(R) is None


async def test_a_refusal_before_this_host_has_its_lease_does_not_end_an_accepted_run(
    autojump_clock: trio.testing.MockClock,
    keeper: Keeper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, refused = trio.Event(), list[str]()

    async def there(_: Copy, claim: Claim) -> Answered:
        if not refused:
            refused.append(claim.host)
            raise NotOwner("it is another host's")
        done.set()
        answer: Any = None
        return Answered(claim.host, answer)

    monkeypatch.setattr(keeper.runs, "_there", there)
    await Copies(tmp_path / "copies").keep(R, COPY)
    keeper.host.members.taken = 0
    await keeper.runs.take_up()
    with trio.fail_after(PATIENCE_S):
        await done.wait()


@pytest.mark.parametrize(
    ("refusals", "end"), [(3, RunState.OWNED), (10**9, RunState.FAILED)], ids=["some", "all"]
)
async def test_an_accepted_run_that_is_refused_is_offered_again_for_a_while(
    autojump_clock: trio.testing.MockClock,
    keeper: Keeper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: int,
    end: RunState,
) -> None:
    """Its owner's quota may be used up, or a host's disk full."""
    records, refused, begun = keeper.host.records, list[float](), trio.current_time()
    done = trio.Event()

    async def there(_: Copy, claim: Claim) -> Answered:
        if len(refused) < refusals:
            refused.append(trio.current_time() - begun)
            give_up = partial(Run.advanced, host="a", epoch=claim.epoch, state=RunState.GIVEN_UP)
            await records.change(R, partial(give_up, vm=""))
            raise RefusedElsewhere("no", word="launch-error")
        done.set()
        answer: Any = None
        return Answered(claim.host, answer)

    monkeypatch.setattr(keeper.runs, "_there", there)
    monkeypatch.setattr("supervisor.api.fleet.runs._REFUSED_S", while_s := 600.0)
    await Copies(tmp_path / "copies").keep(R, COPY)
    await keeper.runs.take_up()
    with trio.fail_after(2 * while_s):
        await (done.wait() if end is RunState.OWNED else keeper.until_over(2 * while_s))
    assert (await records.read(R)).state is end
    if end is RunState.FAILED:
        assert refused[-1] >= 0.9 * while_s
        assert not kept(tmp_path)


async def test_two_may_keep_a_copy_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def slowly(file: Path, content: bytes) -> None:
        write_synced(file, content)
        both.wait(PATIENCE_S)

    monkeypatch.setattr("supervisor.api.fleet.copies.write_synced", slowly)
    both_keep = Copies(tmp_path / "copies")
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(both_keep.keep, R, COPY)
    assert kept(tmp_path) == [R]
