"""Runs that were posted to a member of a fleet, on whichever host they land.

Their computations are with the host that was asked, which sends them to the host that takes the
run, and sends them again if that one is lost before its agent has got them. Of a run that nobody
waits for a second host keeps a copy on its disk, so that there are always two.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.api.callers import current
from supervisor.api.fleet.asked import Asked
from supervisor.api.fleet.copies import Copies, Copy
from supervisor.caller import Right
from supervisor.config import RestartPolicy
from supervisor.errors import (
    AtCapacity,
    FleetUnavailable,
    HandedBack,
    LaunchError,
    MemberBroke,
    NotOwner,
    RefusedElsewhere,
    Stopping,
    SupervisorError,
)
from supervisor.fleet.engine import Conflict
from supervisor.fleet.entry import Claim
from supervisor.fleet.facts import lacks
from supervisor.fleet.ledger import Run, RunState
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx

    from supervisor.api.fleet.others import Others
    from supervisor.api.requests import RunRequest
    from supervisor.caller import Caller
    from supervisor.fleet.fleet import Fleet
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

    Do = Callable[[Claim], Awaitable[Vm | "Answered"]]

log = structlog.stdlib.get_logger()

#: The statuses that a host says something with that is for this member, and not for the caller.
_TO_US = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT)
#: How often a run is looked after: before its agent has it, and afterwards.
_SOON_S, _LATER_S = 1.0, 30.0
_COPY_S = 5.0
_AGAIN_S = 0.1
#: After so long an accepted run that a host refuses is over.
_REFUSED_S = 24 * 3600.0
#: In ``tmp/``.
COPIES = "copies"


@attrs.frozen
class Answered:
    """What another host has answered to ``POST /run``.

    :param content: None if the caller waits for the agent's answer: it is to be read, and closed
    """

    host: str
    response: httpx.Response
    content: bytes | None = None

    @property
    def is_accepted(self) -> bool:
        """The caller does not wait, and the host has the run."""
        return self.response.status_code == HTTPStatus.ACCEPTED


@attrs.frozen
class Posted:
    """What a run was posted with.

    :param waits: whether the caller waits for the agent's answer
    """

    wanted: RunRequest
    options: RunOptions
    caller: Caller
    waits: bool

    @property
    def request_id(self) -> str:
        return self.options.request_id

    @property
    def headers(self) -> dict[str, str]:
        found = {"Content-Type": "application/json"}
        if not self.waits:
            found["Prefer"] = "respond-async"
        if self.options.idempotency_key is not None:
            found["Idempotency-Key"] = self.options.idempotency_key
        return found

    @property
    def body(self) -> bytes:
        return json.dumps(self.wanted.to_json()).encode()


class FleetRuns:
    """Those that were posted to this member."""

    def __init__(self, fleet: Fleet, service: Service, others: Others) -> None:
        self._fleet = fleet
        self._service = service
        self._others = others
        self._copies = Copies(service.config.qemu.tmp / COPIES)
        #: Runs that are seen through: a run that is asked for again has one task, and not two.
        self._seen: set[str] = set()

    async def run(self, wanted: RunRequest, options: RunOptions, *, waits: bool) -> Vm | Answered:
        """Have a host run a computation. It may be this one: then the VM.

        :param waits: whether the caller waits for the agent's answer
        :return: the VM, if it is on this host
        :raises SupervisorError:
        """
        posted = Posted(wanted, options, current(), waits)
        while True:
            with suppress(Conflict):
                return await self._run(posted)
            await trio.sleep(_AGAIN_S)  # a member that was taken over may have it so each time

    async def _run(self, posted: Posted) -> Vm | Answered:
        """:raises Conflict: if another member has the key by now, or has given the run up"""
        wanted, options = posted.wanted, posted.options
        caller, entry = posted.caller, self._fleet.entry
        run = Run(
            id=str(uuid.uuid4()),
            entry=self._fleet.name,
            needs=wanted.needs(),
            repeats=options.restart is not RestartPolicy.NEVER,
            moves=wanted.host is None or wanted.host.moves,
        )
        await entry.check(run.needs, caller.name, tells_hosts=caller.may(Right.HOST))
        posted_as, key = run.id, options.idempotency_key
        if key is not None:
            run = await self._fleet.keys.claim(run, caller.name, key, options.request_hash)
        is_new = run.id == posted_as
        async with (entry.post if is_new else entry.join)(run, caller.name) as posting:
            here: Do = partial(self._here, posted)
            there: Do = partial(self._there, posted)
            claim, found = await posting.land(here, there)
            if not posted.waits and (not isinstance(found, Answered) or found.is_accepted):
                await self._keep_copy(claim, posted)
                with suppress(NotOwner):  # its VM was deleted meanwhile
                    await self._fleet.records.change_in_time(claim.run_id, Run.taken)
            return found

    async def _here(self, posted: Posted, claim: Claim) -> Vm:
        computation, taken = posted.wanted.computation, (claim.run_id, claim.epoch)
        vm = await self._fleet.start(computation, posted.options, posted.caller, taken)
        if posted.waits:
            await self._fleet.wait_answered(vm, posted.options)
        return vm

    async def _there(self, posted: Posted | Copy, claim: Claim) -> Answered:
        lost = partial(self._fleet.members.wait_lost, claim.host)
        closed, has_left = self._service.vms.closed, posted.waits
        try:
            async with move_on_when(closed.wait) as stopped, move_on_when(lost) as moved:
                answer = await self._send(claim, posted, "/run")
            has_left = False
        except MemberBroke:
            has_left = False
            raise
        finally:
            if has_left:
                told = claim.host, claim.run_id, claim.epoch
                self._service.vms.spawn(self._fleet.taking.tell_left, *told)
        if stopped.cancelled_caught:
            raise Stopping(f"the supervisor stops; the run goes on, on host {claim.host}")
        if moved.cancelled_caught:
            raise MemberBroke(f"host {claim.host} is lost")
        if posted.waits and answer.status_code not in _TO_US:
            return Answered(claim.host, answer)
        # Short; and nobody may read it, who would close it.
        try:
            content = await self._others.read(claim.host, answer)
        except RefusedElsewhere as error:
            if error.kind is HandedBack:
                raise HandedBack(f"host {claim.host} has given the run back") from error
            if error.kind is NotOwner:
                raise NotOwner(f"host {claim.host} does not have the run") from error
            if error.kind is FleetUnavailable:
                raise FleetUnavailable(str(error)) from error
            if error.kind is Stopping:  # and leaves the VM to its next supervisor
                raise MemberBroke(f"host {claim.host}: {error}") from error
            raise
        return Answered(claim.host, answer, content)

    async def _send(self, claim: Claim, posted: Posted | Copy, path: str) -> httpx.Response:
        taken, id_ = (claim.run_id, claim.epoch), posted.request_id
        asked = Asked(posted.caller, "POST", path, posted.headers, posted.body, id_, taken)
        return await self._others.send(claim.host, claim.address, asked)

    # --- runs that nobody waits for ---------------------------------------------------------

    async def _keep_copy(self, claim: Claim, posted: Posted) -> None:
        """See that two hosts have the computation before its caller is told that it is taken."""
        if claim.host != self._fleet.name:
            await self.keep(claim.run_id, posted)
            return
        needs = posted.wanted.needs()
        others = [one for name, one in self._fleet.members.hosts.items() if name != claim.host]
        others.sort(key=lambda facts: (bool(lacks(facts, needs)), -facts.room))
        for facts in others:
            keeper = attrs.evolve(claim, host=facts.name, address=facts.address)
            with trio.move_on_after(_COPY_S):
                try:
                    answer = await self._send(keeper, posted, f"/runs/{claim.run_id}/copy")
                    await answer.aclose()
                except MemberBroke as error:
                    log.info("no copy there", run=claim.run_id, problem=str(error))
                    continue
                if answer.status_code == HTTPStatus.NO_CONTENT:
                    return
        log.warning("no other host has a copy of a run", run=claim.run_id)

    async def keep(self, run_id: str, posted: Posted) -> None:
        """Keep a run's computation until it is not needed, and use it if its host is lost.

        :raises LaunchError: if it cannot be written
        """
        copy = Copy(posted.caller, posted.headers, posted.body, posted.request_id)
        await self._copies.keep(run_id, copy)
        self._see_to(run_id, is_there=True)

    async def take_up(self) -> None:
        """See to the runs whose copies an earlier supervisor has kept here."""
        try:
            for run_id in await self._copies.runs():
                self._see_to(run_id, is_there=False)
        except LaunchError as error:
            log.error("copies of runs are not taken up", problem=str(error))

    def _see_to(self, run_id: str, *, is_there: bool) -> None:
        if run_id not in self._seen:
            self._seen.add(run_id)
            self._service.vms.spawn(self._see_through, run_id, is_there)

    async def _see_through(self, run_id: str, is_there: bool) -> None:
        """
        :param is_there: whether its host has got the computation, if it has one
        """
        refused_s = 0.0
        while (run := await self._look(run_id)) is not None and not run.state.is_final:
            try:
                if run.state is RunState.SENT and not run.repeats:
                    await self._copies.shorten(run_id)
                is_there = is_there or run.state is RunState.SENT
                if is_there and run.owner in self._fleet.members.hosts:
                    lost = partial(self._fleet.members.wait_lost, run.owner)
                    with trio.move_on_after(_SOON_S if run.state is RunState.OWNED else _LATER_S):
                        await lost()
                elif self._fleet.members.complete:
                    await self._have_it_done(run)
                    is_there = True
                else:
                    await trio.sleep(_SOON_S)
            except Stopping:
                return  # the next supervisor takes the copy up
            except RefusedElsewhere as error:
                # Its owner may have used up its quota there, or that host's disk be full.
                log.warning("run not taken", run=run_id, problem=str(error))
                await trio.sleep(_LATER_S)
                refused_s += _LATER_S
                if refused_s >= _REFUSED_S:
                    with suppress(NotOwner):  # a host may have it just now
                        await self._fleet.records.change_in_time(run_id, Run.expired)
            except (SupervisorError, Conflict) as error:
                # The disk may be full for a while, or the broker away. Its record alone says
                # whether it is over.
                log.warning("copy of a run not used", run=run_id, problem=str(error))
                await trio.sleep(_SOON_S)
        self._seen.discard(run_id)  # who keeps it from now on sees to it anew
        self._fleet.records.forget(run_id)
        await self._copies.drop(run_id)
        log.info("copy of a run is not needed", run=run_id)

    async def _have_it_done(self, run: Run) -> None:
        """Its owner is lost, or there is none; or it may not have got the computation.

        :raises RunLost: if it is over
        :raises RefusedElsewhere: if a host has refused it
        """
        copy = await self._copies.read(run.id)
        # To this host as well it goes by the way of the others.
        there = partial(self._there, copy)
        async with self._fleet.entry.join(run, copy.caller.name) as posting:
            if run.owner not in ("", *self._fleet.members.hosts):
                await posting.after_break(Claim(run.id, run.owner, run.epoch, ""))
            while True:
                try:
                    await posting.land(there, there)
                except AtCapacity as error:  # it was accepted
                    log.warning("run waits on", run=run.id, problem=str(error))
                else:
                    return

    async def _look(self, run_id: str) -> Run | None:
        """None if it is not on record any more."""
        while True:
            try:
                return await self._fleet.records.read(run_id)
            except NotOwner:
                return None
            except FleetUnavailable:
                await trio.sleep(_SOON_S)
