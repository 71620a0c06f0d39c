"""How much of all callers' bodies is in memory at once."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.config import MAX_COMPUTATION
from supervisor.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from supervisor.api.rates import Who

#: What a body takes beside its computation, at most.
_BESIDE = 256 * 1024
#: The same, once it is read.
_BESIDE_READ = 4096
#: The most that one body takes.
LARGEST = MAX_COMPUTATION + _BESIDE
_RETRY_AFTER_S = 5


class Budget:
    """Bytes for bodies, from before the first byte is read until the computation is on disk; in a
    fleet, until a host has answered, for until then another one may need it.

    One caller has at most half of them, so that a caller with many or slow bodies leaves room for
    the others.

    :param most_bytes: at least twice `LARGEST`, so that each body has room
    :param wait_s: the longest wait for room
    """

    def __init__(self, most_bytes: int, wait_s: float) -> None:
        self._most = most_bytes
        self._wait_s = wait_s
        self._held: Counter[Who] = Counter()
        self._changed = trio.Event()

    @property
    def held_bytes(self) -> int:
        return self._held.total()

    @asynccontextmanager
    async def reserve(
        self, who: Who, announced: int | None
    ) -> AsyncIterator[Callable[[int], None]]:
        """Room for one body.

        Once it is read, say by what is yielded how many bytes stay in memory: the rest is others'
        while a run waits for room or for its agent.

        :param who: the caller
        :param announced: bytes of the body as it is sent; None if the caller does not say. No
            body takes more than it has bytes.
        :raises Overloaded: if there is no room in time
        """
        size = LARGEST if announced is None else min(announced + _BESIDE, LARGEST)
        with trio.move_on_after(self._wait_s) as patience:
            while not self._fits(who, size):
                await self._changed.wait()
        if patience.cancelled_caught:
            raise Overloaded(
                f"{self.held_bytes} bytes of other requests' bodies are being received, the limit"
                f" is {self._most}",
                advice="try again later, or raise MANAGER_BODY_BUDGET",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._held[who] += size

        def keep(stays: int) -> None:
            nonlocal size
            self._give_back(who, max(size - stays - _BESIDE_READ, 0))
            size = min(size, stays + _BESIDE_READ)

        try:
            yield keep
        finally:
            self._give_back(who, size)

    def _give_back(self, who: Who, size: int) -> None:
        self._held[who] -= size
        if not self._held[who]:
            del self._held[who]
        self._changed.set()
        self._changed = trio.Event()

    def _fits(self, who: Who, size: int) -> bool:
        mine = self._held[who] + size <= self._most // 2
        return mine and self.held_bytes + size <= self._most
