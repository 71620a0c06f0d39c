"""The kinds of faults: what is done to whom, at which steps of a run, and how long it lasts."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.chaos.fleet.callers import ASYNC, KEY, WAITS
from tests.chaos.fleet.case import HERE, KEYED, LAUNCHING, THERE, Case, Step
from tests.chaos.fleet.place import Broken, Machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Harm = Callable[[Case], Awaitable[None]]

_HOUR_S = 3600.0


@attrs.frozen
class Injection:
    """One fault at one step.

    :param layout: whether the run is done ``here``, where it is posted, or ``there``
    :param form: how it is posted
    """

    kind: str
    layout: str
    step: Step
    form: str
    harm: Harm

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.layout}, {self.step.name}"


#: All, in the order in which they are declared.
ALL: list[Injection] = []
_FORMS = (WAITS, KEY, ASYNC)


def _declare(
    kind: str,
    harm: Harm,
    steps: Iterable[str] = (),
    layouts: Iterable[str] = ("there",),
    form: str = "",
) -> None:
    """:param steps: their names; none: all there are"""
    for layout in layouts:
        for step in THERE if layout == "there" else HERE:
            is_for_all = step is not LAUNCHING and (step is not KEYED or form == KEY)
            if step.name not in steps if steps else not is_for_all:
                continue
            posted = form or _FORMS[len(ALL) % len(_FORMS)]
            ALL.append(Injection(kind, layout, step, posted, harm))


# --- supervisors ------------------------------------------------------------------------------


def _is_cut(case: Case, machine: Machine) -> None:
    """What stops at its step cannot take another one."""
    if case.stopped is machine:
        case.stopped = None
    machine.pass_all()


async def kill(case: Case, role: str, how: str) -> None:
    machine = case.roles[role]
    _is_cut(case, machine)
    machine.kill()
    case.later(machine.start)
    await case.go_on()
    await case.last(how, machine)


async def stop(case: Case, role: str, how: str) -> None:
    machine = case.roles[role]
    _is_cut(case, machine)
    machine.signal(signal.SIGSTOP)
    case.later(_wake, machine)
    await case.go_on()
    await case.last(how, machine)


async def _wake(machine: Machine) -> None:
    machine.signal(signal.SIGCONT)


async def terminate(case: Case, role: str) -> None:
    """SIGTERM leaves the VMs, and the next supervisor has them."""
    machine = case.roles[role]
    case.stops.add(machine.name)
    machine.signal(signal.SIGTERM)
    await case.go_on()
    await machine.stop()
    await machine.start()


async def drain(case: Case, role: str) -> None:
    machine = case.roles[role]
    assert case.nursery
    case.nursery.start_soon(partial(machine.ask, "POST", "/host/drain"))
    await wait_all_tasks_blocked()  # it has asked, even if nobody answers before the run goes on
    await case.go_on()
    case.later(machine.ask, "POST", "/host/resume")
    await case.last("short", None)


# --- hosts ------------------------------------------------------------------------------------


async def lose(case: Case, role: str) -> None:
    """As by a loss of power."""
    machine = case.roles[role]
    _is_cut(case, machine)
    machine.signal_all(signal.SIGKILL)
    assert machine.host.supervisor
    assert machine.host.nats
    machine.host.supervisor.wait()
    machine.host.nats.wait()

    async def boot() -> None:
        machine.host.start_nats()
        await machine.start()

    case.later(boot)
    await case.go_on()
    await case.last("long", machine)


async def pause(case: Case, role: str, how: str) -> None:
    """As a virtual machine that its own host stops."""
    machine = case.roles[role]
    _is_cut(case, machine)
    machine.signal_all(signal.SIGSTOP)

    async def wake() -> None:
        machine.signal_all(signal.SIGCONT)

    case.later(wake)
    await case.go_on()
    await case.last(how, machine)


async def suspend(case: Case, role: str) -> None:
    """A host that sleeps: when it wakes, CLOCK_MONOTONIC does not know that it did."""
    machine = case.roles[role]
    began = trio.current_time()
    _is_cut(case, machine)
    machine.signal_all(signal.SIGSTOP)

    async def wake() -> None:
        machine.set_clocks(monotonic_s=began - trio.current_time())
        machine.signal_all(signal.SIGCONT)

    case.later(wake)
    await case.go_on()
    await case.last("long", machine)


def _set_clock(case: Case, role: str, by_s: float) -> None:
    machine = case.roles[role]
    machine.set_clocks(real_s=by_s)

    async def set_right() -> None:
        machine.set_clocks()

    case.later(set_right)


async def jump(case: Case, role: str, by_s: float) -> None:
    """The supervisor's wall clock is set."""
    _set_clock(case, role, by_s)
    await case.go_on()
    await case.last("short", None)


# --- NATS -------------------------------------------------------------------------------------


async def _server(case: Case, which: str) -> Machine:
    """The machine whose NATS server leads, or follows, or has the owner's connection."""
    if which == "connected":
        found = case.place.at(case.owner.connected_to())
        if found is None:
            raise Broken("the owner has no connection to NATS")
        return found
    leader = await case.place.observer.leader()
    if which == "leader":
        return case.place.machines[leader]
    return next(one for one in case.place if one.name != leader)


async def kill_nats(case: Case, which: str) -> None:
    machine = await _server(case, which)
    machine.kill_nats()

    async def start() -> None:
        machine.host.start_nats()

    case.later(start)
    await case.go_on()
    await case.last("short", None)


async def stop_nats(case: Case, which: str, how: str) -> None:
    machine = await _server(case, which)
    assert machine.host.nats
    process = machine.host.nats
    process.send_signal(signal.SIGSTOP)

    async def wake() -> None:
        process.send_signal(signal.SIGCONT)

    case.later(wake)
    await case.go_on()
    await case.last(how, None)


async def restart_all_nats(case: Case) -> None:
    for one in case.place:
        one.kill_nats()
    for one in case.place:
        one.host.start_nats()
    await case.go_on()


async def lose_majority(case: Case) -> None:
    """Runs wait, or are refused; the VMs go on."""
    vms = {one.name: set(one.qemus()) for one in case.place}
    left = await _server(case, "follower")
    lost = [one for one in case.place if one is not left]
    for one in lost:
        one.kill_nats()

    async def start() -> None:
        for one in lost:
            one.host.start_nats()

    case.later(start)
    await case.go_on()
    refused = case.post(WAITS, case.roles["bystander"])
    await case.last("long", None)
    if refused.last and refused.last.status == 200:
        raise Broken("a run was answered without a majority")
    for one in case.place:
        gone = vms[one.name] - set(one.qemus())
        if gone and not case.callers[0].told:
            raise Broken(f"VMs of {one.name} ended without a majority: {gone}")


async def fill(case: Case, which: str) -> None:
    """The disk of a NATS server is full, or of two: then there is no majority that can write."""
    leader = await _server(case, "leader")
    machines = [leader] if which == "one" else [leader, await _server(case, "follower")]
    for one in machines:
        one.fill_store()

    async def empty() -> None:
        for one in machines:
            one.empty_store()
            one.kill_nats()  # it has given up, and says so
            one.host.start_nats()

    case.later(empty)
    await case.go_on()
    await case.last("long", None)


# --- the network ------------------------------------------------------------------------------

#: What is cut, for the host at whose end it is.
_PORTS = {"NATS": 4222, "members": 9022, "routes": 6222}
_REJECT = "reject with tcp reset"


def _rules(what: str, way: str) -> list[str]:
    """nft's rules.

    :param what: a name of `_PORTS`, or ``host``
    :param way: ``drop``, ``reject``, or ``in`` or ``out`` for one direction alone
    """
    chains = [way] if way in ("in", "out") else ["in", "out"]
    does = _REJECT if way == "reject" else "drop"
    if what == "host":
        return [f"{chain} {chain[0]}ifname eth0 {does}" for chain in chains]
    port = _PORTS[what]
    return [f"{chain} tcp {end}port {port} {does}" for chain in chains for end in "sd"]


async def cut(case: Case, role: str, what: str, way: str, how: str) -> None:
    machine = await _server(case, role) if what == "routes" else case.roles[role]
    machine.filter(*_rules(what, way))

    async def mend() -> None:
        machine.unfilter()

    case.later(mend)
    await case.go_on()
    await case.last(how, machine if what in ("NATS", "host") else None)


# --- callers ----------------------------------------------------------------------------------


async def leave(case: Case) -> None:
    case.callers[0].leave()
    await case.go_on()
    await case.last("short", None)


async def twice(case: Case, fault: Harm | None = None, ahead_s: float = 0) -> None:
    """The same request comes to another member as well, while the first one has it."""
    first, second = case.callers[0], case.roles["bystander"]
    if ahead_s:
        _set_clock(case, "bystander", ahead_s)
    case.post(KEY, second, computation=first.computation, key=first.key)
    await trio.sleep(1)  # for the second one to be asked, before anything else happens
    if fault:
        await fault(case)
    else:
        await case.go_on()


# --- all of them ------------------------------------------------------------------------------

_FEW = ("on record", "claimed", "before sent", "with the agent")
_LATE = ("booting", "before sent", "sent", "with the agent", "before answered")
_SOME = ("posted", "in the queue", "claimed", "before sent", "sent", "with the agent", "answered")
_BOTH = ("there", "here")
#: A cut of one direction, or one that is answered, differs from another one only if it lasts.
_CUTS = (("drop", "short"), ("drop", "long"), ("reject", "long"), ("in", "long"), ("out", "long"))

for _verb, _does in (("SIGKILL", kill), ("SIGSTOP", stop)):
    for _how in ("short", "long"):
        _entry, _owner, _third = (
            partial(_does, role=one, how=_how) for one in ("entry", "owner", "bystander")
        )
        _declare(f"{_verb} of the entry host, {_how}", _entry)
        _declare(f"{_verb} of the owner, {_how}", _owner, layouts=_BOTH)
        _declare(f"{_verb} of a bystander, {_how}", _third, _FEW)
for _how in ("short", "long"):
    _harm = partial(kill, role="owner", how=_how)
    _declare(f"SIGKILL of the owner as it launches, {_how}", _harm, ("launching",), _BOTH)
_declare("its host is lost as it launches", partial(lose, role="owner"), ("launching",), _BOTH)
_declare("SIGTERM of the owner as it launches", partial(terminate, role="owner"), ("launching",))
_declare(
    "SIGSTOP of the owner, until its message is another's",
    partial(stop, role="owner", how="until the queue gives up"),
    ("pulled", "claimed"),
)
for _role in ("entry", "owner"):
    _declare(f"{_role}: SIGTERM, and a start", partial(terminate, role=_role))
    _declare(f"{_role}: drained", partial(drain, role=_role))
    _declare(f"{_role}: its host is lost", partial(lose, role=_role))
    _declare(f"{_role}: its host is paused, long", partial(pause, role=_role, how="long"))
    _declare(f"{_role}: its host is paused, short", partial(pause, role=_role, how="short"), _FEW)
    _declare(f"{_role}: its host sleeps", partial(suspend, role=_role), _LATE)
    for _by in (_HOUR_S, -_HOUR_S, 20.0, -20.0):
        _harm = partial(jump, role=_role, by_s=_by)
        _declare(f"{_role}: its clock jumps by {_by:+.0f} s", _harm, _FEW[1:])
    for _way, _how in _CUTS:
        _harm = partial(cut, role=_role, what="NATS", way=_way, how=_how)
        _declare(f"{_role}: cut from NATS, {_way}, {_how}", _harm, _LATE)
        _harm = partial(cut, role=_role, what="members", way=_way, how=_how)
        _declare(f"{_role}: cut from members, {_way}, {_how}", _harm, _FEW[1:])
    for _way in ("drop", "in", "out"):
        _harm = partial(cut, role=_role, what="host", way=_way, how="long")
        _declare(f"{_role}: its host is cut off, {_way}", _harm, _LATE)
_declare("its only host is lost", partial(lose, role="owner"), layouts=("here",))
for _which in ("leader", "follower", "connected"):
    _declare(f"NATS, {_which}: SIGKILL", partial(kill_nats, which=_which), _SOME)
    for _how in ("short", "long"):
        _harm = partial(stop_nats, which=_which, how=_how)
        _declare(f"NATS, {_which}: SIGSTOP, {_how}", _harm, _FEW)
_routes = partial(cut, role="leader", what="routes", way="drop", how="long")
_declare("NATS, leader: its routes are cut", _routes, _FEW)
_declare("NATS: all are killed, and started", restart_all_nats)
_declare("NATS: the majority is lost", lose_majority)
_declare("NATS: a full disk", partial(fill, which="one"), _FEW)
_declare("NATS: two full disks", partial(fill, which="two"), _FEW)
_declare("the caller leaves", leave, layouts=_BOTH, form=WAITS)
_declare("posted twice", twice, form=KEY)
_declare("posted twice, here", twice, _LATE, layouts=("here",), form=KEY)
for _verb, _does, _how in (
    ("SIGSTOP", stop, "short"),
    ("SIGSTOP", stop, "long"),
    ("SIGKILL", kill, "short"),
):
    _second = partial(_does, role="entry", how=_how)
    _harm = partial(twice, fault=_second)
    _declare(f"posted twice, and {_verb}, {_how}", _harm, ("with a key", *_SOME), form=KEY)
_declare("posted twice, and the first leaves", partial(twice, fault=leave), _SOME, form=KEY)
_ahead = partial(twice, fault=None, ahead_s=20.0)
_declare("posted twice, the second clock is ahead", _ahead, ("with a key",), form=KEY)

#: Names of the short form.
SHORT = {
    "SIGSTOP of the owner, long, there, before sent",
    "posted twice, there, with a key",
    "NATS, leader: SIGKILL, there, sent",
    "owner: cut from members, drop, short, there, claimed",
    "the caller leaves, there, booting",
}
