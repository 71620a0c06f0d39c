"""The runs' records at the broker: read, and changed by the steps of `ledger`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import FleetUnavailable, NotOwner
from supervisor.fleet.engine import QUEUED_S, Conflict
from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.fleet.engine import Engine

log = structlog.stdlib.get_logger()

_TABLE = "runs"
#: Any member can put anything in the queue.
_TOLD = re.compile(rb"(?P<revision>[0-9]{1,18}) (?P<run>.*)", re.DOTALL)
_ID = re.compile(r"[0-9a-f-]{36}")
KEYS = "keys"
#: How long a run that is over stays on record, and one whose agent has not got it yet.
KEPT_S = 7 * 24 * 3600.0
#: For requests that are on their way, and have its key.
_REMOVED_S = 60.0
#: For messages that are on their way. Who posts and leaves makes many.
_GIVEN_UP_S = 3600.0
_RETRY_S = 0.5
#: Characters that the log has of what is wrong with a record.
MOST_WORDS = 1000
#: What comes of reading a key's record that somebody has spoilt.
NO_HOLDER = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
#: NATS' servers wait for up to 9 s until one of them takes a lost leader's place.
_CREATE_S = 10.0


def _kept_s(run: Run) -> float | None:
    if run.state in (RunState.REPLACED, RunState.REMOVED):
        return _REMOVED_S
    if run.state is RunState.GIVEN_UP:
        return _GIVEN_UP_S
    if run.state is RunState.QUEUED:
        return QUEUED_S
    # A computation may take longer than anything here.
    return None if run.state is RunState.SENT else KEPT_S


def check_id(run_id: str) -> None:
    """:raises ValueError: if it is none of a run's; the broker takes it for a part of an address"""
    if not _ID.fullmatch(run_id):
        raise ValueError("its id is none of a run's")


def queued(told: bytes) -> tuple[Run, int]:
    """A run as `Records.told` puts it in the queue, and the revision of its record.

    :raises ValueError: if it is no such thing
    """
    found = _TOLD.fullmatch(told)
    if not found:
        raise ValueError("it is no revision and a record")
    run = Run.decode(found["run"])
    check_id(run.id)
    return run, int(found["revision"])


class Records:
    """As one member has them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Of runs that this host is about: the last record and its revision.
        self._known: dict[str, tuple[Run, int]] = {}

    async def create(self, run: Run) -> None:
        """:raises Conflict: if there is such a run"""
        try:
            revision = await self._engine.create(_TABLE, run.id, run.encode(), _kept_s(run))
        except Conflict:
            # The answer to a first try may have been lost.
            try:
                is_ours = await self.read(run.id) == run
            except NotOwner as error:  # it is on its way, among servers that have no majority
                raise FleetUnavailable(str(error)) from error
            if not is_ours:
                raise
        else:
            self._known[run.id] = run, revision

    async def create_in_time(self, run: Run) -> None:
        """The same, and give the broker the time that it takes to choose another leader."""
        with trio.move_on_after(_CREATE_S):
            while True:
                with suppress(FleetUnavailable):
                    return await self.create(run)
                await trio.sleep(_RETRY_S)
        return await self.create(run)

    async def read(self, run_id: str) -> Run:
        """As the fleet has it now; removed, if somebody has spoilt its record.

        :raises NotOwner: if there is no such run
        """
        kept = await self._engine.get(_TABLE, run_id)
        if kept is None or kept.value is None:
            self.forget(run_id)
            raise NotOwner(f"no run {run_id} is on the fleet's record")
        try:
            run = Run.decode(kept.value)
            if run.id != run_id:
                raise ValueError(f"it is run {run.id}'s")
        except ValueError as error:
            # Whoever waited until it can be read would wait for ever.
            log.error("a run's record cannot be read", run=run_id, problem=str(error)[:MOST_WORDS])
            run = Run(id=run_id, entry="", needs=Needs(), state=RunState.REMOVED)
        self._known[run_id] = run, kept.revision
        return run

    async def change(self, run_id: str, step: Callable[[Run], Run]) -> Run:
        """Take a step from the record as it is, however often others are faster.

        :raises NotOwner: if it is not allowed
        """
        while True:
            if run_id not in self._known:
                await self.read(run_id)
            run, revision = self._known[run_id]
            try:
                changed = step(run)
            except NotOwner:
                # What we know may be old, or the answer to our own step was lost.
                if await self.read(run_id) == run:
                    raise
                continue
            if changed == run:
                return run
            try:
                made = await self._engine.update(
                    _TABLE,
                    run_id,
                    changed.encode(),
                    revision,
                    _kept_s(changed),
                )
            except Conflict:
                self.forget(run_id)
                continue
            except BaseException:
                self.forget(run_id)  # whether it was changed nobody knows
                raise
            self._known[run_id] = changed, made
            return changed

    async def change_in_time(self, run_id: str, step: Callable[[Run], Run]) -> Run:
        """The same, and wait for the broker for as long as it takes."""
        while True:
            try:
                return await self.change(run_id, step)
            except FleetUnavailable:
                await trio.sleep(_RETRY_S)

    async def release_key(self, run: Run) -> None:
        """Nobody will ask for a run's answer any more. What cannot be released now runs out."""
        if not run.key:
            return
        # In a task of its own: a record that somebody has spoilt must not end this supervisor.
        with suppress(FleetUnavailable, Conflict, *NO_HOLDER):
            kept = await self._engine.get(KEYS, run.key)
            if kept and kept.value and json.loads(kept.value)["run"] == run.id:
                await self._engine.remove(KEYS, run.key, kept.revision)

    def told(self, run: Run) -> bytes:
        """A run as it is put in the queue, with what it takes to change its record."""
        known, revision = self._known.get(run.id, (None, 0))
        return b"%d %s" % (revision if known == run else 0, run.encode())

    def hear(self, told: bytes) -> None:
        """Take what was told for what is on record, until a change says otherwise."""
        run, revision = queued(told)
        self._known[run.id] = run, revision

    def hear_of(self, run: Run, told: bytes) -> bool:
        """The same, if it is told of this run."""
        with suppress(ValueError):
            if queued(told)[0] == run:
                self.hear(told)
                return True
        return False

    def known(self, run_id: str) -> Run | None:
        """As this host had it last."""
        return self._known[run_id][0] if run_id in self._known else None

    def forget(self, run_id: str) -> None:
        self._known.pop(run_id, None)
