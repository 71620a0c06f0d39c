"""The hosts of a fleet: this one's lease, and what the others tell."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import FleetUnavailable
from supervisor.fleet.engine import Conflict
from supervisor.fleet.facts import HostFacts, narrowed
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.fleet.engine import Engine
    from supervisor.fleet.facts import Needs

log = structlog.stdlib.get_logger()

#: After so long without a sign of it a host is lost, and how often it gives one.
LEASE_S, _RENEW_S = 10.0, 3.0
#: A host holds its own lease for lost so much earlier than the others do.
_MARGIN_S = 3.0
_RETRY_S = 0.5
#: So long a host that was lost is remembered. Its operator has mended it by then, or will not.
_LOST_S = 24 * 3600.0
_MOST_NEEDS = 1000


class Members:
    """As one member sees them.

    :param look: what this host can do now
    :param now: a clock that goes on while the host sleeps, in seconds
    :ivar changed: notified when a host comes, takes a step or is lost, when this one can do more or
        less, and when its lease was taken; not when another tells of its room: a thousand always do
    :ivar complete: whether every host has been heard of that was there at first
    :ivar taken: how often our lease was taken anew, that is after it may have ended
    """

    def __init__(
        self, engine: Engine, name: str, look: Callable[[], HostFacts], now: Callable[[], float]
    ) -> None:
        self.changed = Signal()
        self.complete = False
        self.taken = 0
        self.hosts: dict[str, HostFacts] = {}
        self.name = name
        self._engine = engine
        self._look = look
        self._now = now
        self._safe_until = -1.0
        self._revision: int | None = None
        self._noticed = Signal()
        self._narrowed: dict[str, Needs] = {}
        self._gone: dict[str, float] = {}

    @property
    def lost(self) -> dict[str, float]:
        """Hosts that may have VMs and do not answer: lost in the last day, and not back; and for
        how many seconds. One that has left in good order is none.
        """
        now = self._now()
        since = {name: now - at for name, at in sorted(self._gone.items())}
        return {name: seconds for name, seconds in since.items() if seconds < _LOST_S}

    def narrowed(self, needs: Needs) -> Needs:
        """As `facts.narrowed`, of all hosts. They are many, and seldom change in what they are."""
        if len(self._narrowed) > _MOST_NEEDS:
            self._narrowed.clear()
        if needs.kind not in self._narrowed:
            self._narrowed[needs.kind] = narrowed(needs, self.hosts.values())
        return self._narrowed[needs.kind]

    def notice(self) -> None:
        """Have it look now what this host can do, and not only when the lease is due."""
        self._noticed.notify()

    @property
    def is_safe(self) -> bool:
        """Whether nobody can hold this host for lost yet."""
        return self._now() < self._safe_until

    async def wait_known(self, name: str) -> HostFacts:
        """What a host tells, once we have heard of it."""
        await self.changed.until(lambda: name in self.hosts)
        return self.hosts[name]

    async def wait_lost(self, name: str) -> None:
        """Return when a host's lease has ended."""
        await self.changed.until(lambda: name not in self.hosts)

    async def keep_lease(self) -> None:
        """Tell the others what this host can do, until cancelled."""
        told: tuple[object, ...] = ()
        due = 0.0
        while True:
            noticed, facts = self._noticed.next(), self._look()
            if facts != self.hosts.get(self.name):
                self._heard(facts)
                self.changed.notify()
            if facts.step != told or self._now() >= due:
                told, due = facts.step, self._now() + _RENEW_S
                try:
                    await self._renew(facts)
                except FleetUnavailable:
                    due = self._now() + _RETRY_S
            with trio.move_on_after(max(0.0, due - self._now())):
                await noticed.wait()

    async def renew_last(self) -> None:
        """Keep the lease for a supervisor that follows soon. To be called at the end."""
        with suppress(FleetUnavailable):
            await self._renew(self._look())
        self._safe_until = -1.0

    async def leave(self) -> None:
        """Give the lease back: the others hold this host for lost. To be called at the end."""
        self._safe_until = -1.0
        try:
            # Its revision may be new to us: the answer to the last renewal was not waited for.
            kept = await self._engine.get("hosts", self.name)
            holder = _read(kept.value or b"") if kept else None
            if kept and holder and holder.seat == self._look().seat:
                await self._engine.remove("hosts", self.name, kept.revision)
        except (FleetUnavailable, Conflict) as error:
            log.warning("the fleet is not told that this host leaves", problem=str(error))

    async def _renew(self, facts: HostFacts) -> None:
        asked_at, value = self._now(), facts.encode()
        try:
            if self._revision is None:
                raise Conflict("there is none yet")
            self._revision = await self._engine.update(
                "hosts", self.name, value, self._revision, LEASE_S
            )
        except Conflict:
            if not await self._take(facts, value):
                return
        was_safe = self.is_safe  # until now, and not only when it was asked for
        self._safe_until = asked_at + LEASE_S - _MARGIN_S
        if not was_safe:
            self.taken += 1
            log.info("member of the fleet", host=self.name)
            self.changed.notify()

    async def _take(self, facts: HostFacts, value: bytes) -> bool:
        """Take the lease, if nobody else has it. An answer may have been lost on its way to us."""
        self._revision = None
        kept = await self._engine.get("hosts", self.name)
        try:
            if kept is None:
                made = await self._engine.create("hosts", self.name, value, LEASE_S)
            else:
                holder = _read(kept.value or b"")
                if holder and holder.seat != facts.seat:
                    log.error(
                        "not a member: another supervisor has this name",
                        host=self.name,
                        at=holder.address,
                    )
                    return False
                made = await self._engine.update("hosts", self.name, value, kept.revision, LEASE_S)
        except Conflict:
            return False
        self._revision = made
        return True

    async def watch(self) -> None:
        """Hear of the others, until cancelled."""
        while True:
            with suppress(FleetUnavailable):
                await self._watch_once()
            await trio.sleep(_RETRY_S)

    async def _watch_once(self) -> None:
        seen: set[str] = set()
        async with self._engine.watch("hosts") as entries:
            async for entry in entries:
                if entry is None:
                    for name in set(self.hosts) - seen - {self.name}:
                        self._left(name, lost=True)
                    self.complete = True
                    self.changed.notify()
                    continue
                if entry.key == self.name:
                    continue  # we know better
                facts = _read(entry.value) if entry.value is not None else None
                if facts is None or facts.name != entry.key:
                    self._left(entry.key, lost=entry.expired)
                else:
                    seen.add(entry.key)
                    if entry.key not in self.hosts:
                        log.info("host joined", host=entry.key, at=facts.address)
                    self._heard(facts)

    def _heard(self, facts: HostFacts) -> None:
        before, self.hosts[facts.name] = self.hosts.get(facts.name), facts
        self._gone.pop(facts.name, None)
        if before is None or before.step != facts.step:
            self._narrowed.clear()
            self.changed.notify()

    def _left(self, name: str, *, lost: bool) -> None:
        if self.hosts.pop(name, None):
            if lost:
                self._gone[name] = self._now()
            log.warning("host lost" if lost else "host left", host=name)
            self._narrowed.clear()
            self.changed.notify()


def _read(content: bytes) -> HostFacts | None:
    try:
        return HostFacts.decode(content)
    except ValueError as error:
        log.error("a host's facts cannot be read", problem=str(error))
        return None
