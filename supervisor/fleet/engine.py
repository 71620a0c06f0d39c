"""What a fleet asks of its broker: records with revisions, leases, a queue, and calls.

Nothing here is trusted to be exact but `update` and `create`: of all who change a record that they
saw with the same revision, one succeeds. A message of the queue may come twice, late or never, and
an acknowledgement proves nothing; both are hints to look at a record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import trio


#: Longer than any run waits. Its record as queued goes then, and its message: what a host put there
#: just before it was lost, and what no host serves any more.
QUEUED_S = 24 * 3600


class Conflict(Exception):
    """Somebody else has changed the record, or made it before."""


@attrs.frozen
class Entry:
    """A record as it is kept.

    :param value: None if it was removed, or its time has run out
    :param revision: what `Engine.update` wants to see
    :param expired: whether its time has run out, and nobody has removed it
    """

    key: str
    value: bytes | None
    revision: int
    expired: bool = False


@attrs.frozen
class Message:
    """One of the queue.

    :param token: what `Engine.done` and `Engine.give_back` want to see
    :param number: lower than that of any message, of whatever kind, that was put in later
    """

    body: bytes
    token: str
    number: int


class Engine(Protocol):
    """One member's connection. Each method may raise FleetUnavailable."""

    async def get(self, table: str, key: str) -> Entry | None:
        """The record as a majority has it; None if there is none."""

    async def create(self, table: str, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Make a record, and return its revision.

        :param ttl_s: after so many seconds without a change it is removed; whole ones
        :raises Conflict: if there is one
        """

    async def update(
        self, table: str, key: str, value: bytes, revision: int, ttl_s: float | None = None
    ) -> int:
        """Change a record, and return its new revision.

        :raises Conflict: if its revision is another one
        """

    async def remove(self, table: str, key: str, revision: int) -> None:
        """:raises Conflict: as `update`"""

    def watch(
        self, table: str, key: str = ">"
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Entry | None]]:
        """Every record, or the one with this key, as it is and as it changes.

        None comes once all that were there have come. The channel ends when changes may have been
        missed: then watch again.
        """

    async def enqueue(self, kind: str, body: bytes, once: str) -> None:
        """Put a message into the queue.

        :param kind: who wants it; a word
        :param once: a second message with the same text within two minutes is dropped
        """

    async def offer(self, kind: str) -> None:
        """Have the queue keep messages of this kind apart. More than once does no harm."""

    async def pull(self, kind: str, patience_s: float, rank: int) -> Message | None:
        """Wait for a message; None if none came in this time.

        :param rank: who has a lower one is served first
        """

    async def done(self, message: Message) -> None:
        """It need not come again."""

    async def give_back(self, message: Message) -> None:
        """It is for another one, at once."""

    def answering(
        self, host: str, answer: Callable[[str, bytes], Awaitable[bytes]]
    ) -> AbstractAsyncContextManager[None]:
        """Have calls to this host, and to all, answered within the body.

        :param answer: gets the subject and the body. What it raises is logged; no answer follows
        """

    async def call(self, host: str, subject: str, body: bytes, patience_s: float) -> bytes | None:
        """What that host answers; None if it does not."""

    async def ask_all(
        self, subject: str, body: bytes, patience_s: float, hosts: int
    ) -> bytes | None:
        """The first answer of any host that is not empty; empty if so many hosts have none; None if
        fewer have answered in this time.
        """
