"""Readers of a console: what they are told, and who is too slow."""

from __future__ import annotations

import trio

from supervisor.vm.console_readers import BEHIND, Console, Reader


async def all_of(reader: Reader, size: int) -> bytes:
    """In pieces that a message may have."""
    found = b""
    while len(found) < size:
        piece = await reader.take()
        assert 0 < len(piece) <= 1 << 16
        found += piece
    return found


async def test_pieces_of_any_size() -> None:
    """How many there are makes nobody too slow."""
    console = Console()
    with console.reading("alice", b"before\n") as reader:
        assert await reader.take() == b"before\n"
        for _ in range(10_000):
            console.give(b"x")
        assert await all_of(reader, 10_000) == b"x" * 10_000
        console.give(b"y" * BEHIND)
        assert await all_of(reader, BEHIND) == b"y" * BEHIND
        assert not reader.lagged


async def test_one_who_is_too_slow_is_cut_off(autojump_clock: trio.abc.Clock) -> None:
    console = Console()
    with console.reading("slow", b"") as slow, console.reading("fast", b"") as fast:
        console.give(b"x" * BEHIND)
        await all_of(fast, BEHIND)
        console.give(b"y")
        console.give(b"z" * BEHIND)  # nothing of it is kept for him
        assert (slow.lagged, fast.lagged) == (True, True)
        assert await slow.take() == b""


async def test_the_end(autojump_clock: trio.abc.Clock) -> None:
    console = Console()
    with console.reading("alice", b"") as reader:
        console.give(b"last words")
        console.end()
        console.give(b"after")
        assert await reader.take() == b"last words"
        assert await reader.take() == b""
        assert not reader.lagged
        with trio.move_on_after(1) as patience:
            await reader.written.next().wait()
        assert patience.cancelled_caught  # nobody writes
