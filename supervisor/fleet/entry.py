"""Runs that were posted to this host, until a host has them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs
import structlog
import trio

from supervisor.errors import (
    AtCapacity,
    FleetUnavailable,
    HandedBack,
    MemberBroke,
    NoHost,
    NotOwner,
    RunLost,
    Stopping,
)
from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import Needs, nobody_serves
from supervisor.fleet.kinds import Kinds
from supervisor.fleet.ledger import Run, RunState, is_epoch
from supervisor.fleet.members import LEASE_S, Members
from supervisor.fleet.metrics import PlacedRuns, Where
from supervisor.fleet.placing import Placing, Posted
from supervisor.fleet.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.config import LimitsConfig
    from supervisor.fleet.engine import Engine
    from supervisor.fleet.records import Records
    from supervisor.fleet.taking import Taking

T = TypeVar("T")

log = structlog.stdlib.get_logger()

#: A message may be lost, or its receiver: after so long another one is sent.
_REMIND_S = 15.0
_RETRY_S = 0.5
_CALL_S = 2.0


@attrs.frozen
class Claim:
    """That a host has a run.

    :param address: where it is reached
    """

    run_id: str
    host: str
    epoch: int
    address: str


class Entry:
    """This host as the one that callers ask."""

    def __init__(
        self,
        engine: Engine,
        records: Records,
        members: Members,
        taking: Taking,
        limits: LimitsConfig,
    ) -> None:
        self.host = members.name
        self._engine = engine
        self._records = records
        self._members = members
        self._taking = taking
        self._limits = limits
        self._posted: dict[str, Posted] = {}
        self._later, self._to_do = trio.open_memory_channel[Callable[[], Awaitable[None]]](math.inf)
        self._turns = Turns(self._later.send_nowait)
        self._placing = Placing(engine, records, members, taking, self._later.send_nowait)
        self._kinds = Kinds(engine)
        self.placed = PlacedRuns()
        self._closing = False

    @property
    def callers(self) -> int:
        """Of runs that are on their way to another host, or there, and are waited for here."""
        return sum(one.waiters for one in self._posted.values() if one.run.owner != self.host)

    @property
    def waiting(self) -> int:
        """Runs that no host has yet."""
        return sum(one.run.state is RunState.QUEUED for one in self._posted.values())

    async def check(self, needs: Needs, owner: str, *, tells_hosts: bool) -> None:
        """
        :param owner: who posts it
        :param tells_hosts: whether the caller may know what each host has
        :raises NoHost: if no host could serve such a run
        :raises AtCapacity: if too many of its owner's wait already: others' keep nobody out
        """
        with trio.move_on_after(LEASE_S):
            await self._members.changed.until(lambda: self._members.complete)
        if why := nobody_serves(self._members.hosts.values(), needs, tells_hosts=tells_hosts):
            lost = ", ".join(self._members.lost)
            unasked = f"; lost, and not asked: {lost}" if lost and tells_hosts else ""
            raise NoHost(f"no host of the fleet serves this run: {why}{unasked}")
        waiting = sum(one.owner == owner for one in self._posted.values())
        if waiting >= self._limits.queue + self._limits.max_vms:
            raise AtCapacity(
                f"{waiting} of your runs wait at this host",
                advice="try again later, or at another host",
                retry_after_s=self._retry_s,
            )

    @property
    def _retry_s(self) -> int:
        return max(1, round(self._limits.queue_timeout_s))

    @asynccontextmanager
    async def post(self, run: Run, owner: str) -> AsyncIterator[Posting]:
        """Put a run on record. If no host has it at the end of the body, none will.

        :param run: as queued, by this host
        :param owner: whose it is
        :raises FleetUnavailable: if it cannot be put on record
        :raises Conflict: if it came so late that another one has its key, or a host may have it
            that has not said so in time; it may be posted anew
        """
        async with self._waiting(run, owner) as posted:
            await self._placing.place(posted)
            posted.changed.notify()  # others may have come meanwhile, with its key
            yield Posting(self, posted, owner)

    @asynccontextmanager
    async def join(self, run: Run, owner: str) -> AsyncIterator[Posting]:
        """Wait for a run that was posted before, here or to another host.

        :param run: as it is on record
        """
        async with self._waiting(run, owner) as posted:
            yield Posting(self, posted, owner)

    @asynccontextmanager
    async def _waiting(self, run: Run, owner: str) -> AsyncIterator[Posted]:
        posted = self._posted.setdefault(run.id, Posted(run, owner))
        posted.waiters += 1
        try:
            yield posted
        finally:
            posted.waiters -= 1
            if not posted.waiters:
                del self._posted[run.id]
                if posted.run.owner != self._members.name:
                    self._records.forget(run.id)
                if not posted.landed:
                    withdraw = partial(self._withdraw, posted.run, posted.offered)
                    self._later.send_nowait(withdraw)

    def answer(self, subject: str, words: list[str]) -> bytes | None:
        """What this host answers when others ask about runs that were posted to it.

        :return: None if it is another question
        """
        match subject, words:
            case "claimed", [run_id, host, epoch] if is_epoch(epoch):
                return b"coming" if self._claimed(run_id, host, int(epoch)) else b"gone"
            case "waits", [run_id]:
                return b"yes" if run_id in self._posted else b"no"
        return None

    def _claimed(self, run_id: str, host: str, epoch: int) -> bool:
        """A host says that it has a run. Whether it is waited for here."""
        posted = self._posted.get(run_id)
        if posted is None:
            return False
        run = posted.run
        if run.state is RunState.QUEUED and epoch == run.epoch + 1:
            posted.run = run.claimed(host, run.epoch)
            posted.changed.notify()
        return True

    async def withdraw_all(self) -> None:
        """Have no host take runs whose callers are gone, and end their turns, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for task in self._to_do:
                nursery.start_soon(task)

    async def _withdraw(self, run: Run, offered: Run | None) -> None:
        if offered:
            await self._taking.tell_left(offered.owner, run.id, offered.epoch)
        # If a host has it by now, it hears from us that nobody waits.
        with suppress(NotOwner):
            step = partial(_withdrawn, self.host, offered, self._posted)
            given_up = await self._records.change_in_time(run.id, step)
            await self._records.release_key(given_up)
        self._records.forget(run.id)

    async def _wait_claimed(self, posted: Posted, owner: str) -> Claim:
        begun = trio.current_time()
        if posted.run.state is RunState.QUEUED:
            with trio.move_on_after(self._limits.queue_timeout_s) as patience:
                # Else who asks for a byte more each time would have more turns.
                kind = self._members.narrowed(posted.run.needs).kind
                async with self._turns.one((owner, kind), posted.is_open, _REMIND_S):
                    await self._wait_in_queue(posted)
            if patience.cancelled_caught:
                raise AtCapacity(
                    f"no host had room within {self._limits.queue_timeout_s:g} s"
                    " (MANAGER_QUEUE_TIMEOUT)",
                    advice="end a VM, add a host, or try again later",
                    retry_after_s=self._retry_s,
                )
        run = posted.run
        if run.epoch != posted.placed_in:  # not if its host is only asked again
            posted.placed_in = run.epoch
            self.placed.placed(trio.current_time() - begun)
        facts = self._members.hosts.get(run.owner)
        with trio.move_on_after(LEASE_S):  # it may be new to us
            facts = await self._members.wait_known(run.owner)
        return Claim(run.id, run.owner, run.epoch, facts.address if facts else "")

    def close(self) -> None:
        """Have those that wait in the queue hear that this supervisor stops."""
        self._closing = True
        for posted in self._posted.values():
            posted.changed.notify()

    async def _wait_in_queue(self, posted: Posted) -> None:
        """:raises Stopping:"""
        reminders = 0
        while posted.run.state is RunState.QUEUED:
            claimed, run = posted.changed.next(), posted.run
            if self._closing:
                raise Stopping
            if run.entry != self._members.name:
                await self._wait_for_other(posted)
                continue
            try:
                # Anew each time: another host may have come that serves it.
                needs = self._members.narrowed(run.needs)
                await self._kinds.tell(needs)
                once = f"{run.id}:{run.epoch}:{reminders}"
                await self._engine.enqueue(needs.kind, self._records.told(run), once)
                pause_s = _REMIND_S
            except FleetUnavailable:
                pause_s = _RETRY_S
            with trio.move_on_after(pause_s):
                await claimed.wait()
                continue
            reminders += 1
            with suppress(FleetUnavailable):
                posted.run = await self._look(run.id)

    async def _wait_for_other(self, posted: Posted) -> None:
        """Of a run that was posted to another host as well, which has it in the queue.

        Unless that one is lost, or has forgotten it as it was started again.
        """
        run = posted.run
        with suppress(FleetUnavailable, NotOwner):
            if not await self._waits(run):
                step = partial(_entered, self._members.name, run.entry)
                posted.run = await self._records.change(run.id, step)
                return
        await trio.sleep(_RETRY_S)
        with suppress(FleetUnavailable):
            posted.run = await self._look(run.id)

    async def _waits(self, run: Run) -> bool:
        """Whether a run's entry host waits for it; that one may have been started again."""
        if run.entry not in self._members.hosts:
            return False
        return await self._engine.call(run.entry, "waits", run.id.encode(), _CALL_S) != b"no"

    async def _look(self, run_id: str) -> Run:
        """What the record says of a run that is waited for here, whatever we were told.

        :raises Conflict: if the host that it was posted to has given it up, or another run has its
            key since
        """
        self._records.forget(run_id)
        while (run := await self._records.read(run_id)).state is RunState.GIVEN_UP:
            if run.entry != self._members.name:
                raise Conflict(f"run {run_id} is given up by {run.entry or 'its caller'}")
            with suppress(NotOwner):  # it goes on already
                return await self._records.change(run_id, partial(_revived, self._members.name))
        if run.state is RunState.REPLACED:
            raise Conflict(f"another run has the key of run {run_id}")
        return run

    async def _after_break(self, posted: Posted, claim: Claim) -> None:
        """Find out what a run is that its owner has not answered, or has given back.

        Returns if it is to be waited for again: another host will have it, or the same.

        :raises RunLost: if it is over
        """
        while True:
            try:
                run = await self._look(claim.run_id)
                if not run.is_of(claim.host, claim.epoch) or run.state.is_final:
                    break
                if claim.host in self._members.hosts:
                    # It lives: the connection broke, or its supervisor was started again.
                    await trio.sleep(_RETRY_S)
                    break
                if self._members.complete and self._members.is_safe:
                    run = await self._records.change(
                        claim.run_id, partial(_without, claim, self._members.name)
                    )
                    if not run.is_of(claim.host, claim.epoch) or run.state.is_final:
                        log.warning("host lost", host=claim.host, run=run.id, becomes=run.state)
                        break  # else it waits for its host to come back
            except NotOwner as error:
                raise RunLost(f"host {claim.host} did not answer, and {error}") from error
            except FleetUnavailable as error:
                log.warning("run not found out about", run=claim.run_id, problem=str(error))
            await trio.sleep(_RETRY_S)
        posted.run = run
        if run.state.is_final and run.state is not RunState.ANSWERED:
            self.placed.count(Where.LOST)
            raise RunLost(
                f"host {claim.host} was lost with run {run.id}, which is {run.state}",
                advice="whether its agent has computed anything is not known",
            )


def _withdrawn(entry: str, offered: Run | None, posted: dict[str, Posted], run: Run) -> Run:
    """
    :raises NotOwner: if it was posted again meanwhile, or to another host, or is accepted
    """
    # Of one that is given up already, the answer to which was lost, the key is still to be freed.
    if run.entry and (run.entry != entry or run.id in posted):
        raise NotOwner(f"run {run.id} is waited for")
    is_left = run.state is RunState.GIVEN_UP  # that host has heard it before
    if offered and run.is_of(offered.owner, offered.epoch) and not is_left:
        run = run.taken_back(entry, offered.owner, offered.epoch)
    return run.given_up()


def _revived(entry: str, run: Run) -> Run:
    return run.revived(entry)


def _entered(entry: str, lost: str, run: Run) -> Run:
    return run.entered(entry, lost)


def _without(claim: Claim, entry: str, run: Run) -> Run:
    """What becomes of a run that is lost with the host of the claim, if that one still has it."""
    return run.without_owner(entry) if run.is_of(claim.host, claim.epoch) else run


class Posting:
    """One run that a caller waits for."""

    def __init__(self, entry: Entry, posted: Posted, owner: str) -> None:
        self._entry = entry
        self._posted = posted
        self._owner = owner

    async def land(
        self, here: Callable[[Claim], Awaitable[T]], there: Callable[[Claim], Awaitable[T]]
    ) -> tuple[Claim, T]:
        """Have the run done by the host that takes it, whichever hosts are lost before.

        :param here: does it on this host
        :param there: has another one do it
        :returns: who has done it, and what that one returned
        :raises AtCapacity: if no host has room in time
        :raises RunLost: if it is over, and nobody knows how
        :raises Conflict: if it was given up where it was posted first; it may be posted anew
        """
        placed = self._entry.placed
        while True:
            claim = await self._entry._wait_claimed(self._posted, self._owner)
            try:
                is_here = claim.host == self._entry.host
                # From here on that host sees to it, whatever becomes of its callers here.
                self._posted.landed, self._posted.offered = True, None
                done = await (here if is_here else there)(claim)
                placed.count(Where.HERE if is_here else Where.ELSEWHERE)
                return claim, done
            except FleetUnavailable:
                self._posted.landed = False  # that host has not begun
                raise
            except (HandedBack, MemberBroke, NotOwner) as error:
                handed_back = isinstance(error, HandedBack)
                placed.count(Where.HANDED_BACK if handed_back else Where.BROKEN)
                self._posted.landed = False
                if isinstance(error, NotOwner) and not self._entry._members.taken:
                    raise  # another supervisor has this one's name, and all its runs
                log.warning(
                    "no answer there", run=claim.run_id, host=claim.host, problem=str(error)
                )
                await self.after_break(claim)

    async def after_break(self, claim: Claim) -> None:
        """The connection to its owner broke: return if it is to be waited for again.

        :raises RunLost: if it is over, and nobody knows how
        """
        await self._entry._after_break(self._posted, claim)
