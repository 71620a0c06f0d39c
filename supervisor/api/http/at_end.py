"""What a request has opened is closed with it, also if nobody comes to read from it.

An answer's body may never be asked for: its client may leave while the head is on its way.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

#: The longest time that closing takes.
_CLOSE_S = 1.0

_opened: ContextVar[AsyncExitStack] = ContextVar("opened")


def close_at_end(close: Callable[[], Awaitable[None]]) -> None:
    """Call this when the present request is over, however it ends."""
    _opened.get().push_async_callback(close)


@asynccontextmanager
async def closing() -> AsyncIterator[None]:
    """Serve a request within the body."""
    stack = AsyncExitStack()
    present = _opened.set(stack)
    try:
        yield
    finally:
        _opened.reset(present)
        with trio.move_on_after(_CLOSE_S, shield=True):
            await stack.aclose()
