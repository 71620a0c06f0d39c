"""What the servers know of the fleet that this host is a member of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.api.fleet.events import FleetEvents
    from supervisor.api.fleet.others import Others
    from supervisor.api.fleet.runs import FleetRuns
    from supervisor.fleet.fleet import Fleet

    Calls = Callable[[str, bytes], Awaitable[bytes]]


@attrs.frozen
class Member:
    """
    :param calls: for the server that other members ask: answers a call of gRPC that one of them
        passes on, from the method's name and the message. trio-flavoured
    """

    fleet: Fleet
    others: Others
    runs: FleetRuns
    events: FleetEvents
    calls: Calls | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks other members for what is not here; the server that they ask does not."""
        return self.calls is None
