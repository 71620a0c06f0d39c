"""asyncio on trio: what the libraries that need asyncio use of it, on every Python."""

from __future__ import annotations

import asyncio

import pytest
import trio

from supervisor.bridge import aio_as_trio, open_loop, trio_as_aio


async def test_a_task_knows_itself_and_its_loop_across_a_step_into_trio() -> None:
    async def look() -> tuple[object, object]:  # asyncio-flavoured
        return asyncio.current_task(), asyncio.get_running_loop()

    async def work() -> None:  # asyncio-flavoured
        before = await look()
        await trio_as_aio(trio.lowlevel.checkpoint)()
        assert await look() == before
        assert before[1] is loop

    async with open_loop() as loop:
        await aio_as_trio(work)()


async def test_a_timeout_ends_what_takes_too_long() -> None:
    async def work() -> None:  # asyncio-flavoured
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async with open_loop():
        with pytest.raises(TimeoutError):
            await aio_as_trio(work)()


async def test_a_cancelled_caller_cancels_the_task() -> None:
    began, ended = trio.Event(), trio.Event()

    async def work() -> None:  # asyncio-flavoured
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(aio_as_trio(work))
        await began.wait()
        nursery.cancel_scope.cancel()
    assert ended.is_set()


async def test_tasks_run_beside_each_other() -> None:
    async def work() -> list[int]:  # asyncio-flavoured
        turn = asyncio.Event()

        async def first() -> int:
            await turn.wait()
            return 1

        async def second() -> int:
            turn.set()
            return 2

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(first()), group.create_task(second())]
        return [task.result() for task in tasks]

    async with open_loop():
        assert await aio_as_trio(work)() == [1, 2]
