"""The events of all members, as one reader gets them at any of them.

Each host numbers its own events. So where a reader is, is a `Position` among those of all hosts,
and any member can go on after it. Another member is asked for its own events only; its ids are
positions with itself in them alone.
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs
import structlog
import trio

from supervisor.api import trace
from supervisor.api.callers import current
from supervisor.api.event_stream import Part, heard, lines
from supervisor.api.fleet.asked import Asked
from supervisor.errors import FleetError, InvalidRequest, MemberBroke
from supervisor.fleet.positions import Place, Position
from supervisor.state.record import moment
from supervisor.waiting import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx

    from supervisor.api.fleet.others import Others
    from supervisor.caller import Caller
    from supervisor.runs.service import Service

log = structlog.stdlib.get_logger()

_RETRY = Backoff(0.5, 5.0)
#: The kind of an event that is on no record: how another host is reached.
_HOST = "host"
_KIND = re.compile(r"[a-z-]{1,40}")
#: What another member, or the way to it, may do wrong.
_BROKE = (FleetError, InvalidRequest, LookupError, TypeError, ValueError)


@attrs.frozen
class Told:
    """One thing that a reader is told.

    :param position: after it
    :param event: as JSON, with ``host``; None if there is none yet, and this is where to go on
    """

    position: Position
    event: dict[str, Any] | None


@attrs.frozen
class FleetEvents:
    """As one member tells them.

    :param journal: which journal its own events are of
    """

    service: Service
    others: Others
    journal: str

    @property
    def host(self) -> str:
        return self.others.fleet.name

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

    def told(
        self, wanted: Position | None
    ) -> AbstractAsyncContextManager[AsyncIterator[Told | None]]:
        """All members' events for the present caller, until this supervisor stops or the reader
        falls behind; None whenever there was nothing for as long as between two keep-alives.

        :param wanted: None: new events only
        :raises AtCapacity: at once, if too many follow events already
        """
        caller, part = current(), self.part(wanted)
        following = self.service.follow(caller, part.after)
        keep_alive_s = self.service.config.timing.sse_keep_alive_s
        own = lines(following, part, nullcontext(), keep_alive_s, lambda: None)
        reading = Reading(self.others, caller, keep_alive_s, trace.present().id, wanted)
        return reading.told(own)


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

    async def read(self, heard: AsyncGenerator[tuple[str, Any]]) -> None:
        """Pass on what an answer has, until it ends.

        :raises Exception: one of `_BROKE`, if it is not what it should be
        """
        async with aclosing(heard):
            async for number, event in heard:
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
class Reading:
    """One reader of all members' events.

    :param begins: where it begins; None: with what happens next
    """

    others: Others
    caller: Caller
    keep_alive_s: float
    request_id: str
    begins: Position | None

    @asynccontextmanager
    async def told(self, own: AsyncGenerator[bytes]) -> AsyncIterator[AsyncIterator[Told | None]]:
        """:param own: this host's part, which ends with the supervisor, or if the reader is slow"""
        # Without a buffer: a reader that is slow slows the members, each of which cuts it off.
        send, receive = trio.open_memory_channel[Any](0)
        async with (
            aclosing(own),
            trio.open_nursery() as nursery,
            aclosing(self._each(receive)) as told,
        ):
            nursery.start_soon(self._feed, own, send)
            yield told
            nursery.cancel_scope.cancel()

    async def _each(self, receive: trio.MemoryReceiveChannel[Any]) -> AsyncGenerator[Told | None]:
        position = self.begins or Position(time.time())
        yield Told(position, None)
        while True:
            told = None
            with trio.move_on_after(self.keep_alive_s):
                try:
                    host, place, event = await receive.receive()
                except trio.EndOfChannel:
                    return
                # Here, and not where it came from: what is in a position has been told.
                position = position.at(host.name, place) if place else position
                told = Told(position, event and {**event, "host": host.name})
            yield told

    async def _feed(self, own: AsyncGenerator[bytes], send: trio.MemorySendChannel[Any]) -> None:
        async with send, trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_others, nursery, send)
            host = self._host(self.others.fleet.name, send)
            await host.read(heard(own, self.keep_alive_s))
            nursery.cancel_scope.cancel()

    def _host(self, name: str, send: trio.MemorySendChannel[Any]) -> _Host:
        return _Host(name, send, self.begins.places.get(name) if self.begins else None)

    async def _follow_others(
        self, nursery: trio.Nursery, send: trio.MemorySendChannel[Any]
    ) -> None:
        """Also those that come later, and those that the reader has heard before."""
        members, since = self.others.fleet.members, Position(time.time())
        followed, begins = {self.others.fleet.name}, self.begins
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
        members = self.others.fleet.members
        while True:
            if host.name not in members.hosts:
                await host.failed()
                await members.wait_known(host.name)
            host.heard = False
            try:
                answer = await self._ask(host.name, wanted)
                await host.read(self.others.heard(host.name, answer, self.keep_alive_s))
            except _BROKE as error:
                log.info("no events of a host", host=host.name, problem=repr(error))
            await host.failed()
            wanted = later.at(host.name, host.place) if host.place else later
            await trio.sleep(_RETRY.wait_s(host.failures))

    async def _ask(self, name: str, wanted: Position | None) -> httpx.Response:
        """Another member's answer."""
        query = f"?{urlencode({'after': str(wanted.of(name))})}" if wanted else ""
        asked = Asked(self.caller, "GET", f"/events{query}", request_id=self.request_id)
        answer = await self.others.begin(name, asked)
        if answer.status_code != HTTPStatus.OK:
            await self.others.read(name, answer)
            raise MemberBroke(f"the member {name} answers {answer.status_code}")
        return answer
