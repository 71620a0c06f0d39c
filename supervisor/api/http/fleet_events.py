"""``GET /events`` in a fleet: the events of all members in one answer.

An id here is a `Position` among those of all hosts.
"""

from __future__ import annotations

import heapq
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
from quart.wrappers.response import ResponseBody

from supervisor.api.callers import current, standing
from supervisor.api.event_stream import BEGIN, KEEP_ALIVE, message, only_id
from supervisor.errors import Unauthenticated, UnknownCertificate
from supervisor.fleet.positions import Place, Position

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractContextManager

    from supervisor.api.fleet.events import FleetEvents, Told
    from supervisor.api.http.elsewhere import Elsewhere


@attrs.frozen
class EventsOfAll:
    """As one member answers with them."""

    events: FleetEvents
    elsewhere: Elsewhere

    def stream(
        self, wanted: Position | None, one_reader: AbstractContextManager[None]
    ) -> ResponseBody:
        """All members' events, until the caller leaves or falls behind.

        :param wanted: None: new events only
        :raises AtCapacity: at once, if too many follow events already
        """
        return _Body(_texts(self.events.told(wanted), one_reader, standing()))

    async def own_page(self, wanted: Position, limit: int) -> dict[str, Any]:
        """At most so many of this host's events on record.

        :returns: them, and the positions before and after them. None is between them that is not
            here, unless there are more
        """
        service, part = self.events.service, self.events.part(wanted)
        found, more = list[dict[str, Any]](), False
        after, last = part.after or 0, service.journal.sequence
        async for event in service.on_record(current(), after, None):
            if not part.has(event):
                continue
            if more := len(found) == limit:
                last = int(found[-1]["sequence"])
                break
            found.append(event.to_dict())
        places = {"after": str(part.number(after)), "last": str(part.number(last))}
        return {"host": self.events.host, **places, "more": more, "events": found}

    async def page(self, wanted: Position, limit: int) -> dict[str, Any]:
        """At most so many of all members' events on record, by their times."""
        here = await self.own_page(wanted, limit)
        target = f"/events?{urlencode({'after': str(wanted), 'limit': limit})}"
        answers, missing = await self.elsewhere.list(here, None, _Page.read, target)
        pages = [_Page.read(answer) for answer in answers]
        # Those of one host stay in their order, whatever its clock says.
        merged = list(heapq.merge(*(page.events for page in pages), key=lambda one: one["at"]))
        taken, more = merged[:limit], len(merged) > limit
        for page in pages:
            of_it = [one["sequence"] for one in taken if one["host"] == page.host]
            if len(of_it) == len(page.events):
                place, more = page.last, more or page.more
            else:
                place = Place(page.after.journal, of_it[-1]) if of_it else page.after
            wanted = wanted.at(page.host, place)
        following = f"/events?{urlencode({'after': str(wanted), 'limit': limit})}"
        return {"events": taken, "next": following if more else None, "missing": missing}


@attrs.frozen
class _Page:
    """One host's, as `EventsOfAll.own_page` makes it."""

    host: str
    after: Place
    last: Place
    more: bool
    events: list[dict[str, Any]]

    @classmethod
    def read(cls, answer: dict[str, Any]) -> _Page:
        """:raises Exception: if it is none"""
        host = answer["host"]
        after, last = (Position.parse(answer[name]).places[host] for name in ("after", "last"))
        events = [
            {**one, "sequence": int(one["sequence"]), "at": str(one["at"]), "host": host}
            for one in answer["events"]
        ]
        return cls(host, after, last, bool(answer["more"]), events)


@asynccontextmanager
async def _texts(
    opened: AbstractAsyncContextManager[AsyncIterator[Told | None]],
    one_reader: AbstractContextManager[None],
    check_again: Callable[[], None],
) -> AsyncIterator[AsyncIterator[bytes]]:
    """What a reader is told as server-sent events."""

    async def texts(told: AsyncIterator[Told | None]) -> AsyncGenerator[bytes]:
        """Ends if the caller may read no more; one who comes again is told why."""
        yield BEGIN
        with suppress(Unauthenticated, UnknownCertificate):
            async for one in told:
                check_again()
                if one is None:
                    yield KEEP_ALIVE
                else:
                    yield _text(one)

    with one_reader:
        async with opened as told, aclosing(texts(told)) as made:
            yield made


def _text(told: Told) -> bytes:
    if told.event is None:
        return only_id(told.position)
    return message(told.position, told.event | {"position": str(told.position)})


class _Body(ResponseBody):
    """An answer's body that is made within a context."""

    def __init__(self, opened: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._opened = opened

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return await self._opened.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.__aexit__(*error)
