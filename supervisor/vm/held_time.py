"""Limits of time that a guest cannot use up while its host holds it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.vm.vm import Vm


@asynccontextmanager
async def in_time(vm: Vm, allowed_s: float) -> AsyncIterator[trio.CancelScope]:
    """Cancel the body when so much time is over. What the host holds the guest for is no time.

    A guest cannot hold itself, so it cannot escape its limits.
    """

    async def time_is_up() -> None:
        left_s = allowed_s
        while True:
            await vm.until(lambda: not vm.status.is_held)
            began = trio.current_time()
            with trio.move_on_after(left_s) as patience:
                await vm.until(lambda: vm.status.is_held)
                left_s -= trio.current_time() - began
            if patience.cancelled_caught:
                return

    async with move_on_when(time_is_up) as scope:
        yield scope
