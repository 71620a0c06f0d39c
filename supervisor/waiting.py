"""How tasks wait: for a change, for one thing unless another comes first, for the next attempt."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Signal:
    """Wakes every task that waits for a change. What has changed the task sees for itself."""

    def __init__(self) -> None:
        self._next = trio.Event()

    def notify(self) -> None:
        """Wake all that wait now."""
        self._next.set()
        self._next = trio.Event()

    def next(self) -> trio.Event:
        """An event that the next `notify` sets: taken before looking, it misses no change."""
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
        """The wait after so many failures in a row, which is at least one."""
        return float(min(self.first_s * 2.0 ** min(failures - 1, 64), self.longest_s))


@asynccontextmanager
async def move_on_when(
    condition: Callable[[], Awaitable[object]],
) -> AsyncIterator[trio.CancelScope]:
    """Cancel the body as soon as ``condition()`` returns.

    ``cancelled_caught`` of the scope that it yields tells, after the body, whether that happened.
    An exception of the body passes as it is; trio_util's function of this name wraps it into a
    group, as trio's nurseries do, and callers could not catch it by its type.
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
