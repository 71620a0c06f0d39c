"""Changes of VMs: written to disk first, then published, in one order for every reader.

Worker threads write, for several VMs at a time. An event is published after every event with a
lower number, so a reader that has seen number n has seen all events before it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from supervisor.state import file_errors
from supervisor.state.broadcast import Broadcast, everything
from supervisor.state.record import Event, EventKind, Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from supervisor.state.secret import Secret
    from supervisor.state.shares import Shares
    from supervisor.state.store import Store

log = structlog.stdlib.get_logger()

#: An event's kind and its data, before it has a number.
News = tuple[EventKind, Mapping[str, Any]]

#: How many events on record a reader has in memory at a time.
_PAGE = 256

#: Two limiters, so that a write never waits for a reader of many old events.
_writers, _readers = trio.CapacityLimiter(16), trio.CapacityLimiter(2)

#: A write takes milliseconds. One that takes longer than this is told in the log.
_SLOW_S = 2.0


class Journal:
    """Numbers, writes and publishes events. ``events`` broadcasts them.

    :param sequence: the number of the last event on record
    :param reader_buffer: events that a reader may lag behind before its stream ends
    """

    def __init__(self, store: Store, sequence: int, reader_buffer: int) -> None:
        self.events: Broadcast[Event] = Broadcast(reader_buffer)
        #: The number of the last published event. Every event up to it is published, too.
        self.sequence = sequence
        #: Published since the start, by kind.
        self.counted: Counter[str] = Counter()
        self._store = store
        self._issued = sequence
        self._reserved = sequence
        self._reserving = trio.Lock()
        self._written: dict[int, Event | None] = {}

    async def create(
        self,
        record: Record,
        computation: bytes | None,
        secret: Secret,
        shares: Shares | None = None,
    ) -> Record:
        """Make a VM's directory with its record, its secret and, if it has them, its computation
        and what its guest reads.

        :returns: the record, with the number of its first event
        :raises OSError: if the directory cannot be written; nothing of it is left then
        """
        await self._reserve(1)
        data = _rebuildable(record)
        event = self._number(EventKind.STATE, record.id, record.owner, data)
        record = attrs.evolve(record, sequence=event.sequence)
        written = False
        try:
            await _in_thread(self._store.create, record, [event], computation, secret, shares)
            written = True
        finally:
            self._publish(event.sequence, event if written else None)
        return record

    async def commit(
        self,
        record: Record,
        *news: News,
        required: bool = False,
        before: Callable[[], object] | None = None,
    ) -> Record:
        """Write a changed record and the events that changed it, then publish the events.

        A VM runs on even if its record cannot be written: the events are published, an error is
        logged, and the next commit writes what is missing.

        :param news: one event or more
        :param required: whether a failure is raised, too: the change counts as not made then
        :param before: writes what the change tells of; blocking, in the same thread, just before
        :returns: the record, with the number of its last event
        :raises OSError, RuntimeError: if it is required, and cannot be written
        :raises Exception: what ``before`` raises; nothing is written or published then
        """
        is_made = before is None

        def write() -> None:
            nonlocal is_made
            if before:
                before()
                is_made = True
            self._store.write(record, events)

        await self._reserve(len(news))
        events = [self._number(kind, record.id, record.owner, data) for kind, data in news]
        record = attrs.evolve(record, sequence=events[-1].sequence)
        try:
            await _in_thread(write)
        except (OSError, RuntimeError) as error:  # no room, no descriptor, no thread
            if not is_made:
                raise
            log.error("record cannot be written", vm=record.id, problem=self._problem(error))
            if required:
                raise
        finally:
            for event in events:
                self._publish(event.sequence, event if is_made else None)
        return record

    async def note(
        self, kind: EventKind, vm_id: str | None, *, owner: str = "", **data: Any
    ) -> None:
        """Write and publish an event that changes no record."""
        await self._reserve(1)
        event = self._number(kind, vm_id, owner, data)
        await self._keep(event, self._store.note, event)

    async def finish_removal(self, vm_id: str, owner: str) -> None:
        """Publish and complete the removal of a VM that an earlier supervisor began."""
        await self.note(EventKind.DELETED, vm_id, owner=owner)
        await _in_thread(self._store.finish_removal, vm_id)

    async def remove(self, vm_id: str, owner: str) -> None:
        """Remove a VM's directory, then publish its removal."""
        await self._reserve(1)
        event = self._number(EventKind.DELETED, vm_id, owner, {})
        await self._keep(event, self._store.remove, vm_id, event)

    @asynccontextmanager
    async def follow(
        self,
        after: int | None,
        vm_ids: Callable[[], Iterable[str]],
        wants: Callable[[Event], bool] = everything,
    ) -> AsyncIterator[tuple[EventsOnRecord, trio.MemoryReceiveChannel[Event]]]:
        """The events on record with a number over ``after``, and a channel of later events.

        The channel ends if its reader falls behind, and when the supervisor stops.

        :param after: None for no events on record
        :param vm_ids: the VMs whose events on record are read; the channel has events of all VMs.
            Asked when the channel is there: a VM that came before it must not be in neither
        :param wants: which of all these events the reader is told
        """
        with self.events.subscribe(wants) as channel:
            last = self.sequence
            begin = last if after is None else after
            yield EventsOnRecord(self, begin, last, tuple(vm_ids()), wants), channel

    async def page(self, after: int, vm_ids: Iterable[str], limit: int) -> list[Event]:
        """The next events on record with a number over ``after``: ``limit`` of them at most."""
        read = partial(self._store.events_after, after, vm_ids, limit)
        return await trio.to_thread.run_sync(read, limiter=_readers)

    async def _keep(self, event: Event, write: Callable[..., None], *args: Any) -> None:
        try:
            await _in_thread(write, *args)
        except (OSError, RuntimeError) as error:
            log.error("event cannot be written", vm=event.vm_id, problem=self._problem(error))
        finally:
            self._publish(event.sequence, event)

    def _problem(self, error: OSError | RuntimeError) -> str:
        if isinstance(error, OSError):
            return file_errors.describe(error, self._store.tmp)[0]
        return str(error)

    async def _reserve(self, count: int) -> None:
        """Reserve numbers on disk if fewer than ``count`` are left.

        Number the events before anything else is awaited: then nobody else has taken them.
        """
        if self._issued + count <= self._reserved:
            return
        with trio.CancelScope(shield=True):
            async with self._reserving:
                if self._issued + count <= self._reserved:
                    return
                try:
                    last = self._issued + count
                    self._reserved = await _in_thread(self._store.reserve, last)
                except (OSError, RuntimeError) as error:
                    problem = self._problem(error)
                    log.error("event numbers cannot be reserved", problem=problem)

    def _number(
        self, kind: EventKind, vm_id: str | None, owner: str, data: Mapping[str, Any]
    ) -> Event:
        self._issued += 1
        return Event(self._issued, datetime.now(UTC), vm_id, kind, data, owner)

    def _publish(self, sequence: int, event: Event | None) -> None:
        self._written[sequence] = event
        while self.sequence + 1 in self._written:
            self.sequence += 1
            written = self._written.pop(self.sequence)
            if written:
                self.counted[written.kind] += 1
                self.events.send(written)


class EventsOnRecord:
    """Yields events in their order, of which few are in memory at a time. May be left early.

    :param after: the number before the first event
    :param last: the greatest number that an event may have
    :param vm_ids: of these VMs and of the supervisor
    :param wants: which of these events are yielded
    :ivar last: the same
    """

    def __init__(
        self,
        journal: Journal,
        after: int,
        last: int,
        vm_ids: tuple[str, ...],
        wants: Callable[[Event], bool],
    ) -> None:
        self._journal = journal
        self._after = after
        self.last = last
        self._vm_ids = vm_ids
        self._wants = wants
        self._page: deque[Event] = deque()

    def __aiter__(self) -> EventsOnRecord:
        return self

    async def __anext__(self) -> Event:
        while not self._wants(event := await self._next()):
            pass
        return event

    async def _next(self) -> Event:
        if not self._page and self._after < self.last:
            self._page.extend(await self._journal.page(self._after, self._vm_ids, _PAGE))
        if not self._page or self._page[0].sequence > self.last:
            raise StopAsyncIteration
        event = self._page.popleft()
        self._after = event.sequence
        return event


def _rebuildable(record: Record) -> dict[str, Any]:
    """The data of a VM's first event, from which `recovery` rebuilds a damaged record."""
    options = record.options
    return {
        "state": record.status.state,
        "reason": record.status.reason,
        "purpose": record.purpose,
        "ttl_s": options.ttl_s,
        "restart": options.restart,
        "keep_disk": options.keep_disk,
        "forwards": options.forwards,
        **({"dials": True} if options.dials else {}),
        **(
            {"tee": options.tee, "tee_policy": options.tee_policy, "bound_to": record.bound_to}
            if record.options.technology
            else {}
        ),
    }


async def _in_thread(fn: Callable[..., Any], *args: Any) -> Any:
    # The events have their numbers already: a task that is cancelled while it waits for a thread
    # must still write them.
    began = trio.current_time()
    try:
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(fn, *args, limiter=_writers)
    finally:
        took_s = trio.current_time() - began
        if took_s > _SLOW_S:
            # Whoever waits for the change to be seen learns here why it was late.
            log.warning("the disk of tmp/ is slow", write=fn.__name__, took_s=round(took_s, 1))
