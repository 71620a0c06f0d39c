"""Whether a VM's run is still this host's, asked before each step that cannot be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from supervisor.state.record import RelayState
    from supervisor.vm.on_record import OnRecord


class Ownership(Protocol):
    """What a fleet knows of it. A host that is alone owns all it has: `Alone`."""

    async def prove(self, vm: OnRecord, relay: RelayState) -> None:
        """Put on the fleet's record that the run has come so far, before it does.

        Waits while the record cannot be reached.

        :raises SupervisorError: if the run is another host's by now, or is over
        """


class Alone:
    """For runs that no fleet knows of."""

    async def prove(self, vm: OnRecord, relay: RelayState) -> None:
        pass
