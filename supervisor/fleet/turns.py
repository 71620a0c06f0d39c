"""Whose runs a host has in the queue: few of each owner, so that the rest of them wait behind."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

#: One owner's thousand does not come before another's first.
_AT_ONCE = 4


class Turns:
    """By owner and kind: who waits for a host that is rare holds none of its other runs up.

    :param later: has something done in a task
    """

    def __init__(self, later: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._later = later
        self._turns: dict[tuple[str, str], trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def one(
        self, whose: tuple[str, str], is_left: Callable[[], bool], left_s: float
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it within the body.

        :param is_left: whether its message is in the queue after the body, where each host that has
            room looks at it: then the turn is over later
        :param left_s: so much later
        """
        turns = self._turns.setdefault(whose, trio.CapacityLimiter(_AT_ONCE))
        turn = object()
        try:
            await turns.acquire_on_behalf_of(turn)
            yield
        finally:
            has_had_it = turn in turns.statistics().borrowers
            over = partial(self._over, whose, turns, turn)
            if has_had_it and is_left():
                self._later(partial(_after, left_s, over))
            else:
                over()

    def _over(self, whose: tuple[str, str], turns: trio.CapacityLimiter, turn: object) -> None:
        if turn in turns.statistics().borrowers:
            turns.release_on_behalf_of(turn)
        if not turns.borrowed_tokens and not turns.statistics().tasks_waiting:
            self._turns.pop(whose, None)


async def _after(pause_s: float, act: Callable[[], None]) -> None:
    await trio.sleep(pause_s)
    act()
