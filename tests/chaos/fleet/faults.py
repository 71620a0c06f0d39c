"""What is done to the hosts of a fleet, and undone; `kinds` says to whom, when and for how long."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from tests.chaos.fleet.callers import KEY, WAITS
from tests.chaos.fleet.observer import PATIENCE_S, Broken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.fleet.case import Case
    from tests.chaos.fleet.place import Machine

    Harm = Callable[[Case], Awaitable[None]]


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


async def lose_while_full(case: Case, others: signal.Signals) -> None:
    """A run is accepted, and its owner's host is lost while no other host takes runs. Then the
    other supervisors end, and are started again with what is on their disks.

    :param others: what ends them
    """
    with trio.fail_after(PATIENCE_S):
        await case.callers[0].over.wait()
    rest = [one for one in case.place if one is not case.owner]
    for one in rest:
        (await one.ask("POST", "/host/drain")).raise_for_status()
    await lose(case, "owner")
    for one in rest:
        if others is signal.SIGKILL:
            one.kill()
        else:
            await one.stop(others)
    for one in rest:
        await one.start()


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
