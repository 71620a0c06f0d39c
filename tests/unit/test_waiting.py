"""How tasks wait: until one thing or another, for a change, longer and longer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from supervisor.waiting import Backoff, Budget, Signal, move_on_when


async def never() -> None:
    await trio.sleep_forever()


async def at_once() -> None:
    await trio.lowlevel.checkpoint()


async def test_body_comes_to_its_end(autojump_clock: trio.abc.Clock) -> None:
    done = False
    async with move_on_when(never) as scope:
        await trio.sleep(5)
        done = True
    assert done
    assert not scope.cancelled_caught


async def test_error_is_not_wrapped() -> None:
    with pytest.raises(ValueError, match="as it is"):
        async with move_on_when(never):
            raise ValueError("as it is")


async def test_body_is_cancelled_when_the_condition_is_there() -> None:
    cancelled = False
    async with move_on_when(at_once) as scope:
        try:
            await never()
        finally:
            cancelled = True
    assert cancelled
    assert scope.cancelled_caught


async def test_condition_is_cancelled_with_the_body() -> None:
    cancelled = trio.Event()

    async def condition() -> None:
        try:
            await never()
        finally:
            cancelled.set()

    async with move_on_when(condition):
        await wait_all_tasks_blocked()
    assert cancelled.is_set()


async def test_cancelled_from_outside() -> None:
    with trio.CancelScope() as outer:
        outer.cancel()
        async with move_on_when(never) as inner:
            await never()
        raise AssertionError("it came back")
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


async def test_error_while_the_body_is_cancelled_is_told() -> None:
    async def work() -> None:
        async with move_on_when(at_once):
            try:
                await never()
            finally:
                raise ValueError("in the clearing up")

    with pytest.raises(ValueError, match="in the clearing up"):
        await work()


async def test_return_from_the_body() -> None:
    async def work(value: int) -> int:
        async with move_on_when(never):
            if value == 3:
                return value
        return 4

    assert await work(3) == 3


async def test_signal_wakes_all_that_wait() -> None:
    signal, value, seen = Signal(), 0, []

    async def wait(wanted: int) -> None:
        await signal.until(lambda: value >= wanted)
        seen.append(wanted)

    async with trio.open_nursery() as nursery:
        for wanted in (0, 1, 2):
            nursery.start_soon(wait, wanted)
        await wait_all_tasks_blocked()
        assert seen == [0]
        value = 2
        signal.notify()
    assert sorted(seen) == [0, 1, 2]


async def test_change_while_a_task_is_busy_is_not_missed() -> None:
    signal = Signal()
    change = signal.next()
    signal.notify()
    await change.wait()
    assert not signal.next().is_set()


def test_backoff_doubles_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.wait_s(failures) for failures in (1, 2, 3, 4, 5)] == [0.5, 1, 2, 3, 3]
    assert backoff.wait_s(10**9) == 3


async def test_budget_that_is_waited_for(autojump_clock: trio.abc.Clock) -> None:
    budget, began, waited = Budget(3, 10.0), trio.current_time(), []
    for _ in range(5):
        await budget.wait()
        waited.append(trio.current_time() - began)
    assert waited == [0, 0, 0, 10, 20]
    await trio.sleep(1000)
    assert [budget.spend() for _ in range(4)] == [True] * 3 + [False]


async def test_budget_comes_back_one_at_a_time(autojump_clock: trio.abc.Clock) -> None:
    budget = Budget(3, 10.0)
    assert [budget.spend() for _ in range(5)] == [True] * 3 + [False] * 2
    await trio.sleep(10)
    assert [budget.spend() for _ in range(2)] == [True, False]
    await trio.sleep(1000)
    assert [budget.spend() for _ in range(4)] == [True] * 3 + [False]
