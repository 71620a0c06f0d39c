"""Waiting that ends otherwise than by its turn, and that no room is ever lost by it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor.config import LimitsConfig
from supervisor.errors import AtCapacity, Stopping
from supervisor.runs.admission import Admission, Resources
from tests.support.crowd import BIG, GIB, SMALL, crowd, make_admission

if TYPE_CHECKING:
    from collections.abc import Callable

# --- cancelled ------------------------------------------------------------------------------


async def test_cancelled_before_it_entered() -> None:
    some = make_admission()
    with trio.CancelScope() as scope:
        scope.cancel()
        await some.enter(SMALL)
    assert scope.cancelled_caught
    assert (some.taken, some.waiting) == (Resources(), 0)


async def test_cancelled_while_it_waits(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("abc")
    people.scopes["b"].cancel()
    await wait_all_tasks_blocked()
    assert people.admission.waiting == 1
    await people.leaves()
    assert people.order == "ac"
    assert people.admission.taken.vms == 1


async def test_cancelled_at_the_head_it_holds_nobody_up(nursery: trio.Nursery) -> None:
    people = crowd(nursery, memory_gib=5)
    await people.all_arrive("ab")
    await people.arrives("C", BIG)
    await people.all_arrive("de")
    people.scopes["C"].cancel()
    await wait_all_tasks_blocked()
    assert sorted(people.order) == list("abde")
    assert people.admission.taken.vms == 4


async def test_cancelled_and_then_admitted_before_it_knows(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("abc")
    people.scopes["b"].cancel()
    people.admission.leave(SMALL)
    assert people.admission.taken.vms == 1  # b's, who is not to have it
    await wait_all_tasks_blocked()
    assert people.order == "ac"
    assert people.admission.taken.vms == 1
    assert people.admission.waiting == 0


async def test_admitted_and_then_cancelled_before_it_knows(nursery: trio.Nursery) -> None:
    """Then it is in, as the caller sees, whose room it is to give back."""
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("abc")
    people.admission.leave(SMALL)
    people.scopes["b"].cancel()
    await wait_all_tasks_blocked()
    assert people.order == "ab"
    await people.leaves()
    assert people.order == "abc"


async def test_cancelled_at_the_moment_it_finds_room() -> None:
    class Cancelling(Admission):
        def take(self, need: Resources) -> None:
            super().take(need)
            scope.cancel()

    some = Cancelling(LimitsConfig(), Resources(0, 8 * GIB, 8))
    with trio.CancelScope() as scope:
        await some.enter(SMALL)
    assert scope.cancelled_caught
    assert some.taken == Resources()


# --- closed ---------------------------------------------------------------------------------


async def test_closed_to_all(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("abc")
    people.admission.close()
    await wait_all_tasks_blocked()
    assert people.admission.waiting == 0
    await people.arrives("d")
    assert {name: type(error) for name, error in people.failed.items()} == dict.fromkeys(
        "bcd", Stopping
    )
    # What runs still gives its room back.
    await people.leaves()
    assert people.admission.taken == Resources()
    people.admission.close()


async def test_closed_between_its_turn_and_its_knowing(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("ab")
    people.admission.leave(SMALL)
    people.admission.close()
    await wait_all_tasks_blocked()
    assert isinstance(people.failed["b"], Stopping)
    assert people.admission.taken == Resources()


@pytest.mark.parametrize("first", ["cancelled", "displaced", "admitted"])
async def test_cancelled_while_its_place_goes_to_another(nursery: trio.Nursery, first: str) -> None:
    people = crowd(nursery, max_vms=1, queue=2)
    await people.all_arrive("abc", owner="alice")
    steps: dict[str, Callable[[], object]] = {
        "cancelled": people.scopes["c"].cancel,
        "displaced": lambda: nursery.start_soon(people.arrives, "x", SMALL, "bob"),
        "admitted": lambda: people.admission.leave(SMALL),
    }
    steps.pop(first)()
    for step in steps.values():
        step()
    await wait_all_tasks_blocked()
    assert "c" not in people.order
    while people.admission.taken.vms:
        await people.leaves()
    assert people.order == "abx"
    assert (people.admission.taken, people.admission.waiting) == (Resources(), 0)


async def test_cancelled_and_closed_at_once(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("ab")
    people.scopes["b"].cancel()
    people.admission.close()
    await wait_all_tasks_blocked()
    assert people.order == "a"
    assert people.admission.taken.vms == 1


# --- all of it together ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_whatever_happens(seed: int, autojump_clock: MockClock) -> None:
    """Many who come, wait, are cancelled, time out and leave, some at the same moment."""
    chance = random.Random(seed)
    some = make_admission(max_vms=4, memory_gib=8, queue=6, queue_timeout_s=3.0)
    within = Resources()

    async def visit(owner: str) -> None:
        nonlocal within
        need = Resources(1, chance.randint(1, 5) * GIB, 1)
        await trio.sleep(chance.randint(0, 30))
        with trio.move_on_after(chance.randint(0, 9)):
            try:
                await some.enter(need, owner)
            except AtCapacity:
                return
            within = within + need
            assert within.over(some.budget) is None
            try:
                await trio.sleep(chance.randint(0, 6))
            finally:
                within = within - need
                some.leave(need)

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(visit, chance.choice(["alice", "bob", "carol"]))
    assert (some.taken, some.waiting) == (Resources(), 0)
