"""One sender, many readers, none of whom can slow the sender."""

from __future__ import annotations

import pytest
import trio

from supervisor.state.broadcast import Broadcast


async def test_every_reader_gets_every_value() -> None:
    changes: Broadcast[int] = Broadcast(10)
    with changes.subscribe() as one, changes.subscribe() as two:
        for value in (1, 2, 3):
            changes.send(value)
        for reader in (one, two):
            assert [await reader.receive() for _ in range(3)] == [1, 2, 3]


async def test_reader_gets_nothing_from_before() -> None:
    changes: Broadcast[int] = Broadcast(10)
    changes.send(1)
    with changes.subscribe() as reader:
        changes.send(2)
        assert await reader.receive() == 2


async def test_slow_reader_is_cut_off_and_the_others_are_not() -> None:
    changes: Broadcast[int] = Broadcast(2)
    with changes.subscribe() as slow, changes.subscribe() as quick:
        got = []
        for value in range(5):
            changes.send(value)
            got.append(await quick.receive())
        assert got == [0, 1, 2, 3, 4]
        # What was in time is not lost; then the channel ends.
        assert [value async for value in slow] == [0, 1]


async def test_reader_that_left_is_forgotten() -> None:
    changes: Broadcast[int] = Broadcast(1)
    with changes.subscribe() as reader:
        pass
    changes.send(1)
    changes.send(2)
    with pytest.raises(trio.ClosedResourceError):
        await reader.receive()


async def test_nobody_reads() -> None:
    Broadcast[int](1).send(1)


async def test_what_a_reader_does_not_want_does_not_touch_it() -> None:
    changes: Broadcast[int] = Broadcast(2)
    with changes.subscribe(lambda value: value > 10) as reader:
        for value in (1, 2, 3, 4, 11):
            changes.send(value)
        assert changes.subscribers == 1
        assert reader.statistics().current_buffer_used == 1
        assert await reader.receive() == 11
