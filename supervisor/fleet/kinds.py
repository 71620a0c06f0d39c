"""The kinds of runs that there are: of each the queue keeps a part, and hosts ask for what they
serve.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from supervisor.fleet.engine import Conflict

if TYPE_CHECKING:
    from supervisor.fleet.engine import Engine
    from supervisor.fleet.facts import Needs

TABLE = "kinds"
_TTL_S = 24 * 3600.0
#: Well before a kind is forgotten.
_AGAIN_S = 3600.0


class Kinds:
    """Those that this host has told the others of."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: When each was told of last, on trio's clock.
        self._told: dict[str, float] = {}

    async def tell(self, needs: Needs) -> None:
        """Have every host know that there are such runs, for a day.

        :raises FleetUnavailable:
        """
        now = trio.current_time()
        if now - self._told.get(needs.kind, -math.inf) < _AGAIN_S:
            return
        await self._engine.offer(needs.kind)
        told = TABLE, needs.kind, needs.encode()
        try:
            await self._engine.create(*told, _TTL_S)
        except Conflict:
            kept = await self._engine.get(TABLE, needs.kind)
            with suppress(Conflict):  # somebody else tells it now
                if kept:
                    await self._engine.update(*told, kept.revision, _TTL_S)
        self._told[needs.kind] = now
