"""Ways to wait: for a change, until something else happens first, between attempts."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Signal:
    """Wakes every task that waits for a change. The task must find out what has changed."""

    def __init__(self) -> None:
        self._next = trio.Event()

    def notify(self) -> None:
        """Wake all that wait now."""
        self._next.set()
        self._next = trio.Event()

    def next(self) -> trio.Event:
        """The event that the next `notify` sets. Get it before you look, and you miss no change."""
        return self._next

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds. It is evaluated now and after each `notify`."""
        while not condition():
            await self._next.wait()


@attrs.frozen
class Backoff:
    """Seconds between attempts: the first wait, doubled after each failure, up to the longest."""

    first_s: float
    longest_s: float

    def wait_s(self, failures: int) -> float:
        """The wait in seconds after this many failures in a row.

        :param failures: at least 1
        """
        return float(min(self.first_s * 2.0 ** min(failures - 1, 64), self.longest_s))


class Budget:
    """So many at once, and after that one in each interval. On trio's clock.

    :param most: how many at once
    """

    def __init__(self, most: int, interval_s: float) -> None:
        self._most = most
        self._interval_s = interval_s
        #: When all of it is there again.
        self._full_at = -math.inf

    def spend(self) -> bool:
        """Whether there was one left."""
        now = trio.current_time()
        full_at = max(self._full_at, now) + self._interval_s
        if full_at > now + self._most * self._interval_s:
            return False
        self._full_at = full_at
        return True

    async def wait(self) -> None:
        """Spend one, and return when it was there."""
        self._full_at = max(self._full_at, trio.current_time()) + self._interval_s
        await trio.sleep_until(self._full_at - self._most * self._interval_s)


async def sleep_in_step(pause_s: float) -> None:
    """Sleep until a full second after the pause, if it is a second or more.

    Then tasks that wake again and again, one for each VM, share their wake-ups.
    """
    wake_at = trio.current_time() + pause_s
    await trio.sleep_until(math.ceil(wake_at) if pause_s >= 1 else wake_at)


@asynccontextmanager
async def move_on_when(
    condition: Callable[[], Awaitable[object]],
) -> AsyncIterator[trio.CancelScope]:
    """Cancel the body as soon as ``condition()`` returns.

    Yields a scope. After the body, its ``cancelled_caught`` says whether the body was cancelled. An
    exception of the body is raised unwrapped, so that callers can catch it by its type. trio_util's
    function of this name wraps the exception into a group, as trio's nurseries do.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when, condition, scope)
            try:
                yield scope
            except Exception as error:
                raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def _cancel_when(condition: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await condition()
    scope.cancel()
