"""``GET /events`` in a fleet: the events of all members in one answer.

Each host numbers its own events. So an id here is a `Position` among those of all hosts, and any
member can go on after it. Another member is asked for its own events only; its ids are positions
with itself in them alone.
"""

from __future__ import annotations

import heapq
import re
import time
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import httpx
import structlog
import trio
from quart.wrappers.response import ResponseBody

from supervisor.api import trace
from supervisor.api.callers import current, standing
from supervisor.api.fleet.asked import Asked
from supervisor.api.http.event_stream import (
    BEGIN,
    KEEP_ALIVE,
    Part,
    lines,
    message,
    messages,
    only_id,
)
from supervisor.errors import InvalidRequest, MemberBroke, Unauthenticated, UnknownCertificate
from supervisor.fleet.positions import Place, Position
from supervisor.state.record import moment
from supervisor.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
    from contextlib import AbstractContextManager

    from supervisor.api.http.elsewhere import Elsewhere
    from supervisor.caller import Caller
    from supervisor.runs.service import Service

log = structlog.stdlib.get_logger()

_RETRY = Backoff(0.5, 5.0)
#: A member is gone that so many keep-alives have not come from.
_MISSED = 3
#: The kind of an event that is on no record: how another host is reached.
_HOST = "host"
_KIND = re.compile(r"[a-z-]{1,40}")
#: What another member, or the way to it, may do wrong.
_BROKE = (
    MemberBroke,
    InvalidRequest,
    LookupError,
    TypeError,
    httpx.HTTPError,
    httpx.StreamError,
    ValueError,
    RecursionError,
    trio.TooSlowError,
)


@attrs.frozen
class FleetEvents:
    """As one member tells them.

    :param journal: which journal its own events are of
    """

    service: Service
    elsewhere: Elsewhere
    journal: str

    @property
    def host(self) -> str:
        return self.elsewhere.fleet.name

    def part(self, wanted: Position | None) -> Part:
        """This host's own events after a position."""

        def number(sequence: int) -> Position:
            return Position(0.0, {self.host: Place(self.journal, sequence)})

        if wanted is None:
            return Part(None, 0.0, number, places=True)
        place = wanted.places.get(self.host)
        if place is None:
            return Part(0, wanted.since, number, places=True)
        is_ours = place.journal == self.journal
        known = is_ours and place.number <= self.service.journal.sequence
        return Part(place.number if known else 0, 0.0, number, places=True)

    def stream(
        self, wanted: Position | None, one_reader: AbstractContextManager[None]
    ) -> ResponseBody:
        """All members' events, until the caller leaves or falls behind.

        :param wanted: None: new events only
        :raises AtCapacity: at once, if too many follow events already
        """
        caller, part = current(), self.part(wanted)
        following = self.service.follow(caller, part.after)
        keep_alive_s = self.service.config.timing.sse_keep_alive_s
        own = lines(following, part, nullcontext(), keep_alive_s, lambda: None)
        reading = _Reading(self.elsewhere, caller, keep_alive_s, trace.present().id, wanted)
        return _Body(reading.lines(own, one_reader, standing()))

    async def own_page(self, wanted: Position, limit: int) -> dict[str, Any]:
        """At most so many of this host's events on record.

        :returns: them, and the positions before and after them. None is between them that is not
            here, unless there are more
        """
        part, found, more = self.part(wanted), list[dict[str, Any]](), False
        after, last = part.after or 0, self.service.journal.sequence
        async for event in self.service.on_record(current(), after, None):
            if not part.has(event):
                continue
            if more := len(found) == limit:
                last = int(found[-1]["sequence"])
                break
            found.append(event.to_dict())
        places = {"after": str(part.number(after)), "last": str(part.number(last))}
        return {"host": self.host, **places, "more": more, "events": found}

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
    """One host's, as `FleetEvents.own_page` makes it."""

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


@attrs.define
class _Host:
    """One host's events, as one reader gets them.

    :ivar place: after the last of them; None before the first word
    :ivar away: whether the reader was told that the host is not reached
    :ivar heard: whether the present answer has said something
    :ivar failures: times in a row that none has
    """

    name: str
    send: trio.MemorySendChannel[tuple[_Host, Place | None, dict[str, Any] | None]]
    place: Place | None
    away: bool = False
    heard: bool = False
    failures: int = 0

    async def read(self, pieces: AsyncIterable[bytes], silence_s: float) -> None:
        """Pass on what an answer has, until it ends.

        :raises Exception: one of `_BROKE`, if it is not what it should be
        """
        async with aclosing(messages(pieces)) as found:
            while True:
                with trio.fail_after(silence_s):
                    number, event = await anext(found, (None, None))
                if number is None:
                    return
                if number:
                    await self._pass_on(Position.parse(number).places[self.name], event)

    async def _pass_on(self, place: Place, event: Any) -> None:
        if event is not None and not (isinstance(event, dict) and _KIND.fullmatch(event["event"])):
            raise ValueError("it is no event")
        before, self.place = self.place, place
        self.heard, self.failures = True, 0
        if self.away:
            self.away = False
            await self._say("reached")
        if before and (before.journal != place.journal or before.number > place.number):
            await self._say("begun-anew")
        await self.send.send((self, place, event))

    async def failed(self) -> None:
        """An attempt has failed, or an answer has ended: then it is told if the next one fails."""
        self.failures += 1
        if not self.away and not self.heard:
            self.away = True
            await self._say("unreached")

    async def _say(self, state: str) -> None:
        number = self.place.number if self.place else 0
        told = {"sequence": number, "at": moment(datetime.now(UTC)), "vm": None}
        await self.send.send((self, None, {**told, "event": _HOST, "state": state}))


@attrs.define
class _Reading:
    """One reader of all members' events.

    :param begins: where it begins; None: with what happens next
    """

    elsewhere: Elsewhere
    caller: Caller
    keep_alive_s: float
    request_id: str
    begins: Position | None

    @asynccontextmanager
    async def lines(
        self,
        own: AsyncGenerator[bytes],
        one_reader: AbstractContextManager[None],
        check_again: Callable[[], None],
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """:param own: this host's part, which ends with the supervisor, or if the reader is slow"""
        # Without a buffer: a reader that is slow slows the members, each of which cuts it off.
        send, receive = trio.open_memory_channel[Any](0)
        with one_reader:
            async with (
                aclosing(own),
                trio.open_nursery() as nursery,
                aclosing(self._texts(receive, check_again)) as texts,
            ):
                nursery.start_soon(self._feed, own, send)
                yield texts
                nursery.cancel_scope.cancel()

    async def _texts(
        self, receive: trio.MemoryReceiveChannel[Any], check_again: Callable[[], None]
    ) -> AsyncGenerator[bytes]:
        """Ends if the caller may read no more; one who comes again is told why."""
        position = self.begins or Position(time.time())
        yield BEGIN
        with suppress(Unauthenticated, UnknownCertificate):
            while True:
                text = KEEP_ALIVE
                with trio.move_on_after(self.keep_alive_s):
                    try:
                        host, place, event = await receive.receive()
                    except trio.EndOfChannel:
                        return
                    # Here, and not where it came from: what is in an id has been told.
                    position = position.at(host.name, place) if place else position
                    named = event and {**event, "host": host.name}
                    text = message(position, named) if named else only_id(position)
                check_again()
                yield text

    async def _feed(self, own: AsyncIterable[bytes], send: trio.MemorySendChannel[Any]) -> None:
        async with send, trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_others, nursery, send)
            host = self._host(self.elsewhere.fleet.name, send)
            await host.read(own, _MISSED * self.keep_alive_s)
            nursery.cancel_scope.cancel()

    def _host(self, name: str, send: trio.MemorySendChannel[Any]) -> _Host:
        return _Host(name, send, self.begins.places.get(name) if self.begins else None)

    async def _follow_others(
        self, nursery: trio.Nursery, send: trio.MemorySendChannel[Any]
    ) -> None:
        """Also those that come later, and those that the reader has heard before."""
        members, since = self.elsewhere.fleet.members, Position(time.time())
        followed, begins = {self.elsewhere.fleet.name}, self.begins
        known = set(begins.places) if begins else set()
        while True:
            changed = members.changed.next()
            for name in sorted((known | set(members.hosts)) - followed):
                followed.add(name)
                nursery.start_soon(self._follow, self._host(name, send), begins, begins or since)
            # Of one that comes later nothing is missed.
            begins = begins or since
            await changed.wait()

    async def _follow(self, host: _Host, wanted: Position | None, later: Position) -> None:
        """Tell what happens on another host, again from where that stopped, until cancelled.

        :param later: from where on, if it has not been reached the first time
        """
        members = self.elsewhere.fleet.members
        while True:
            if host.name not in members.hosts:
                await host.failed()
                await members.wait_known(host.name)
            host.heard = False
            try:
                async with self._opened(host.name, wanted) as pieces:
                    await host.read(pieces, _MISSED * self.keep_alive_s)
            except _BROKE as error:
                log.info("no events of a host", host=host.name, problem=repr(error))
            await host.failed()
            wanted = later.at(host.name, host.place) if host.place else later
            await trio.sleep(_RETRY.wait_s(host.failures))

    @asynccontextmanager
    async def _opened(
        self, name: str, wanted: Position | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Another member's answer."""
        query = f"?{urlencode({'after': str(wanted.of(name))})}" if wanted else ""
        asked = Asked(self.caller, "GET", f"/events{query}", request_id=self.request_id)
        answer = await self.elsewhere.begin(name, asked)
        try:
            if answer.status_code != HTTPStatus.OK:
                raise MemberBroke(f"the member {name} answers {answer.status_code}")
            yield answer.aiter_raw()
        finally:
            with trio.move_on_after(1, shield=True):
                await answer.aclose()


class _Body(ResponseBody):
    """An answer's body that is made within a context."""

    def __init__(self, opened: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._opened = opened

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return await self._opened.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.__aexit__(*error)
