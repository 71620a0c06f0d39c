"""What a large simulated fleet is asked: tenants of unequal demand, hosts that die, and tallies."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.fleet.facts import Needs
from tests.support.simulated_fleet import SimulatedFleet

if TYPE_CHECKING:
    from tests.support.memory_engine import Broker

_GIB = 2**30
_ZONES = "abcd"
#: Each fifth host starts confidential guests, each twelfth has VMs of 16 GiB, but half as many.
_TEE, _WIDE = 5, 12
_ROOM, _WIDE_ROOM = 4, 2
_VM_BYTES, _WIDE_BYTES = 4 * _GIB, 16 * _GIB
#: Seconds from a host that has a run to its agent, and from there to the answer; exponential.
_BOOT_S, _COMPUTE_S = 4.0, 26.0
#: How long a dead host is away.
_AWAY_S = 120.0, 600.0
#: How long a host keeps a VM whose run was answered.
_KEPT_S = 10.0
#: After so long everything about a run is on record.
_SETTLE_S = 60.0

#: The one who floods, and the quiet ones, by their parts of what is asked in normal times.
FLOOD = "flood"
TENANTS = {
    FLOOD: 0.40,
    "t1": 0.20,
    "t2": 0.15,
    "t3": 0.10,
    "t4": 0.06,
    "t5": 0.04,
    "t6": 0.03,
    "t7": 0.015,
    "t8": 0.005,
}
#: What runs need, by their parts. A wide one is served by a twelfth of the hosts.
CLASSES = {"plain": 0.73, "zone": 0.14, "tee": 0.10, "wide": 0.03}
NORMAL, OVERLOAD, AFTER = "normal", "overload", "after"


@attrs.frozen
class Load:
    """
    :param entries: how many hosts callers ask
    :param deaths_per_hour: of each host
    :param period_s: of which four sixths are normal, one has overload, and the queue is worked
        off in one
    """

    hosts: int = 1000
    entries: int = 16
    runs: int = 1_000_000
    deaths_per_hour: float = 0.01
    normal: float = 0.75
    overload: float = 1.2
    period_s: float = 1800.0

    def phase(self, at: float) -> str:
        part = at % self.period_s / self.period_s
        return NORMAL if part < 4 / 6 else OVERLOAD if part < 5 / 6 else AFTER


@attrs.define
class Tally:
    """What became of all runs.

    :ivar waits: seconds from the post until the asked host knew who has the run, by the phase in
        which it was posted, its class and its tenant
    :ivar placed: how many runs of each tenant a host took in each phase
    :ivar posted: how many were posted, as `placed`
    :ivar told: what their callers were told
    :ivar claimed_again: runs that a second host took: the first one was lost, or gave it back
    :ivar handed_back: runs that a host gave back, because its room was taken meanwhile
    :ivar lost: runs that were not over on hosts that died
    :ivar messages: between hosts and broker, by what they were for, while runs were posted
    :ivar twice: computations that came to two agents
    :ivar wrong: what else was not as it must be
    """

    waits: defaultdict[tuple[str, str, str], array[float]] = attrs.field(
        factory=lambda: defaultdict(partial(array, "d"))
    )
    placed: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    posted: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    told: Counter[str] = attrs.field(factory=Counter)
    claimed_again: int = 0
    handed_back: int = 0
    deaths: int = 0
    lost: int = 0
    simulated_s: float = 0.0
    messages: Counter[str] = attrs.field(factory=Counter)
    twice: int = 0
    wrong: list[str] = attrs.field(factory=list)


class LoadedFleet:
    """A simulated fleet, and its callers.

    :ivar stopped: set it, and no more runs are posted
    """

    def __init__(self, broker: Broker, load: Load) -> None:
        self.tally = Tally()
        self.stopped = False
        self.fleet = SimulatedFleet(broker, boot_s=_BOOT_S, compute_s=_COMPUTE_S, kept_s=_KEPT_S)
        self._load = load
        self._chance = broker.random
        self._begun = 0.0

    async def run(self) -> Tally:
        """Post all runs, and return once all callers are told and all hosts are back."""
        for number in range(self._load.hosts):
            await self._add(number)
        await trio.sleep(30)
        self.fleet.broker.messages.clear()
        self._begun = trio.current_time()
        async with trio.open_nursery() as deaths, trio.open_nursery() as callers:
            killing = trio.CancelScope()
            callers.start_soon(self._kill, killing, deaths)
            await self._post_all(callers)
            killing.cancel()
        tally = self.tally
        tally.simulated_s = trio.current_time() - self._begun
        tally.messages += self.fleet.broker.messages
        tally.handed_back = self.fleet.handed_back
        await trio.sleep(_SETTLE_S)
        tally.twice = sum(count > 1 for count in self.fleet.received.values())
        tally.wrong += self.fleet.check(0)
        return tally

    async def _add(self, number: int) -> None:
        is_wide = number % _WIDE == _WIDE - 1
        await self.fleet.add(
            f"h{number}",
            _WIDE_ROOM if is_wide else _ROOM,
            labels={"zone": _ZONES[number % len(_ZONES)]},
            tee=("snp",) if number % _TEE == 0 and not is_wide else (),
            vm_memory_bytes=_WIDE_BYTES if is_wide else _VM_BYTES,
            asked=number < self._load.entries,
        )

    # --- callers ----------------------------------------------------------------------------

    async def _post_all(self, callers: trio.Nursery) -> None:
        room = sum(host.room for host in self.fleet.hosts.values())
        whole = room / (_BOOT_S + _COMPUTE_S)
        for number in range(self._load.runs):
            if self.stopped:
                return
            flooded = self._phase == OVERLOAD
            rate = whole * (self._load.overload if flooded else self._load.normal)
            await trio.sleep(self._chance.expovariate(rate))
            # All that is more in an overload is of the one tenant.
            is_more = flooded and self._chance.random() > self._load.normal / self._load.overload
            tenant = FLOOD if is_more else self._choose(TENANTS)
            callers.start_soon(self._call, f"r{number}", tenant, self._choose(CLASSES))

    @property
    def _phase(self) -> str:
        return self._load.phase(trio.current_time() - self._begun)

    def _choose(self, parts: dict[str, float]) -> str:
        (chosen,) = self._chance.choices(list(parts), list(parts.values()))
        return chosen

    def _needs(self, of: str) -> Needs:
        match of:
            case "zone":
                return Needs(labels={"zone": self._chance.choice(_ZONES)})
            case "tee":
                return Needs(tee="snp")
            case "wide":
                return Needs(memory_bytes=_WIDE_BYTES)
        return Needs()

    async def _call(self, name: str, tenant: str, of: str) -> None:
        fleet, tally, phase, begun = self.fleet, self.tally, self._phase, trio.current_time()
        tally.posted[phase, tenant] += 1
        entry = f"h{self._chance.randrange(self._load.entries)}"
        outcome = await fleet.call(name, entry, self._needs(of), tenant)
        claims = fleet.claims.pop(name, [])
        if claims:
            tally.waits[phase, of, tenant].append(claims[0] - begun)
            tally.placed[self._load.phase(claims[0] - self._begun), tenant] += 1
            tally.claimed_again += len(claims) > 1
        answered = outcome.told.startswith("answer")
        tally.told["answered" if answered else outcome.told] += 1
        if not answered:
            await trio.sleep(_SETTLE_S)  # what is on record of it may come later
        tally.wrong += fleet.wrong(outcome)
        fleet.outcomes.remove(outcome)
        fleet.runs.pop(name, None)  # there is none if the host that was asked is gone

    # --- hosts ------------------------------------------------------------------------------

    async def _kill(self, scope: trio.CancelScope, deaths: trio.Nursery) -> None:
        rate = self._load.hosts * self._load.deaths_per_hour / 3600
        with scope:
            while rate:
                await trio.sleep(self._chance.expovariate(rate))
                host = self.fleet.hosts[f"h{self._chance.randrange(self._load.hosts)}"]
                if host.alive:
                    self.tally.deaths += 1
                    self.tally.lost += sum(not vm.record.settled for vm in host.disk)
                    host.die()
                    deaths.start_soon(self._revive, host.name)

    async def _revive(self, name: str) -> None:
        await trio.sleep(self._chance.uniform(*_AWAY_S))
        await self.fleet.revive(name)
