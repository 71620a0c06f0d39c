"""Server-sent events: how one host's are told, and how another member reads them.

Source: the WHATWG's HTML standard, "Server-sent events".
"""

from __future__ import annotations

import json
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from supervisor.errors import Unauthenticated, UnknownCertificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
    from contextlib import AbstractContextManager

    from supervisor.runs.service import Following
    from supervisor.state.record import Event

CONTENT_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
#: The head of the answer goes out with its first bytes.
BEGIN = b": events\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

#: Whoever tells is gone if so many keep-alives have not come.
_MISSED = 3
#: Bytes; more than any event takes.
_LONGEST_MESSAGE = 1 << 20


@attrs.frozen
class Part:
    """Which of a host's events are told, and which ids they have.

    :param after: a number; None: new events only
    :param since: seconds since 1970: of those on record only later ones
    :param number: makes an event's id of its number
    :param places: whether to say where it begins even if that was asked for
    """

    after: int | None
    since: float = 0.0
    number: Callable[[int], object] = int
    places: bool = False

    def has(self, event: Event) -> bool:
        """Whether one that is on record is told."""
        return not self.since or event.at.timestamp() >= self.since


async def lines(
    following: Following,
    part: Part,
    one_reader: AbstractContextManager[object],
    keep_alive_s: float,
    check_again: Callable[[], None],
) -> AsyncGenerator[bytes]:
    """Ends if the caller may read no more; one who comes again is told why."""
    with suppress(Unauthenticated, UnknownCertificate), one_reader:
        async with following as (old, news):
            yield BEGIN
            if part.after is None:
                # So that whoever has had no event yet can go on from here, too.
                yield only_id(part.number(old.last))
            elif part.places and not part.since:
                yield only_id(part.number(part.after))
            async for event in old:
                check_again()
                if part.has(event):
                    yield message(part.number(event.sequence), event.to_dict())
            if part.places:
                yield only_id(part.number(max(part.after or 0, old.last)))
            while True:
                text = KEEP_ALIVE
                with trio.move_on_after(keep_alive_s):
                    try:
                        event = await news.receive()
                        text = message(part.number(event.sequence), event.to_dict())
                    except trio.EndOfChannel:
                        return
                check_again()
                yield text


def message(number: object, event: Mapping[str, Any]) -> bytes:
    """:param number: the event's id"""
    return f"id: {number}\nevent: {event['event']}\ndata: {json.dumps(event)}\n\n".encode()


def only_id(number: object) -> bytes:
    """Where the reader is, without an event."""
    return f"id: {number}\n\n".encode()


async def messages(pieces: AsyncIterable[bytes]) -> AsyncGenerator[tuple[str, Any]]:
    """The id and the event of each message; of a comment neither.

    :raises ValueError: if these are no such messages
    """
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n\n")
        if len(rest) > _LONGEST_MESSAGE:
            raise ValueError("a message has no end")
        for one in whole:
            told = [line.split(": ", 1) for line in one.decode().split("\n") if line[:1] != ":"]
            fields = dict(told)
            yield fields.get("id", ""), json.loads(fields.get("data", "null"))


async def heard(
    pieces: AsyncIterable[bytes], keep_alive_s: float
) -> AsyncGenerator[tuple[str, Any]]:
    """The same, from somebody who keeps it alive.

    :raises trio.TooSlowError: if there is no sign of life
    """
    async with aclosing(messages(pieces)) as found:
        while True:
            with trio.fail_after(_MISSED * keep_alive_s):
                one = await anext(found, None)
            if one is None:
                return
            yield one
