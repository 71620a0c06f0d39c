"""Shares of callers: tokens, things at once, bytes of bodies; and a request's id."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from supervisor.api.budget import LARGEST, Budget
from supervisor.api.rates import AtOnce, Rates
from supervisor.api.trace import request_id
from supervisor.errors import Overloaded, TooOften


@attrs.define
class Time:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_tokens_come_back() -> None:
    time = Time()
    rates = Rates(2, 4, time)
    assert [rates.take("a") for _ in range(5)] == [True] * 4 + [False]
    assert rates.take("b")
    assert rates.wait_s("a") == 1
    time.now_s = 0.5
    assert [rates.take("a") for _ in range(2)] == [True, False]
    time.now_s = 1000
    assert [rates.take("a") for _ in range(5)] == [True] * 4 + [False]


def test_no_limit() -> None:
    rates = Rates(0, 0, Time())
    assert all(rates.take("a") for _ in range(1000))


def test_one_hosts_addresses_are_one_caller() -> None:
    rates = Rates(1, 1, Time())
    assert rates.take("2001:db8::1")
    assert not rates.take("2001:db8::2")
    assert rates.take("2001:db8:0:1::1")


def test_table_of_callers_is_bounded() -> None:
    """Those who have no place are one caller together, until others are forgotten."""
    time = Time()
    rates = Rates(1, 1, time)
    assert all(rates.take(f"{number}") for number in range(4096))
    assert rates.take("one more")
    assert not rates.take("yet another")
    assert len(rates._shares) == 4097
    time.now_s = 1
    assert rates.take("yet another")
    assert len(rates._shares) == 1


def test_so_many_at_once() -> None:
    limit = AtOnce(2, "things", "THE_SETTING")
    with limit.one_more("a"), limit.one_more("a"), limit.one_more("b"):
        with pytest.raises(TooOften, match="THE_SETTING"):
            limit.check("a")
        limit.check("b")
    with limit.one_more("a"):
        pass
    assert not limit._held


async def test_one_caller_has_half_of_the_budget() -> None:
    budget = Budget(4 * LARGEST, 1.0)
    async with budget.reserve("a", None), budget.reserve("a", None):
        async with budget.reserve("b", 1):
            assert budget.held_bytes < 3 * LARGEST
        assert budget.held_bytes == 2 * LARGEST
    assert budget.held_bytes == 0


async def test_body_without_room_waits(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(2 * LARGEST, 5.0)
    order = []

    async def second() -> None:
        async with budget.reserve("a", None):
            order.append("second")

    async with trio.open_nursery() as nursery, budget.reserve("a", None):
        nursery.start_soon(second)
        await trio.sleep(4.9)
        order.append("first")
    assert order == ["first", "second"]
    assert budget.held_bytes == 0


async def test_body_without_room_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(2 * LARGEST, 5.0)
    async with budget.reserve("a", None):
        with pytest.raises(Overloaded, match="MANAGER_BODY_BUDGET") as caught:
            async with budget.reserve("a", 10 * LARGEST):
                pass
        assert caught.value.retry_after_s
        with trio.move_on_after(1):
            async with budget.reserve("a", None):
                pass
    assert budget.held_bytes == 0
    assert not budget._held


@pytest.mark.parametrize(
    ("given", "parents", "id_"),
    [
        (["abc-1.2_3"], [], "abc-1.2_3"),
        (["a" * 64], ["00-" + "1" * 32 + "-" + "2" * 16 + "-01"], "a" * 64),
        ([], ["00-" + "1" * 32 + "-" + "2" * 16 + "-01"], "1" * 32),
        (["a b"], ["00-" + "1" * 32 + "-" + "2" * 16 + "-01"], "1" * 32),
    ],
)
def test_request_id_of_the_caller(given: list[str], parents: list[str], id_: str) -> None:
    assert request_id(given, parents) == id_


@pytest.mark.parametrize(
    ("given", "parents"),
    [
        ([], []),
        ([""], []),
        (["a" * 65], []),
        (["a\nb"], []),
        (["é"], []),
        (["a", "b"], []),
        ([], ["00-" + "0" * 32 + "-" + "2" * 16 + "-01"]),
        ([], ["00-" + "1" * 32 + "-" + "0" * 16 + "-01"]),
        ([], ["garbage"]),
    ],
)
def test_request_id_of_ours(given: list[str], parents: list[str]) -> None:
    one, other = request_id(given, parents), request_id(given, parents)
    assert one != other
    assert len(one) == 32
