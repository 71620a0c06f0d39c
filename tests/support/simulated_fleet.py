"""A fleet of hosts whose QEMUs are sleeps: the real code of `supervisor.fleet`, on trio's clock.

What each simulated agent received is on record, and a checker reads it.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from supervisor.config import LimitsConfig
from supervisor.config.settings import Seconds
from supervisor.errors import HandedBack, MemberBroke, NotOwner, SupervisorError
from supervisor.fleet.engine import Conflict
from supervisor.fleet.entry import Claim, Entry
from supervisor.fleet.facts import HostFacts, Needs
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.members import Members
from supervisor.fleet.owner import Owner
from supervisor.fleet.records import Records
from supervisor.fleet.taking import Taking
from supervisor.state.record import EndCause, RelayState, RunOptions
from supervisor.waiting import Signal, move_on_when
from tests.support.memory_engine import Broker, MemoryEngine
from tests.support.small_store import RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.state.status import Status

_GIB = 2**30
#: How long a VM is kept whose run was not answered, if any is removed.
_KEPT_S = 300.0
#: Nobody is turned away in a simulation but by what is simulated.
_LIMITS = LimitsConfig(max_vms=10_000, queue=1_000_000, queue_timeout_s=Seconds(600.0))


class HostDied(Exception):
    """The connection of a caller broke, because the host that it asked is gone."""


@attrs.define
class _Record:
    options: RunOptions
    relay: RelayState = RelayState.WAITING
    answered: bool = False
    ended: bool = False
    end_cause: EndCause | None = None
    status: Status = RUNNING
    first_ran_s: float | None = 0.0

    @property
    def settled(self) -> bool:
        given_up = (RelayState.FAILED, RelayState.INTERRUPTED)
        return self.answered or self.relay in given_up or self.ended


class SimulatedVm:
    """On its host's disk. It has of a `Vm` what the fleet asks of one."""

    def __init__(self, name: str, run_id: str, epoch: int) -> None:
        self.id = str(uuid.uuid4())
        self.name = name
        self.record = _Record(RunOptions(fleet_run=run_id, epoch=epoch))
        self.failure: SupervisorError | None = None
        self.changed = Signal()
        self.scope = trio.CancelScope()

    @property
    def claim(self) -> tuple[str, int]:
        return self.record.options.fleet_run, self.record.options.epoch

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.changed.until(condition)

    def set(self, relay: RelayState, *, answered: bool = False) -> None:
        self.record.relay = relay
        self.record.answered |= answered
        self.changed.notify()

    def request_end(self, *_: object) -> None:
        self.scope.cancel()
        self.record.ended = True
        self.changed.notify()


class Disk(list[SimulatedVm]):
    """A host's VMs. It has of `Vms` what the fleet asks of them."""

    def __contains__(self, vm_id: object) -> bool:
        return any(vm.id == vm_id for vm in self)


@attrs.define
class Outcome:
    """What a caller was told: an answer, or the name of an error."""

    run: str
    told: str
    waited_s: float


class SimulatedHost:
    """One. After `die` another object with the same name and disk takes its place."""

    def __init__(
        self,
        fleet: SimulatedFleet,
        name: str,
        room: int,
        *,
        labels: dict[str, str] | None = None,
        tee: tuple[str, ...] = (),
        vm_memory_bytes: int = _GIB,
        asked: bool = True,
    ) -> None:
        """
        :param asked: whether callers ask it. If not, it serves, and need not hear of the others
        """
        self.name = name
        self.fleet = fleet
        self.room = room
        self.labels = labels or {}
        self.tee = tee
        self.vm_memory_bytes = vm_memory_bytes
        self.asked = asked
        self.disk = Disk()
        self.alive = False
        self.gone = trio.Event()
        self.scope = trio.CancelScope()
        self.engine = MemoryEngine(fleet.broker)
        self.members = Members(self.engine, name, self.look, trio.current_time)
        self.records = Records(self.engine)
        self.owner = fleet.owner(self.records, self.members)
        self.taking = Taking(self.engine, self.records, self.members, self.owner, self.look)
        self.entry = Entry(self.engine, self.records, self.members, self.taking, _LIMITS)
        self.nursery: trio.Nursery

    def look(self) -> HostFacts:
        free = self.room - sum(not vm.record.settled for vm in self.disk)
        return HostFacts(
            name=self.name,
            address=self.name,
            seat=self.name,
            vms_free=free,
            memory_free_bytes=free * self.vm_memory_bytes,
            vcpus_free=free,
            vm_memory_bytes=self.vm_memory_bytes,
            vm_vcpus=1,
            tee=dict.fromkeys(self.tee, free),
            labels=self.labels,
            draining=not self.alive,
        )

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it dies. What an earlier one left on its disk is taken up."""
        with self.scope:
            async with trio.open_nursery() as self.nursery:
                self.alive = True
                for vm in self.disk:
                    if vm.record.relay is RelayState.SENT and not vm.record.settled:
                        vm.set(RelayState.INTERRUPTED)
                    if not vm.record.settled:
                        vm.scope = trio.CancelScope()
                        self.nursery.start_soon(self._boot, vm)
                    self._see_to(vm)
                self.nursery.start_soon(self.members.keep_lease)
                if self.asked:
                    self.nursery.start_soon(self.members.watch)
                self.nursery.start_soon(self.taking.take_all)
                self.nursery.start_soon(self.entry.withdraw_all)
                self.nursery.start_soon(self._fence)
                async with self.engine.answering(self.name, self._on_call):
                    task_status.started()
                    await trio.sleep_forever()

    def die(self) -> None:
        self.alive = False
        self.engine.cut()
        self.gone.set()
        self.scope.cancel()

    def again(self) -> SimulatedHost:
        """The host after its death, with the same disk."""
        host = self.fleet.hosts[self.name] = SimulatedHost(
            self.fleet,
            self.name,
            self.room,
            labels=self.labels,
            tee=self.tee,
            vm_memory_bytes=self.vm_memory_bytes,
            asked=self.asked,
        )
        host.disk = self.disk
        return host

    async def _on_call(self, subject: str, body: bytes) -> bytes:
        words = body.decode(errors="replace").split(" ")
        if subject == "takes":
            return await self.taking.take_next(body)
        if subject == "left":
            self.taking.left(words[0], int(words[1]))
            return b""
        said = self.entry.answer(subject, words)
        assert said is not None
        return said

    # --- runs -------------------------------------------------------------------------------

    async def post(self, name: str, needs: Needs, owner: str) -> str:
        """What its caller is answered.

        :raises HostDied: if this host does, meanwhile
        """
        if not self.alive:
            raise HostDied
        async with move_on_when(self.gone.wait):
            while True:
                with suppress(Conflict):
                    return await self._post(name, needs, owner)
        raise HostDied

    async def _post(self, name: str, needs: Needs, owner: str) -> str:
        """:raises Conflict:"""
        run = Run(id=str(uuid.uuid4()), entry=self.name, needs=needs)
        self.fleet.runs[name] = run.id
        await self.entry.check(needs, owner, tells_hosts=True)
        async with self.entry.post(run, owner) as posting:
            there = partial(self._there, name)
            _, answer = await posting.land(partial(self._here, name), there)
            return answer

    async def _here(self, name: str, claim: Claim) -> str:
        self.fleet.claims[name].append(trio.current_time())
        vm = await self._start(name, claim)
        await vm.until(lambda: vm.record.settled)
        if vm.failure:
            raise vm.failure
        if not vm.record.answered:
            raise SupervisorError(f"its VM is {vm.record.relay}")
        return f"answer of {vm.name}"

    async def _there(self, name: str, claim: Claim) -> str:
        other = self.fleet.hosts[claim.host]
        if not other.alive or not self.fleet.linked(self.name, claim.host):
            await trio.sleep(1)
            raise MemberBroke(f"{claim.host} is not reached")
        async with move_on_when(partial(self._broken, other)):
            return await other._here(name, claim)
        raise MemberBroke(f"{claim.host} broke")

    async def _broken(self, other: SimulatedHost) -> None:
        async with trio.open_nursery() as nursery:

            async def wait(condition: Callable[[], Any]) -> None:
                await condition()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, other.gone.wait)
            nursery.start_soon(wait, partial(self.members.wait_lost, other.name))
            nursery.start_soon(wait, partial(self.fleet.wait_cut, self.name, other.name))

    async def _start(self, name: str, claim: Claim) -> SimulatedVm:
        for vm in self.disk:
            if vm.claim == (claim.run_id, claim.epoch):
                return vm
        async with self.taking.accepted(claim.run_id, claim.epoch):
            if self.look().room < 1:
                self.fleet.handed_back += 1
                await self.owner.hand_back(claim.run_id, claim.epoch)
                raise HandedBack("no room after all")
            vm = SimulatedVm(name, claim.run_id, claim.epoch)
            self.disk.append(vm)
            self.members.notice()
            self.nursery.start_soon(self._boot, vm)
            self._see_to(vm)
            return vm

    def _see_to(self, vm: SimulatedVm) -> None:
        self.nursery.start_soon(self._follow, vm)
        if self.fleet.kept_s < math.inf:
            self.nursery.start_soon(self._retain, vm)

    async def _boot(self, vm: SimulatedVm) -> None:
        """What a VM's task and its relay do."""
        chance = self.fleet.broker.random
        with vm.scope:
            try:
                await self._pass(chance.expovariate(1 / self.fleet.boot_s))
                await self.owner.prove(vm, RelayState.SENT)  # type: ignore[arg-type]
                vm.set(RelayState.SENT)
                await self.engine.runs.wait()
                self.fleet.received[vm.name] += 1
                await self._pass(chance.expovariate(1 / self.fleet.compute_s))
                await self.owner.prove(vm, RelayState.ANSWERED)  # type: ignore[arg-type]
                vm.set(RelayState.ANSWERED, answered=True)
            except NotOwner as error:
                vm.failure = error
                vm.set(RelayState.FAILED)

    # Of a Vm and of Vms they have what is asked of them.

    async def _follow(self, vm: SimulatedVm) -> None:
        await vm.until(lambda: vm.record.settled)
        self.members.notice()
        await self.owner.follow(vm, self.disk)  # type: ignore[arg-type]

    async def _retain(self, vm: SimulatedVm) -> None:
        """Remove a VM some time after its end."""
        await vm.until(lambda: vm.record.settled)
        await trio.sleep(self.fleet.kept_s if vm.record.answered else _KEPT_S)
        self.disk.remove(vm)
        vm.changed.notify()

    async def _fence(self) -> None:
        await self.owner.fence(self.disk)  # type: ignore[arg-type]

    async def _pass(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await self.engine.runs.wait()


class SimulatedFleet:
    """:ivar received: how many agents got each run's computation
    :ivar runs: ids by the names of runs
    :ivar claims: by the names of runs, the times at which the asked host knew who has them
    """

    def __init__(
        self,
        broker: Broker,
        *,
        boot_s: float = 2.0,
        compute_s: float = 3.0,
        owner: type[Owner] = Owner,
        kept_s: float = math.inf,
    ) -> None:
        """
        :param kept_s: how long a host keeps a VM whose run was answered
        """
        self.broker = broker
        self.kept_s = kept_s
        self.boot_s = boot_s
        self.compute_s = compute_s
        self.owner = owner
        self.hosts: dict[str, SimulatedHost] = {}
        self.received: Counter[str] = Counter()
        self.runs: dict[str, str] = {}
        self.claims: dict[str, list[float]] = defaultdict(list)
        self.outcomes: list[Outcome] = []
        self.faults = self.handed_back = 0
        self._cut: set[frozenset[str]] = set()
        self._links = Signal()

    async def add(self, name: str, room: int, **facts: Any) -> SimulatedHost:
        host = self.hosts[name] = SimulatedHost(self, name, room, **facts)
        await self.broker.nursery.start(host.live)
        return host

    async def revive(self, name: str) -> None:
        before = self.hosts[name]
        await self.broker.nursery.start(before.again().live)

    # --- links between members ---

    def cut(self, one: str, other: str) -> None:
        self._cut.add(frozenset((one, other)))
        self._links.notify()

    def mend_links(self) -> None:
        self._cut.clear()
        self._links.notify()

    def linked(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self._cut

    async def wait_cut(self, one: str, other: str) -> None:
        await self._links.until(lambda: not self.linked(one, other))

    # --- callers ---

    async def call(self, name: str, host: str, needs: Needs, owner: str = "") -> Outcome:
        """Post a run, and put on record what the caller is told."""
        begun = trio.current_time()
        try:
            told = await self.hosts[host].post(name, needs, owner)
        except HostDied:
            told = "host died"
        except SupervisorError as error:
            told = type(error).__name__
        outcome = Outcome(name, told, trio.current_time() - begun)
        self.outcomes.append(outcome)
        return outcome

    def check(self, posted: int) -> list[str]:
        """What is not as it must be once all faults are mended and all callers told."""
        wrong = [f"{name}: {count} agents" for name, count in self.received.items() if count > 1]
        if len(self.outcomes) != posted:
            wrong.append(f"{posted} runs were posted, {len(self.outcomes)} callers were told")
        for outcome in self.outcomes:
            wrong += self.wrong(outcome)
        for host in self.hosts.values():
            if busy := [vm.name for vm in host.disk if not vm.record.settled]:
                wrong.append(f"{host.name}: {busy} are not over")
            if host.taking.busy:
                wrong.append(f"{host.name} waits for runs that do not come")
        return wrong

    def wrong(self, outcome: Outcome) -> list[str]:
        """What the record of a run, as it is now, has against what its caller was told."""
        name = outcome.run
        kept = self.broker.tables["runs"].get(self.runs.get(name, "none"))
        if kept is None:
            return (
                []
                if outcome.told in ("NoHost", "FleetUnavailable", "host died")
                else [f"{name}: {outcome.told}, and not on record"]
            )
        run = Run.decode(kept.value)
        answered = outcome.told.startswith("answer")
        found = []
        if answered and (run.state is not RunState.ANSWERED or not self.received[name]):
            found.append(f"{name}: its caller has an answer, and the record says {run.state}")
        if answered and outcome.told != f"answer of {name}":
            found.append(f"{name}: its caller has {outcome.told}")
        if not answered and outcome.told != "host died" and run.state is RunState.ANSWERED:
            found.append(f"{name}: answered on record, its caller was told {outcome.told}")
        if outcome.told == "NotOwner":
            found.append(f"{name}: its caller was told of what is between hosts")
        if not run.state.is_final and outcome.told != "host died":
            # What a host put on record just before it died nobody does.
            claim = run.id, run.epoch
            has_vm = any(vm.claim == claim for host in self.hosts.values() for vm in host.disk)
            if has_vm or outcome.told != "FleetUnavailable":
                found.append(f"{name}: still {run.state}, its caller was told {outcome.told}")
        return found
