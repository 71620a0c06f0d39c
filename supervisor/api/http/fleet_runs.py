"""Runs that were posted to a member of a fleet, on whichever host they land.

Their computations are with the host that was asked, which sends them to the host that takes the
run, and sends them again if that one is lost before its agent has got them. Of a run that nobody
waits for a second host keeps a copy as well, so that there are always two.
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
from quart import Blueprint, Response

from supervisor.api.callers import current, needs
from supervisor.api.http import json_body
from supervisor.api.http.elsewhere import Asked, answered_headers, passed_on
from supervisor.api.requests import RunRequest
from supervisor.caller import Right
from supervisor.config import RestartPolicy
from supervisor.errors import (
    FleetUnavailable,
    HandedBack,
    MemberBroke,
    NotOwner,
    SupervisorError,
)
from supervisor.fleet.engine import Conflict
from supervisor.fleet.entry import Claim
from supervisor.fleet.facts import lacks
from supervisor.fleet.ledger import Run, RunState
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    import httpx

    from supervisor.api.http.elsewhere import Elsewhere
    from supervisor.caller import Caller
    from supervisor.fleet.entry import Posting
    from supervisor.fleet.fleet import Fleet
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: What the owner says to this member and not to the caller, and the statuses that it says it with.
_HANDED_BACK = "urn:qmp-supervisor:problem:handed-back"
_NOT_OWNER = "urn:qmp-supervisor:problem:not-owner"
_STOPPING = "urn:qmp-supervisor:problem:stopping"
_TO_US = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT)
#: How often a run is looked after: before its agent has it, and afterwards.
_SOON_S, _LATER_S = 1.0, 30.0
_COPY_S = 5.0
#: In the place of a computation that nobody will send again.
_FORGOTTEN = b"-"


@attrs.frozen
class Member:
    """What a server knows of the fleet.

    :param asks: whether it asks other members for what is not here; the server that they ask does
        not
    """

    fleet: Fleet
    elsewhere: Elsewhere
    runs: FleetRuns
    asks: bool = True


@attrs.frozen
class _Posted:
    """What a run was posted with.

    :param waits: whether the caller waits for the agent's answer
    """

    wanted: RunRequest
    options: RunOptions
    caller: Caller
    waits: bool

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

    def __init__(self, fleet: Fleet, service: Service, elsewhere: Elsewhere) -> None:
        self._fleet = fleet
        self._service = service
        self._elsewhere = elsewhere

    async def run(self, wanted: RunRequest, options: RunOptions, *, waits: bool) -> Vm | Response:
        """Have a host run a computation. It may be this one: then the VM.

        :param waits: whether the caller waits for the agent's answer
        :raises SupervisorError:
        """
        posted = _Posted(wanted, options, current(), waits)
        while True:
            with suppress(Conflict):
                return await self._run(posted)

    async def _run(self, posted: _Posted) -> Vm | Response:
        """:raises Conflict: if another member has the key by now, or has given the run up"""
        wanted, options, waits = posted.wanted, posted.options, posted.waits
        caller, entry = posted.caller, self._fleet.entry
        run = Run(
            id=str(uuid.uuid4()),
            entry=self._fleet.name,
            needs=wanted.needs(),
            repeats=options.restart is not RestartPolicy.NEVER,
            moves=wanted.host is None or wanted.host.moves,
        )
        await entry.check(run.needs, tells_hosts=caller.may(Right.HOST))
        key, before = options.idempotency_key, None
        if key is not None:
            before = await self._fleet.keys.claim(run, caller.name, key, options.request_hash)
        waiting = entry.join(before, caller.name) if before else entry.post(run, caller.name)
        async with waiting as posting:
            claim, found = await self._land(posting, posted)
            if not waits and (not isinstance(found, Response) or found.status_code == 202):
                await self._keep_copy(claim, posted)
            return found

    async def _land(self, posting: Posting, posted: _Posted) -> tuple[Claim, Vm | Response]:
        here, there = partial(self._here, posted), partial(self._there, posted)
        return await posting.land(here, there)

    async def _here(self, posted: _Posted, claim: Claim) -> Vm | Response:
        computation, taken = posted.wanted.computation, (claim.run_id, claim.epoch)
        vm = await self._fleet.start(computation, posted.options, posted.caller, taken)
        if posted.waits:
            await self._fleet.wait_answered(vm, posted.options)
        return vm

    async def _there(self, posted: _Posted, claim: Claim) -> Vm | Response:
        lost = partial(self._fleet.members.wait_lost, claim.host)
        answer, has_left = None, posted.waits
        try:
            async with move_on_when(lost):
                answer = await self._send(claim, posted, "/run")
            has_left = False
        except MemberBroke:
            has_left = False
            raise
        finally:
            if has_left:
                told = claim.host, claim.run_id, claim.epoch
                self._service.vms.spawn(self._fleet.tell_left, *told)
        if answer is None:
            raise MemberBroke(f"host {claim.host} is lost")
        if posted.waits and answer.status_code not in _TO_US:
            return passed_on(answer)
        # Short; and nobody may read it, who would close it.
        content = await answer.aread()
        await answer.aclose()
        problem = _problem(content) if answer.status_code in _TO_US else ""
        if problem == _HANDED_BACK:
            raise HandedBack(f"host {claim.host} has given the run back")
        if problem == _NOT_OWNER:
            raise NotOwner(f"host {claim.host} does not have the run")
        if problem == _STOPPING:
            raise MemberBroke(f"host {claim.host} stops, and its VMs run on")
        return Response(content, answer.status_code, answered_headers(answer))

    async def _send(self, claim: Claim, posted: _Posted, path: str) -> httpx.Response:
        request_id, taken = posted.options.request_id, (claim.run_id, claim.epoch)
        asked = Asked(posted.caller, "POST", path, posted.headers, posted.body, request_id, taken)
        return await self._elsewhere.send(claim.host, claim.address, asked)

    # --- runs that nobody waits for ---------------------------------------------------------

    async def _keep_copy(self, claim: Claim, posted: _Posted) -> None:
        """See that two hosts have the computation before its caller is told that it is taken."""
        if claim.host != self._fleet.name:
            self.keep(claim.run_id, posted)
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

    def keep(self, run_id: str, posted: _Posted) -> None:
        """Keep a run's computation until it is not needed, and use it if its host is lost."""
        self._service.vms.spawn(self._see_through, run_id, posted)

    async def _see_through(self, run_id: str, posted: _Posted) -> None:
        while (run := await self._look(run_id)) is not None and not run.state.is_final:
            if run.state is RunState.SENT and not run.repeats:
                wanted = attrs.evolve(posted.wanted, computation=_FORGOTTEN)
                posted = attrs.evolve(posted, wanted=wanted)
            if run.owner in self._fleet.members.hosts:
                lost = partial(self._fleet.members.wait_lost, run.owner)
                with trio.move_on_after(_SOON_S if run.state is RunState.OWNED else _LATER_S):
                    await lost()
                continue
            try:
                async with self._fleet.entry.join(run, posted.caller.name) as posting:
                    if run.owner:
                        await posting.after_break(Claim(run_id, run.owner, run.epoch, ""))
                    _, found = await self._land(posting, posted)
                if isinstance(found, Response) and found.status_code != HTTPStatus.ACCEPTED:
                    log.warning("run not taken", run=run_id, status=found.status_code)
            except (SupervisorError, Conflict) as error:
                log.warning("run is over", run=run_id, problem=str(error))
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


def _problem(content: bytes) -> str:
    """Its type; empty if it is none."""
    try:
        return str(json.loads(content)["type"])
    except (ValueError, LookupError, TypeError):
        return ""


def blueprint(member: Member, service: Service) -> Blueprint:
    """What only members ask each other."""
    routes = Blueprint("fleet_runs", __name__, url_prefix="/runs")

    @routes.post("/<run_id>/copy")
    @needs(Right.RUN)
    async def keep_copy(run_id: str) -> Response:
        caller, wanted = current(), await json_body.read(RunRequest)
        if caller.claim is None or caller.claim[0] != run_id:
            raise NotOwner(f"this member is not asked for run {run_id}")
        options = wanted.options(service.config, None)
        member.runs.keep(run_id, _Posted(wanted, options, caller, waits=False))
        return Response("", 204)

    return routes
