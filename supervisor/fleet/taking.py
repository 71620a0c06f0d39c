"""Runs that this host takes out of the queue, one at a time and only while it has room."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.errors import FleetUnavailable, NotOwner
from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import HostFacts, Needs, has_room, lacks, rank
from supervisor.fleet.kinds import TABLE
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.records import check_id, queued
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from supervisor.fleet.engine import Engine, Entry, Message
    from supervisor.fleet.members import Members
    from supervisor.fleet.owner import Owner
    from supervisor.fleet.records import Records

log = structlog.stdlib.get_logger()

#: How long one question to the queue stays open.
_PULL_S = 10.0
#: How long the entry host has to send a run that it was told this host has.
_ARRIVES_S = 10.0
_CALL_S = 2.0
#: After it has asked, a host waits so long for what the queue has of all kinds that it serves. What
#: many hosts serve would else get most of the room of those that only some runs can have; and what
#: has just been posted that of those that wait.
_GATHER_S = 0.02
#: For so long a host does not ask that had no room after all.
_FULL_S = 0.1
_RETRY_S = 0.5
#: What `Taking.take_next` says.
REFUSED = b"no"
#: More than there are kinds of hosts; a member that was taken over can tell of any number.
_MOST_KINDS = 1000


@attrs.define(eq=False)
class _Kind:
    """One that this host may ask for.

    :ivar asked_at: since when the queue has nothing of it for this host, or has not said yet; None
        if it does not ask
    """

    needs: Needs
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    asked_at: float | None = None

    @property
    def has_none(self) -> bool:
        return self.asked_at is not None and self.asked_at < trio.current_time() - _GATHER_S


@attrs.define(eq=False)
class _Coming:
    """A run that this host has said it takes.

    :ivar told: what its record is, if this host has made it
    :ivar made: set when that is known
    :ivar late: whether it is being given up, because nobody has sent it
    :ivar over: set when it has arrived, and when its entry host says that it will not
    :ivar settled: set once it has its room, or will not have it
    """

    epoch: int
    told: bytes = b""
    arrived: bool = False
    late: bool = False
    made: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    settled: trio.Event = attrs.field(factory=trio.Event)

    @property
    def has_room_kept(self) -> bool:
        """Whether it may still take room, which nothing else shows yet."""
        return not (self.late or self.settled.is_set())

    def end(self) -> None:
        """It is not waited for any more, if it has not arrived."""
        if not self.arrived:
            self.late = True
            self.over.set()


class Taking:
    """This host as one that serves.

    :param look: what it can do now
    """

    def __init__(
        self,
        engine: Engine,
        records: Records,
        members: Members,
        owner: Owner,
        look: Callable[[], HostFacts],
    ) -> None:
        self._engine = engine
        self._records = records
        self._members = members
        self._owner = owner
        self._look = look
        #: Of messages that it has and that wait for their turn.
        self._numbers: set[int] = set()
        self._is_taking = False
        self._turns = Signal()
        self._coming: dict[str, _Coming] = {}
        self._kinds: dict[str, _Kind] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def busy(self) -> bool:
        """Whether it waits for a run that it has claimed."""
        return bool(self._coming)

    def takes_now(self, run: Run) -> bool:
        """Whether this host would take the run at once, were it the next in the queue."""
        return self._serves(self._look(), run.needs)

    def _could_take(self, needs: Needs) -> bool:
        """Whether it would, by what `Members` has seen last: that tells of each change."""
        facts = self._members.hosts.get(self._members.name)
        return facts is not None and self._serves(facts, needs)

    def _serves(self, facts: HostFacts, needs: Needs) -> bool:
        return self._has_room(facts, needs) and not lacks(facts, needs)

    def _has_room(self, facts: HostFacts, needs: Needs) -> bool:
        kept = sum(one.has_room_kept for one in self._coming.values())
        return has_room(facts, needs, kept) and self._members.is_safe

    async def take_all(self) -> None:
        """Take runs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                try:
                    async with self._engine.watch(TABLE) as entries:
                        async for entry in entries:
                            if entry:
                                self._hear(entry, nursery)
                except FleetUnavailable as error:
                    log.debug("kinds of runs not heard of", problem=str(error))
                await trio.sleep(_RETRY_S)

    def _hear(self, entry: Entry, nursery: trio.Nursery) -> None:
        """Of a kind of runs that there is, or that nobody has asked for in a long time."""
        if entry.value is None:
            if kind := self._kinds.pop(entry.key, None):
                kind.scope.cancel()
        elif entry.key not in self._kinds:
            try:
                needs = Needs.decode(entry.value)
            except ValueError as error:
                log.error("a kind of runs cannot be read", problem=str(error))
                return
            if len(self._kinds) >= _MOST_KINDS:
                log.error("too many kinds of runs: one is not asked for", kind=entry.key)
                return
            kind = self._kinds[entry.key] = _Kind(needs)
            nursery.start_soon(self._take_kind, entry.key, kind)

    async def _take_kind(self, name: str, kind: _Kind) -> None:
        needs = kind.needs
        with kind.scope:
            while True:
                if not self._could_take(needs):
                    kind.asked_at = None
                    await self._members.changed.until(partial(self._could_take, needs))
                facts, asked_at = self._members.hosts[self._members.name], trio.current_time()
                if kind.asked_at is None:
                    kind.asked_at = asked_at
                order = rank(facts, needs)
                try:
                    message = await self._engine.pull(name, _PULL_S, order)
                    if message:
                        kind.asked_at = None
                        async with self._turn(message, asked_at + _GATHER_S):
                            while message and not await self._take(message, needs):
                                message = await self._engine.pull(name, _GATHER_S, order)
                except FleetUnavailable as error:
                    kind.asked_at = None
                    log.debug("queue not reached", kind=name, problem=str(error))
                    await trio.sleep(_RETRY_S)

    @asynccontextmanager
    async def _turn(self, message: Message, not_before: float) -> AsyncIterator[None]:
        """One run at a time, and of those that are there, the one that has waited for longest."""
        self._numbers.add(message.number)
        try:
            await trio.sleep_until(not_before)
            await self._turns.until(
                lambda: not self._is_taking and message.number == min(self._numbers)
            )
        finally:
            self._numbers.discard(message.number)
            self._turns.notify()
        self._is_taking = True
        try:
            yield
        finally:
            self._is_taking = False
            self._turns.notify()

    async def _take(self, message: Message, needs: Needs) -> bool:
        """
        :returns: whether that was this kind's turn: not if the run is another's or nobody's by now,
            for one that waits for long has many messages
        """
        if not self._has_room(self._look(), needs):  # as it had when it asked
            await self._engine.give_back(message)
            self._members.notice()
            await trio.sleep(_FULL_S)
            return True
        try:
            run, _ = queued(message.body)
        except ValueError as error:
            log.error("a message of the queue cannot be read", problem=str(error))
            await self._engine.done(message)
            return False
        known = self._records.known(run.id)
        if known and known.is_of(self._members.name, run.epoch + 1):
            await self._engine.done(message)  # it came again, of a run that this host is at
            return False
        try:
            # In the queue is what the record was, so that nobody has to ask for it.
            self._records.hear(message.body)
            step = partial(_claimed, self._members.name, run.epoch)
            run = await self._records.change(run.id, step)
        except NotOwner:
            self._records.forget(run.id)
            await self._engine.done(message)
            return False
        await self._engine.done(message)
        await self._receive(run)
        return True

    async def _receive(self, run: Run) -> None:
        """Have the entry host send what it has, and wait until its VM is on record."""
        with self._until_here(run, self._expected(run)) as coming:
            claim = f"{run.id} {self._members.name} {run.epoch}".encode()
            said = None
            with suppress(FleetUnavailable):
                said = await self._engine.call(run.entry, "claimed", claim, _CALL_S)
            if await _arrives(coming, _ARRIVES_S if said == b"coming" else 0):
                await coming.settled.wait()
                return
            if said is None:  # it may be back soon, with what it keeps on its disk
                log.info("entry host does not answer", run=run.id, entry=run.entry)
                with suppress(NotOwner):
                    await self._owner.hand_back_in_time(run.id, run.epoch)
                return
            log.info("nobody waits for a run", run=run.id, entry=run.entry)
            await self._owner.give_up(run.id, run.epoch)

    def _expected(self, run: Run) -> _Coming:
        """Let a run arrive. By one way: it may have been asked about before."""
        if before := self._coming.get(run.id):
            before.end()
        coming = self._coming[run.id] = _Coming(run.epoch)
        return coming

    @contextmanager
    def _until_here(self, run: Run, coming: _Coming) -> Iterator[_Coming]:
        """Within the body it may arrive."""
        try:
            yield coming
        finally:
            if self._is_expected(run, coming):
                del self._coming[run.id]
            self._members.changed.notify()  # its room may be another's

    def _is_expected(self, run: Run, coming: _Coming) -> bool:
        return self._coming.get(run.id) is coming

    # --- without the queue ------------------------------------------------------------------

    async def take_next(self, asked: bytes) -> bytes:
        """Put a run of another host on record as this one's, if it has room that nobody waits for.

        :param asked: the run, as it is to be put on record
        :return: as `Records.told`; `REFUSED`; or empty, if it may be on record or not
        """
        try:
            run = Run.decode(asked)
            check_id(run.id)
        except ValueError as error:
            log.error("a run that is asked about cannot be read", problem=str(error))
            return REFUSED
        is_own = run.is_of(self._members.name, 1) and run.state is RunState.OWNED
        if self._nursery is None or not is_own or not self._is_free(run):
            return REFUSED
        coming = self._expected(run)  # at once, lest another one has the same room
        self._nursery.start_soon(self._expect, run, coming)
        await coming.made.wait()
        return coming.told

    def _is_free(self, run: Run) -> bool:
        """Whether there is room that nothing in the queue waits for."""
        facts = self._look()
        is_here = run.id in self._coming or self._records.known(run.id) is not None
        if self._numbers or self._is_taking or is_here or not self._serves(facts, run.needs):
            return False
        served = (one for one in self._kinds.values() if self._serves(facts, one.needs))
        return all(one.has_none for one in served)

    async def _expect(self, run: Run, coming: _Coming) -> None:
        """Put a run on record, and give it up if it does not come: its entry host may be lost."""
        with self._until_here(run, coming):
            try:
                await self._records.create(run)
                coming.told = self._records.told(run)
            except Conflict:
                self._records.forget(run.id)  # it is in the queue by now
                return
            except FleetUnavailable as error:
                log.debug("run on record, or not", run=run.id, problem=str(error))
            finally:
                coming.made.set()
            if await _arrives(coming, _ARRIVES_S):
                await coming.settled.wait()
            elif self._is_expected(run, coming):
                await self._owner.give_up(run.id, run.epoch)

    async def tell_left(self, host: str, run_id: str, epoch: int) -> None:
        """Have another host end a run whose caller has left. It would find out by itself."""
        with suppress(FleetUnavailable):
            await self._engine.call(host, "left", f"{run_id} {epoch}".encode(), _CALL_S)

    def left(self, run_id: str, epoch: int) -> None:
        """Nobody waits for a run that this host may expect."""
        coming = self._coming.get(run_id)
        if coming and coming.epoch == epoch:
            coming.end()

    @asynccontextmanager
    async def accepted(self, run_id: str, epoch: int) -> AsyncIterator[None]:
        """Within the body a run is being started that this host has, and no other is taken.

        :raises NotOwner: if it does not have it
        """
        coming = self._coming.get(run_id)
        if coming and coming.late:
            raise NotOwner(f"this host gives up run {run_id}, which came too late")
        if coming and coming.epoch == epoch and not coming.arrived:
            coming.arrived = True
            coming.over.set()
            try:
                yield
            finally:
                coming.settled.set()
            return
        # Taken at once where it was posted, or asked for again.
        run = self._records.known(run_id) or await self._records.read(run_id)
        if not run.is_of(self._members.name, epoch) or run.state is not RunState.OWNED:
            self._records.forget(run_id)
            raise NotOwner(f"this host does not have run {run_id} in epoch {epoch}")
        yield


async def _arrives(coming: _Coming, patience_s: float) -> bool:
    """Whether a run comes in time. If not, it may not be begun any more."""
    with trio.move_on_after(patience_s):
        await coming.over.wait()
    coming.late = not coming.arrived
    return coming.arrived


def _claimed(host: str, epoch: int, run: Run) -> Run:
    return run.claimed(host, epoch)
