"""One injection: a run is brought to a step, the harm is done there and mended, and all settles."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from supervisor.fleet.ledger import RunState
from tests.chaos.fleet.callers import Caller
from tests.chaos.fleet.observer import PATIENCE_S, Broken
from tests.chaos.fleet.place import Machine, Place, wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: A fault that lasts less than a lease, and how much longer than the lease a long one lasts.
_SHORT_S, _BEYOND_S = 3.0, 3.0
#: A lease has ended by then, and a message of the queue is another's.
_LEASE_S, _ACK_S = 14.0, 33.0
SOUTH = {"zone": "south"}


@attrs.frozen
class Step:
    """How far a run has come.

    :param by: the role of the host whose supervisor is stopped there; empty: none needs to be
    :param point: of that supervisor
    """

    name: str
    by: str = ""
    point: str = ""


#: Of a run that another host does than the one that it was posted to. The first of a key alone.
KEYED = Step("with a key", "entry", "after keys")
#: Its QEMU is never told to run the guest, so this is for faults that end the owner's supervisor.
LAUNCHING = Step("launching")
THERE = (
    KEYED,
    Step("posted", "entry", "before runs queued"),
    Step("on record", "entry", "after runs queued"),
    Step("in the queue", "entry", "after queue"),
    Step("pulled", "owner", "before runs owned"),
    Step("claimed", "owner", "after runs owned"),
    LAUNCHING,
    Step("booting"),
    Step("before sent", "owner", "before runs sent"),
    Step("sent", "owner", "after runs sent"),
    Step("with the agent"),
    Step("before answered", "owner", "before runs answered"),
    Step("answered", "owner", "after runs answered"),
    Step("told"),
)
#: Nobody takes it at once, so that it comes to these.
_WAITS = ("posted", "on record", "in the queue", "pulled", "claimed")
#: Of a run that is given to another host without the queue, until its VM is begun there.
ASKED = (
    Step("asking", "entry", "before takes"),
    Step("posted", "owner", "before runs owned"),
    Step("claimed", "owner", "after runs owned"),
    Step("taken", "entry", "after takes"),
)
#: And of one that is done where it was posted, because there is room.
HERE = (Step("posted", "owner", "before runs owned"), *THERE[5:])


#: What the guest tells of at steps that are its own.
_SEEN = {"launching": "swallowed", "booting": "cont", "with the agent": "Run"}
_TRIES = 5


class Case:
    """What a fault is given.

    :ivar step: where it happens
    :ivar roles: machines by ``entry``, ``owner`` and ``bystander``
    :ivar stopped: the machine whose supervisor is stopped at the step, if one is
    :ivar callers: who has posted something
    :ivar stops: the hosts whose supervisors were stopped in good order
    """

    def __init__(self, place: Place, layout: str, step: Step, form: str) -> None:
        self.place = place
        self.step = step
        self.form = form
        self.layout = layout
        names = "aab" if layout == "here" else "abc"
        entry, owner, bystander = (place.machines[name] for name in names)
        self.roles = {"entry": entry, "owner": owner, "bystander": bystander}
        self.stopped: Machine | None = None
        self.callers: list[Caller] = []
        self.stops: set[str] = set()
        #: Undone when the harm is over.
        self.undo = AsyncExitStack()
        #: What agents had got, and which runs there were.
        self.before = {name: len(one.received()) for name, one in place.machines.items()}
        self.known = set(place.observer.runs)
        self.nursery: trio.Nursery | None = None

    @property
    def entry(self) -> Machine:
        return self.roles["entry"]

    @property
    def owner(self) -> Machine:
        return self.roles["owner"]

    def post(self, form: str = "", first: Machine | None = None, **same: Any) -> Caller:
        """Have a caller post a run."""
        assert self.nursery
        labels = {} if self.layout == "here" else SOUTH
        caller = Caller(form or self.form, labels, **same)
        self.callers.append(caller)
        first = first or self.entry
        others = [one for one in self.place if one is not first]
        self.nursery.start_soon(caller.call, [first, *others])
        return caller

    async def reach(self) -> None:
        """Have a run come to the step."""
        full = [one for one in self.place if one not in (self.entry, self.owner)]
        waits = self.layout == "there" and self.step.name in _WAITS
        if self.layout == "here":
            full = []
        if waits:
            full.append(self.owner)
        agent = {"booting": "none", "with the agent": "held"}.get(self.step.name, "recorder")
        swallows = ("cont",) if self.step is LAUNCHING else ()
        self.owner.world.scenario(agent=agent, swallows=swallows)
        by = self.roles.get(self.step.by)
        if by:
            by.stop_at(self.step.point)
        for _ in range(_TRIES):
            for one in full:
                (await one.ask("POST", "/host/drain")).raise_for_status()
            caller = self.post()
            if waits and by is self.owner:
                await self._wait_queued(caller)
                (await self.owner.ask("POST", "/host/resume")).raise_for_status()
            if await self._reached(caller, by):
                break
            # A server of NATS that has just come back may not have found the others yet.
            self.callers.remove(caller)
        else:
            raise Broken(f"no run comes to {self.step.name!r}: {caller.told}")
        self.owner.world.scenario()
        for one in full:
            if one is not self.stopped:
                (await one.ask("POST", "/host/resume")).raise_for_status()

    async def _reached(self, caller: Caller, by: Machine | None) -> bool:
        """Whether the run has come to the step; it has not if its caller was told of an error."""
        if self.step.name == "told":
            with trio.move_on_after(PATIENCE_S):
                await caller.over.wait()
            if caller.failed:
                return False
            await self._wait_final()
            return True
        seen = _SEEN.get(self.step.name, "")
        is_there = by.is_stopped if by else partial(self._saw, seen)
        await wait(lambda: is_there() or caller.failed, f"a run to come to {self.step.name}")
        if by and is_there():
            self.stopped = by
        return is_there()

    async def _wait_queued(self, caller: Caller) -> None:
        runs = self.place.observer.runs

        def is_queued() -> bool:
            return any(runs[one][-1].state is RunState.QUEUED for one in self.runs())

        await wait(lambda: is_queued() or caller.failed, "a run to be queued")

    def _saw(self, what: str) -> bool:
        return any(
            one["saw"] == what
            for vm_id, guest in self.owner.guests.items()
            if vm_id in self.new_vms(self.owner)
            for one in guest.seen
        )

    def new_vms(self, machine: Machine) -> set[str]:
        """Those that have no run from before."""
        return {
            vm_id
            for vm_id, record in machine.records().items()
            if record["options"]["fleet_run"] not in self.known
        }

    async def _wait_final(self) -> None:
        """Of a run that nobody waits for: it is over, too."""
        observer = self.place.observer
        with trio.move_on_after(PATIENCE_S):
            await observer.changed.until(
                lambda: (
                    all(observer.runs[one][-1].state.is_final for one in self.runs())
                    and bool(self.runs())
                )
            )
            return
        raise Broken("the run does not end")

    def runs(self) -> set[str]:
        """Those that were posted in this case."""
        return set(self.place.observer.runs) - self.known

    # --- while there is harm ----------------------------------------------------------------

    async def go_on(self) -> None:
        """Let all take the next step, but for whom a fault has stopped."""
        if self.stopped is not None:
            self.stopped.signal(signal.SIGCONT)
            self.stopped = None
        for one in self.place:
            one.pass_all()
            await one.tell_guests("start-agent", kind="recorder")
            await one.tell_guests("release-agent")

    async def last(self, how: str, lost: Machine | None) -> None:
        """Let the harm last.

        :param how: ``short``; ``long``: beyond a lease; else until the queue gives up
        :param lost: whose lease ends by that, if any host's does
        """
        if how == "short":
            await trio.sleep(_SHORT_S)
        elif how == "long":
            if lost:
                await self.place.observer.wait_lost(lost.name, _LEASE_S)
            else:
                await trio.sleep(_LEASE_S - _BEYOND_S)
            await trio.sleep(_BEYOND_S)
            if lost:
                with trio.move_on_after(_LEASE_S):
                    await self.place.observer.changed.until(partial(self._has_lost, lost.name))
        else:
            await trio.sleep(_ACK_S)

    def _has_lost(self, host: str) -> bool:
        """Whether no run waits for a host that is lost."""
        last = [self.place.observer.runs[one][-1] for one in self.runs()]
        return all(one.state.is_final or one.owner != host for one in last)

    def later(self, undo: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self.undo.push_async_callback(undo, *args)


async def inject(
    case: Case, harm: Callable[[Case], Awaitable[None]], check: Callable[[Case], Awaitable[None]]
) -> None:
    """
    :param check: what must hold afterwards
    :raises Broken: if something does not
    """
    async with trio.open_nursery() as nursery:
        case.nursery = nursery
        try:
            await case.reach()
            async with case.undo:
                await harm(case)
                await case.go_on()
            await check(case)
        finally:
            nursery.cancel_scope.cancel()
