"""A run that was posted to this host, until it is on record."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs

from supervisor.errors import FleetUnavailable, NotOwner
from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import likeliest
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.taking import REFUSED
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.fleet.engine import Engine
    from supervisor.fleet.members import Members
    from supervisor.fleet.records import Records
    from supervisor.fleet.taking import Taking

#: For a host to say whether it takes a run now. One that does not say so leaves it to the queue.
_SAYS_S = 0.5


@attrs.define(eq=False)
class Posted:
    """A run that somebody waits for at this host.

    :ivar waiters: how many
    :ivar offered: as another host may have put it on record that has not been sent it
    :ivar landed: whether a host sees to it, whatever becomes of its callers
    :ivar placed_in: the epoch in which a host was last found to have it
    """

    run: Run
    owner: str
    waiters: int = 0
    offered: Run | None = None
    landed: bool = False
    placed_in: int = -1
    changed: Signal = attrs.field(factory=Signal)

    def is_open(self) -> bool:
        """Whether no host has it, and none will have it once nobody waits."""
        return self.run.state is RunState.QUEUED and not self.run.accepted


class Placing:
    """To whom a run goes first: to this host, to another one that takes it now, or to the queue.

    :param later: has something done in a task
    """

    def __init__(
        self,
        engine: Engine,
        records: Records,
        members: Members,
        taking: Taking,
        later: Callable[[Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._engine = engine
        self._records = records
        self._members = members
        self._taking = taking
        self._later = later

    async def place(self, posted: Posted) -> None:
        """Put a run on record, as this host has it, or another one that takes it now, or neither.

        :raises FleetUnavailable: likewise
        :raises Conflict:
        """
        run = posted.run
        if self._taking.takes_now(run):
            run = run.claimed(self._members.name, run.epoch)
        elif await self._is_taken(posted):
            return
        try:
            await self._records.create_in_time(run)
            posted.run = run  # whatever others have said of it meanwhile
        except Conflict:
            if not posted.offered:
                raise
            # That host has said nothing, or too late.
            step = partial(_taken_back, self._members.name, posted.offered)
            try:
                posted.run = await self._records.change(run.id, step)
            except NotOwner as error:
                raise Conflict(str(error)) from error
        posted.offered = None

    async def _is_taken(self, posted: Posted) -> bool:
        """Whether another host takes a run now, which nobody waits for: it is on record as its."""
        run = posted.run
        others = (one for name, one in self._members.hosts.items() if name != self._members.name)
        host = likeliest(others, self._members.narrowed(run.needs))
        if host is None:
            return False
        posted.offered, said = (claimed := run.claimed(host.name, run.epoch)), b""
        with suppress(FleetUnavailable):
            said = await self._engine.call(host.name, "takes", claimed.encode(), _SAYS_S) or b""
        if self._records.hear_of(claimed, said):
            posted.run = claimed
            return True
        if said == REFUSED:
            posted.offered = None
        else:
            self._later(partial(self._taking.tell_left, host.name, run.id, claimed.epoch))
        return False


def _taken_back(entry: str, offered: Run, run: Run) -> Run:
    if run.state is RunState.GIVEN_UP:
        return run.revived(entry)
    return run.taken_back(entry, offered.owner, offered.epoch)
