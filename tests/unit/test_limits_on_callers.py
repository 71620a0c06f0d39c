"""Shares of callers: tokens, things at once, bytes of bodies; and a request's id."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import attrs
import pytest
import trio
import trio.testing

from supervisor.api.budget import LARGEST, Budget
from supervisor.api.callers import serving, who
from supervisor.api.rates import AtOnce, Rates, Who, network_of
from supervisor.api.trace import Trace, request_id, tracing
from supervisor.caller import ANYBODY, Caller, KnownBy, Role
from supervisor.errors import Overloaded, TooOften, Unauthenticated
from tests.support.tenants import answer

A, B = Who("a", known=True), Who("b", known=True)


@attrs.define
class Time:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_tokens_come_back() -> None:
    time = Time()
    rates = Rates(2, 4, time)
    assert [rates.take(A) for _ in range(5)] == [True] * 4 + [False]
    assert rates.take(B)
    assert rates.wait_s(A) == 1
    time.now_s = 0.5
    assert [rates.take(A) for _ in range(2)] == [True, False]
    time.now_s = 1000
    assert [rates.take(A) for _ in range(5)] == [True] * 4 + [False]


def test_no_limit() -> None:
    rates = Rates(0, 0, Time())
    assert all(rates.take(A) for _ in range(1000))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("127.0.0.1", "127.9.8.7", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "128.0.0.1", False),
        ("192.0.2.1", "192.0.2.2", False),
        # As a socket for both families has them.
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:127.0.0.1", "127.0.0.2", True),
        ("unix", "127.0.0.1", False),
    ],
)
def test_addresses_of_one_host(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) == same


def test_caller_that_is_called_like_an_address() -> None:
    rates, limit = Rates(1, 1, Time()), AtOnce(1, "things", "THE_SETTING")
    caller, address = Who("192.0.2.1", known=True), Who.at("192.0.2.1")
    assert rates.take(caller)
    assert rates.take(address)
    with limit.one_more(caller), limit.one_more(address):
        pass


def test_table_of_callers_is_bounded() -> None:
    """Those who have no place are one caller together, until others are forgotten."""
    time = Time()
    rates = Rates(1, 1, time)
    assert all(rates.take(Who.at(f"{number}")) for number in range(4096))
    assert rates.take(Who.at("one more"))
    assert not rates.take(Who.at("yet another"))
    assert len(rates._addresses) == 4097
    time.now_s = 1
    assert rates.take(Who.at("yet another"))
    assert len(rates._addresses) == 1


def test_strangers_from_many_addresses_take_nothing_of_callers() -> None:
    rates = Rates(1, 1, Time())
    for number in range(5000):
        rates.take(Who.at(f"{number}"))
    assert rates.take(A)
    assert rates.take(B)


def test_whose_share_a_request_takes() -> None:
    caller = Caller("127.0.0.1", Role.RUN, KnownBy.TOKEN)
    with tracing(Trace("1", "http", "127.0.0.2")):
        with serving(lambda: caller):
            assert who() == Who("127.0.0.1", known=True)
        for nobody in (ANYBODY, Unauthenticated("nobody")):
            with serving(partial(answer, nobody)):
                assert who() == Who.at("127.0.0.1")


def test_so_many_at_once() -> None:
    limit = AtOnce(2, "things", "THE_SETTING")
    with limit.one_more(A), limit.one_more(A), limit.one_more(B):
        with pytest.raises(TooOften, match="THE_SETTING"):
            limit.check(A)
        limit.check(B)
    with limit.one_more(A):
        pass
    assert not limit._held


async def test_one_caller_has_half_of_the_budget() -> None:
    budget = Budget(4 * LARGEST, 1.0)
    async with budget.reserve(A, None), budget.reserve(A, None):
        async with budget.reserve(B, 1):
            assert budget.held_bytes < 3 * LARGEST
        assert budget.held_bytes == 2 * LARGEST
    assert budget.held_bytes == 0


async def test_what_is_read_takes_what_stays_of_it() -> None:
    budget = Budget(4 * LARGEST, 1.0)
    async with AsyncExitStack() as stack:
        for _ in range(20):  # of one caller, who has half of it
            keep = await stack.enter_async_context(budget.reserve(A, None))
            keep(1000)
        assert 20_000 <= budget.held_bytes < LARGEST
        announced = await stack.enter_async_context(budget.reserve(A, 10))
        held = budget.held_bytes
        announced(2 * LARGEST)  # it never takes more than was reserved
        assert budget.held_bytes == held
    assert budget.held_bytes == 0
    assert not budget._held


async def test_body_without_room_waits(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(2 * LARGEST, 5.0)
    order = []

    async def second() -> None:
        async with budget.reserve(A, None):
            order.append("second")

    async with trio.open_nursery() as nursery, budget.reserve(A, None):
        nursery.start_soon(second)
        await trio.sleep(4.9)
        order.append("first")
    assert order == ["first", "second"]
    assert budget.held_bytes == 0


async def test_body_without_room_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(2 * LARGEST, 5.0)
    async with budget.reserve(A, None):
        with pytest.raises(Overloaded, match="MANAGER_BODY_BUDGET") as caught:
            async with budget.reserve(A, 10 * LARGEST):
                pass
        assert caught.value.retry_after_s
        with trio.move_on_after(1):
            async with budget.reserve(A, None):
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
