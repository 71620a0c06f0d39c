"""What is on record of a VM, what the next write adds, and who waits for a change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from supervisor.state.record import EventKind, Phase
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.qemu.host import Clock
    from supervisor.state.journal import Journal, News
    from supervisor.state.record import Record
    from supervisor.state.status import Status

log = structlog.stdlib.get_logger()


class OnRecord:
    """One VM's record. Only the methods here change it.

    :ivar record: what is written in the VM's directory. A change is seen once it is on disk, or
        once the disk has refused it
    """

    def __init__(
        self, record: Record, journal: Journal, clock: Clock, requested_s: float | None
    ) -> None:
        """
        :param requested_s: when its run was asked for, by ``clock``; None for now
        """
        self.record = record
        self.clock = clock
        self._journal = journal
        self._writing = trio.Lock()
        self._changed = Signal()
        self._phases: dict[str, float] = dict(record.phases)
        #: What the next commit writes.
        self._news: list[News] = []
        self._changes: dict[str, Any] = {}
        self._requested_s = clock.boottime_s() if requested_s is None else requested_s

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def ended(self) -> bool:
        return self.record.ended

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is evaluated after every change of the VM."""
        await self._changed.until(condition)

    def notify(self) -> None:
        """Have every ``until`` evaluate its condition again."""
        self._changed.notify()

    # --- changes ----------------------------------------------------------------------------

    async def commit(self, kind: EventKind, data: Mapping[str, Any], **changes: Any) -> None:
        """Write a change and the event that made it; then let it be seen.

        Not cancelled half-way: what happened is on record.
        """
        self.defer(kind, data, **changes)
        await self.write_deferred()

    async def commit_with(
        self, before: Callable[[], object], kind: EventKind, data: Mapping[str, Any], **changes: Any
    ) -> None:
        """The same of a change that tells of a file.

        :param before: writes the file; blocking
        :raises Exception: what it raises; then nothing has changed
        """
        with trio.CancelScope(shield=True):
            async with self._writing:
                await self._write((kind, data), before=before, **changes)
        self.notify()

    async def commit_unless_ended(
        self, kind: EventKind, data: Mapping[str, Any], **changes: Any
    ) -> None:
        """The same of what a caller has done, whose answer may come after the VM's end."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self.record.ended:
                    return
                await self._write((kind, data), **changes)
        self.notify()

    async def write_deferred(self) -> None:
        """Write what has been put off, if anything."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._news:  # else the writer before us has written ours, too
                    await self._write()
        self.notify()

    async def _write(
        self,
        *more: News,
        required: bool = False,
        before: Callable[[], object] | None = None,
        **changes: Any,
    ) -> None:
        """Write what has been put off, and more. ``required`` and ``before`` as of `Journal`."""
        news, deferred = self._news, self._changes
        self._news, self._changes = [], {}
        is_made = before is None

        def write_first() -> None:
            nonlocal is_made
            if before:
                before()
                is_made = True

        changed = attrs.evolve(self.record, **deferred | changes | {"phases": dict(self._phases)})
        try:
            self.record = await self._journal.commit(
                changed, *news, *more, required=required, before=write_first if before else None
            )
        except BaseException:
            if not is_made:  # what was put off stays so
                self._news[:0], self._changes = news, deferred | self._changes
            raise

    def defer(self, kind: EventKind, data: Mapping[str, Any], **changes: Any) -> None:
        """Add a change and its event to the next commit.

        For facts that another supervisor could find out by itself: they may be lost in a crash.
        """
        self._news.append((kind, data))
        self.defer_untold(**changes)

    def defer_untold(self, **changes: Any) -> None:
        """Add a change to the next commit that another event tells of."""
        self._changes |= changes

    async def set_status(self, status: Status, **changes: Any) -> None:
        if status != self.status or changes:
            log.info("state", vm=self.id, state=status.state, reason=status.reason)
            data = {"state": status.state, "reason": status.reason}
            await self.commit(EventKind.STATE, data, status=status, **changes)

    async def set_status_untold(self, status: Status) -> None:
        """Change the state without an event. The next commit writes it.

        For states that another supervisor could find out by itself: they may be lost in a crash.
        """
        with trio.CancelScope(shield=True):
            async with self._writing:  # else a commit under way would undo it
                self.record = attrs.evolve(self.record, status=status)
        self.notify()

    @property
    def requested_at(self) -> float:
        """When its run was asked for, in seconds since 1970."""
        return time.time() - (self.clock.boottime_s() - self._requested_s)

    def reached(self, phase: Phase) -> bool:
        """Note when a step was first reached; the next commit writes it. Whether it was now."""
        first = phase not in self._phases
        if first:
            self._phases[phase] = self.clock.boottime_s() - self._requested_s
        return first

    def forget_phases(self, *phases: Phase) -> None:
        """Have these steps be noted again."""
        for phase in phases:
            self._phases.pop(phase, None)

    def was_reached(self, phase: Phase) -> bool:
        """Whether `reached` was called for it, perhaps by an earlier supervisor."""
        return phase in self._phases
