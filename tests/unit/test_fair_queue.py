"""Who is next: owners take turns, and each owner's own keep their order."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from supervisor.runs.fair_queue import FairQueue


def queue(*waiting: str) -> FairQueue[str]:
    """Each word is one that waits; its first letter is its owner."""
    made: FairQueue[str] = FairQueue()
    for one in waiting:
        made.append(one[0], one)
    return made


def drained(made: FairQueue[str]) -> list[str]:
    found = []
    while made:
        assert made.head == next(iter(made))
        found.append(made.pop())
    return found


def test_one_owners_keep_their_order() -> None:
    assert drained(queue("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_another_owner_waits_behind_one_of_a_hundred() -> None:
    hundred = [f"a{number}" for number in range(100)]
    assert drained(queue(*hundred, "b1"))[:3] == ["a0", "b1", "a1"]


def test_owners_take_turns() -> None:
    made = queue("a1", "a2", "a3", "b1", "b2", "c1")
    assert drained(made) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_comes_back_has_the_last_turn() -> None:
    made = queue("a1", "a2", "b1")
    assert made.pop() == "a1"
    assert made.pop() == "b1"
    made.append("b", "b2")
    assert drained(made) == ["a2", "b2"]


def test_who_leaves_changes_nobodys_turn() -> None:
    made = queue("a1", "a2", "b1", "c1")
    assert made.remove("a", "a1")
    assert made.remove("b", "b1")
    assert not made.remove("b", "b1")
    assert not made.remove("d", "d1")
    assert drained(made) == ["a2", "c1"]


@pytest.mark.parametrize(
    ("waiting", "owner", "crowded"),
    [
        ([], "a", False),
        (["a1", "a2", "a3"], "a", False),
        (["a1"], "b", False),
        (["a1", "a2"], "b", True),
        (["a1", "a2", "b1"], "b", False),
        (["a1", "a2", "a3", "b1"], "b", True),
        (["a1", "b1", "c1"], "d", False),
    ],
)
def test_who_may_have_the_place_of_another(waiting: list[str], owner: str, crowded: bool) -> None:
    assert queue(*waiting).is_crowded_by_another(owner) is crowded


def test_the_newest_of_who_has_the_most_loses_its_place() -> None:
    made = queue("a1", "b1", "b2", "b3", "c1", "c2")
    assert made.drop_from_most() == "b3"
    assert drained(made) == ["a1", "b1", "c1", "b2", "c2"]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_behind_two_of_another_who_came_later(seed: int) -> None:
    """However they come and go: between two turns of one owner every other has had a turn."""
    chance = random.Random(seed)
    made: FairQueue[str] = FairQueue()
    served_since: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(500):
        owner = chance.choice("abcd")
        if chance.random() < 0.55:
            if not any(one[0] == owner for one in made):
                served_since[owner] = Counter()
            made.append(owner, f"{owner}{number}")
        elif made:
            served = made.pop()[0]
            for waiting in {one[0] for one in made} - {served}:
                served_since[waiting][served] += 1
                assert served_since[waiting][served] <= 1, waiting
            served_since[served] = Counter()
    made.clear()
    assert (len(made), list(made)) == (0, [])
