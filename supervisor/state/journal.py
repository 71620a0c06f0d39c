"""Changes of VMs: written down first, then told, in one order for everybody.

Writing is done in worker threads, several VMs at a time; telling waits until everything
with a lower number is written, so a reader that has seen number n has seen all before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from supervisor.state.broadcast import Broadcast
from supervisor.state.record import Event, EventKind, Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from supervisor.state.store import Store

log = structlog.stdlib.get_logger()

#: An event's kind and its data, before it has a number.
News = tuple[EventKind, Mapping[str, Any]]

#: Writes wait for nothing but other writes; whoever reads much does not read all at once.
_writers, _readers = trio.CapacityLimiter(16), trio.CapacityLimiter(2)


class Journal:
    """Numbers, writes and publishes events. ``events`` is the broadcast of them.

    :param sequence: of the last event on record
    :param reader_buffer: events that a reader may lag behind before its stream ends
    """

    def __init__(self, store: Store, sequence: int, reader_buffer: int) -> None:
        self.events: Broadcast[Event] = Broadcast(reader_buffer)
        #: Every event up to this one is written, and told.
        self.sequence = sequence
        self._store = store
        self._issued = sequence
        self._reserved = sequence
        self._written: dict[int, Event | None] = {}

    async def create(self, record: Record, computation: bytes | None) -> Record:
        """Begin a VM's record, with its directory and what it is to compute, if anything.

        :raises OSError: if that cannot be written; then there is nothing
        """
        event = self._number(EventKind.STATE, record.id, _first(record))
        record = attrs.evolve(record, sequence=event.sequence)
        written = False
        try:
            await _in_thread(self._store.create, record, [event], computation)
            written = True
        finally:
            self._publish(event.sequence, event if written else None)
        return record

    async def commit(self, record: Record, *news: News) -> Record:
        """Keep a changed record and the events that changed it.

        A VM goes on also where its record cannot be written: the change is told, an error is
        logged, and the next commit writes what is missing.
        """
        events = [self._number(kind, record.id, data) for kind, data in news]
        record = attrs.evolve(record, sequence=events[-1].sequence)
        try:
            await _in_thread(self._store.write, record, events)
        except (OSError, RuntimeError) as error:  # no room, no descriptor, no thread
            log.error("record cannot be written", vm=record.id, problem=str(error))
        finally:
            for event in events:
                self._publish(event.sequence, event)
        return record

    async def note(self, kind: EventKind, vm_id: str | None, **data: Any) -> None:
        """Keep and tell an event that changes no record."""
        event = self._number(kind, vm_id, data)
        await self._keep(event, self._store.note, event)

    async def finish_removal(self, vm_id: str) -> None:
        """Do what was left of a removal that was cut short, and tell of it."""
        await self.note(EventKind.DELETED, vm_id)
        await _in_thread(self._store.finish_removal, vm_id)

    async def remove(self, vm_id: str) -> None:
        """Remove a VM's directory, and tell so."""
        event = self._number(EventKind.DELETED, vm_id, {})
        await self._keep(event, self._store.remove, vm_id, event)

    @asynccontextmanager
    async def follow(
        self, after: int | None, vm_ids: Iterable[str]
    ) -> AsyncIterator[tuple[list[Event], trio.MemoryReceiveChannel[Event]]]:
        """Events on record with a number over ``after``, if given; and those that come.

        The channel ends when its reader has fallen behind, and when the supervisor stops.

        :param vm_ids: whose records to read; what comes is of any VM
        """
        with self.events.subscribe() as news:
            known = self.sequence
            old = [] if after is None else await self._after(after, vm_ids)
            yield [event for event in old if event.sequence <= known], news

    async def _after(self, sequence: int, vm_ids: Iterable[str]) -> list[Event]:
        return await trio.to_thread.run_sync(
            self._store.events_after, sequence, tuple(vm_ids), limiter=_readers
        )

    async def _keep(self, event: Event, write: Callable[..., None], *args: Any) -> None:
        try:
            await _in_thread(write, *args)
        except (OSError, RuntimeError) as error:
            log.error("event cannot be written", vm=event.vm_id, problem=str(error))
        finally:
            self._publish(event.sequence, event)

    def _number(self, kind: EventKind, vm_id: str | None, data: Mapping[str, Any]) -> Event:
        if self._issued >= self._reserved:
            try:
                self._reserved = self._store.reserve(self._issued)
            except OSError as error:
                log.error("numbers of events cannot be reserved", problem=str(error))
        self._issued += 1
        return Event(self._issued, datetime.now(UTC), vm_id, kind, data)

    def _publish(self, sequence: int, event: Event | None) -> None:
        self._written[sequence] = event
        while self.sequence + 1 in self._written:
            self.sequence += 1
            written = self._written.pop(self.sequence)
            if written:
                self.events.send(written)


def _first(record: Record) -> dict[str, Any]:
    """What a record could be rebuilt from, were it damaged."""
    options = record.options
    return {
        "state": record.status.state,
        "reason": record.status.reason,
        "purpose": record.purpose,
        "ttl_s": options.ttl_s,
        "restart": options.restart,
        "keep_disk": options.keep_disk,
    }


async def _in_thread(fn: Callable[..., Any], *args: Any) -> Any:
    # A thread cannot be cancelled, and half a change must not be: what is begun is finished.
    with trio.CancelScope(shield=True):
        return await trio.to_thread.run_sync(fn, *args, limiter=_writers)
