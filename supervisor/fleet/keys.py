"""Idempotency keys of all members: of two requests with one key, one is a run."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

import attrs
import cattrs
import structlog
import trio

from supervisor.errors import KeyReused, NotOwner
from supervisor.fleet.engine import Conflict
from supervisor.fleet.ledger import Run
from supervisor.fleet.records import KEPT_S, KEYS, MOST_WORDS, NO_HOLDER

if TYPE_CHECKING:
    from supervisor.fleet.engine import Engine
    from supervisor.fleet.records import Records

log = structlog.stdlib.get_logger()

#: A key comes before its run. For one that is not there after so long another one may come.
_RUN_COMES_S = 10.0
_LOOK_S = 0.25


@attrs.frozen
class _Holder:
    """What has a key.

    :param hash: of the request
    :param at: when it claimed the key, in seconds since 1970
    """

    run: str
    hash: str
    at: float


_converter = cattrs.Converter()


class Keys:
    """As one member has them. A key belongs to its owner, and goes with its run."""

    def __init__(self, engine: Engine, records: Records) -> None:
        self._engine = engine
        self._records = records

    async def claim(self, run: Run, owner: str, key: str, request_hash: str) -> Run:
        """The run that has the key: this one, or the one that had it before.

        :param run: not on record yet
        :param request_hash: of the request that has the key
        :raises KeyReused: if the key belongs to another request
        :raises FleetUnavailable: if the fleet's record does not answer
        """
        name = hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
        run = attrs.evolve(run, key=name)
        value = json.dumps(attrs.asdict(_Holder(run.id, request_hash, time.time()))).encode()
        while True:
            try:
                await self._engine.create(KEYS, name, value, KEPT_S)
                return run
            except Conflict:
                kept = await self._engine.get(KEYS, name)
            if kept is None or kept.value is None:
                continue
            if kept.value == value:
                return run  # the answer to our own request was lost
            try:
                holder = _converter.structure(json.loads(kept.value), _Holder)
            except (cattrs.BaseValidationError, *NO_HOLDER) as error:
                log.error(
                    "an idempotency key's record cannot be read", problem=str(error)[:MOST_WORDS]
                )
                raise KeyReused(
                    f"what run has the idempotency key {key!r} cannot be read",
                    advice="if that run is known to be over, use another key",
                ) from error
            if holder.hash != request_hash:
                raise KeyReused(f"the idempotency key {key!r} belongs to another run")
            before = await self._run(holder.run, holder.at)
            if before and not before.state.frees_key:
                return before
            try:
                if before is None:
                    # Whoever had the key may have been stopped, or its clock be wrong: then that
                    # run comes too late.
                    gone = attrs.evolve(run, id=holder.run, key="").given_up()
                    await self._records.create(gone)
                else:
                    await self._records.change(before.id, Run.replaced)
                self._records.forget(holder.run)
                await self._engine.update(KEYS, name, value, kept.revision, KEPT_S)
                return run
            except (Conflict, NotOwner):
                continue  # another repetition was faster, or that run has come, or goes on

    async def _run(self, run_id: str, at: float) -> Run | None:
        """None if it never was on record, or is not any more.

        :param at: when its key was claimed, in seconds since 1970
        """
        while True:
            try:
                return await self._records.read(run_id)
            except NotOwner:
                if not 0 <= time.time() - at < _RUN_COMES_S:
                    return None
            await trio.sleep(_LOOK_S)
