"""One thing, unless another happens first."""

from __future__ import annotations

import pytest
import trio

from supervisor.waiting import CutShort, unless


async def never() -> None:
    await trio.sleep_forever()


async def at_once() -> None:
    await trio.lowlevel.checkpoint()


async def test_result(autojump_clock: trio.abc.Clock) -> None:
    async def work(value: int) -> int:
        await trio.sleep(5)
        return value

    assert await unless(never, work, 3) == 3


@pytest.mark.parametrize("value", [None, 0, False, ""])
async def test_falsy_results_are_results(value: object) -> None:
    async def work() -> object:
        await trio.lowlevel.checkpoint()
        return value

    assert await unless(never, work) == value


async def test_error_is_not_wrapped() -> None:
    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await unless(never, work)


async def test_cut_short_and_cancelled() -> None:
    cancelled = trio.Event()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    with pytest.raises(CutShort):
        await unless(at_once, work)
    assert cancelled.is_set()


async def test_what_is_watched_ends_with_the_work() -> None:
    cancelled = trio.Event()

    async def watched() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    await unless(watched, at_once)
    assert cancelled.is_set()


async def test_cancelled_from_outside() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await unless(never, never)
        raise AssertionError("it came back")
    assert scope.cancelled_caught


async def test_error_while_being_cut_short_is_the_one_that_is_told() -> None:
    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clearing up")

    with pytest.raises(ValueError, match="in the clearing up"):
        await unless(at_once, work)
