"""Room for VMs: who may start now, who waits, and who is turned away.

Owners take turns, and the runs of one owner are served in their order. Whoever is next is served
before the others, though another one might fit already. Else a big VM could wait for ever behind
small ones.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.config import Forwards
from supervisor.config.settings import go_duration
from supervisor.errors import AtCapacity, Stopping
from supervisor.qemu import cgroup
from supervisor.qemu.ports import PORTS_OF_A_VM
from supervisor.runs.fair_queue import FairQueue
from supervisor.state.record import Purpose
from supervisor.tee import reading
from supervisor.tee.facts import Technology
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from supervisor.config import LimitsConfig, NetConfig, QemuConfig
    from supervisor.state.record import Record

_MIB = 2**20


class Limit(enum.Enum):
    """What there is no more of, by the setting that raises it. In the order of `Resources`."""

    VMS = "MANAGER_MAX_VMS"
    MEMORY = "MANAGER_MEMORY_OVERCOMMIT"
    VCPUS = "MANAGER_VCPU_OVERCOMMIT"
    # No setting of ours raises the numbers: the firmware setup and the CPU do.
    SEV = "ASIDs of SEV"
    SEV_ES = "ASIDs of SEV-ES and SEV-SNP"
    TDX = "KeyIDs of TDX"
    PORTS = "MANAGER_QEMU_HOST_FWD_RANGE"


_NUMBERS = {Limit.SEV, Limit.SEV_ES, Limit.TDX}


class Refusal(enum.StrEnum):
    """Why a run is turned away."""

    #: Too many runs wait already.
    QUEUE_FULL = "queue-full"
    #: No room came free for as long as a run may wait.
    TIMEOUT = "timeout"
    #: Its VM would not fit on an empty host.
    NEVER = "never"
    #: All ASIDs or KeyIDs of its kind are taken.
    NO_NUMBER = "no-number"
    #: Its owner has its quota already.
    QUOTA = "quota"


@attrs.frozen
class Resources:
    """What a VM takes, what some VMs take together, what the host has, or the most allowed.

    :param vms: 0 for a VM that no run will have and that is there for a short time only
    :param sev, sev_es, tdx: numbers that the CPU knows encrypted guests by, of each kind
    :param ports: host ports
    """

    vms: int = 0
    memory_bytes: int = 0
    vcpus: int = 0
    sev: int = 0
    sev_es: int = 0
    tdx: int = 0
    ports: int = 0

    @classmethod
    def of_new_vm(
        cls,
        config: QemuConfig,
        purpose: Purpose = Purpose.RUN,
        technology: Technology | None = None,
        forwards: Forwards | None = None,
    ) -> Resources:
        """What a VM is started with. What could be plugged in later is not counted.

        :param forwards: None for those of the settings
        """
        vms = int(purpose is not Purpose.TEMPLATE)
        ports, number = _ports_of(forwards or config.net.forwards), _number_of(technology)
        return cls(vms, config.memory_bytes, config.smp_count, ports=ports, **number)

    @classmethod
    def on_record(cls, record: Record) -> Resources:
        """What this VM has taken."""
        options = record.options
        vms = int(record.purpose is not Purpose.TEMPLATE)
        ports, number = _ports_of(options.forwards), _number_of(options.technology)
        return cls(vms, record.memory_bytes, record.vcpus, ports=ports, **number)

    def __add__(self, more: Resources) -> Resources:
        pairs = zip(attrs.astuple(self), attrs.astuple(more), strict=True)
        return Resources(*(one + other for one, other in pairs))

    def __sub__(self, less: Resources) -> Resources:
        """:raises ValueError: if there is less than that"""
        pairs = zip(attrs.astuple(self), attrs.astuple(less), strict=True)
        left = [one - other for one, other in pairs]
        if min(left) < 0:
            raise ValueError(f"{less} was never taken")
        return Resources(*left)

    def over(self, budget: Resources) -> Limit | None:
        """The first limit that this exceeds."""
        pairs = zip(Limit, attrs.astuple(self), attrs.astuple(budget), strict=True)
        return next((limit for limit, taken, most in pairs if taken > most), None)


NONE = Resources()
#: Of what nobody knows how many there are. A launch beyond them fails.
ANY_NUMBER = 2**31


def _number_of(technology: Technology | None) -> dict[str, int]:
    """The member of `Resources` that a guest of this technology takes one of."""
    return {technology.numbered_as: 1} if technology else {}


def _ports_of(forwards: Forwards) -> int:
    return PORTS_OF_A_VM if forwards is Forwards.HOST else 0


def host_resources(net: NetConfig) -> Resources:
    """All memory that this host and our control groups allow, and the CPUs that we may use.

    Memory is the total and not what is free: free memory falls as VMs come to use what they were
    promised, so each would count twice. What the host needs for itself is what
    ``MANAGER_MEMORY_OVERCOMMIT`` below 1 is for. CPUs are those of this process's affinity, for
    QEMU inherits it: other CPUs (``taskset``, ``CPUAffinity=``, a cpuset) never run a guest. Ports
    are those of the range, if there is one.
    """
    numbers = {one.numbered_as: ANY_NUMBER for one in Technology} | reading.numbers()
    ports = len(net.host_fwd_range) if net.host_fwd_range else ANY_NUMBER
    return Resources(0, cgroup.memory_bytes(), cgroup.cpus(), ports=ports, **numbers)


def budget(limits: LimitsConfig, host: Resources) -> Resources:
    """The most that all VMs may take together."""
    return attrs.evolve(
        host,
        vms=limits.max_vms,
        memory_bytes=_times(host.memory_bytes, limits.memory_overcommit),
        vcpus=_times(host.vcpus, limits.vcpu_overcommit),
    )


def how_many(most: Resources, need: Resources) -> dict[Limit, int]:
    """How many VMs of one size each limit allows."""
    has_range = need.ports and most.ports < ANY_NUMBER
    return {
        Limit.VMS: most.vms,
        Limit.MEMORY: most.memory_bytes // need.memory_bytes,
        Limit.VCPUS: most.vcpus // need.vcpus,
        **({Limit.PORTS: most.ports // need.ports} if has_range else {}),
    }


def never(most: Resources, need: Resources) -> AtCapacity | None:
    """Why such a VM does not fit even alone, and what to set; None if it fits."""
    match need.over(most):
        case None:
            return None
        case Limit.VMS:
            detail, advice = "MANAGER_MAX_VMS=0 allows no VM at all", "raise it"
        case Limit.MEMORY:
            detail = (
                f"a VM needs {in_mib(need.memory_bytes)} of memory, and all VMs together may have"
                f" {in_mib(most.memory_bytes)} on this host"
            )
            advice = "lower MANAGER_QEMU_MEMORY_SIZE or raise MANAGER_MEMORY_OVERCOMMIT"
        case Limit.VCPUS:
            detail = (
                f"a VM needs {need.vcpus} virtual CPUs, and all VMs together may have"
                f" {most.vcpus} on this host"
            )
            advice = "lower MANAGER_QEMU_SMP_COUNT or raise MANAGER_VCPU_OVERCOMMIT"
        case Limit.PORTS:
            detail = f"a VM needs {need.ports} host ports, and the range has {most.ports}"
            advice = "set MANAGER_QEMU_HOST_FWD_RANGE to a wider one"
        case kind:
            detail = f"this host has no {kind.value}"
            advice = "give them some in the firmware setup"
    return AtCapacity(detail, advice=advice, retry_after_s=None)


@attrs.define(eq=False)
class _Waiter:
    """``answered`` is set when its turn has come, or when it never will."""

    need: Resources
    owner: str
    deadline: float
    answered: trio.Event = attrs.field(factory=trio.Event)
    admitted: bool = False
    displaced: bool = False
    without: Limit | None = None


class Admission:
    """The room of one supervisor's VMs. Whoever entered or took gives it back with `leave`.

    ASIDs and KeyIDs are not waited for: a run that needs one would keep those waiting that do not.

    :ivar budget: the most that may be taken
    :ivar taken: what is taken; more than the budget if VMs were adopted beyond it
    :ivar refused: runs that were turned away so far
    :ivar changed: notified when room is taken or given back, and when somebody waits or does not
    """

    def __init__(self, limits: LimitsConfig, host: Resources) -> None:
        self.budget = budget(limits, host)
        self.taken = Resources()
        self.refused: Counter[Refusal] = Counter()
        self.changed = Signal()
        self._limits = limits
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def enter(self, need: Resources, owner: str = "", coming: Resources = NONE) -> None:
        """Take room for one VM, as soon as there is some and it is the owner's turn.

        Cancelled, it has taken nothing. In a full queue it takes the place of the newest run of an
        owner who has more runs waiting: else one owner alone could keep all others out.

        :param coming: what others are about to give back for this run
        :raises AtCapacity: at once if too many wait already or it would never fit; else when it
            has waited too long, or loses its place to another owner
        :raises Stopping: if `close` was or is called
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check(need, owner, coming)
        if self._is_full(need, coming):
            loser = self._queue.drop_from_most()
            loser.displaced = True
            loser.answered.set()
        # No checkpoint lies between a call and its place in the queue, so the places are in
        # the order of the calls.
        waiter = _Waiter(need, owner, trio.current_time() + self._limits.queue_timeout_s)
        self._queue.append(owner, waiter)
        self._call()
        try:
            with trio.CancelScope(deadline=waiter.deadline):
                await waiter.answered.wait()
            if self._closed:
                raise Stopping
            if waiter.displaced:
                raise self._queue_full(need)
            if waiter.without:
                raise self._no_number_left(waiter.without)
            if not waiter.admitted:
                raise self._waited_too_long(need)
        except BaseException:
            self._withdraw(waiter)
            raise

    def check(self, need: Resources, owner: str = "", coming: Resources = NONE) -> None:
        """Refuse at once whoever would not even wait.

        :param coming: what others are about to give back for this run
        :raises AtCapacity: if too many wait already or it would never fit
        :raises Stopping: if `close` was called
        """
        if self._closed:
            raise Stopping
        if error := never(self.budget, need):
            self.refused[Refusal.NEVER] += 1
            raise error
        if kind := self._number_over(need, coming):
            raise self._no_number_left(kind)
        if self._is_full(need, coming) and not self._queue.is_crowded_by_another(owner):
            raise self._queue_full(need)

    def try_enter(self, need: Resources) -> bool:
        """The same for somebody who would rather not start than keep others waiting."""
        free = self.has_room(need)
        if free:
            self.take(need)
        return free

    def has_room(self, need: Resources) -> bool:
        """Whether `try_enter` would take it."""
        return not self._closed and self._is_room(need)

    def take(self, need: Resources) -> None:
        """Count a VM that runs already, whether there is room for it or not."""
        self.taken = self.taken + need
        self.changed.notify()

    def leave(self, need: Resources) -> None:
        """Give the room of one VM back to whoever waits.

        :raises ValueError: if it was not taken
        """
        self.taken = self.taken - need
        self._call()

    def close(self) -> None:
        """Admit nobody any more; whoever waits hears of it now."""
        self._closed = True
        for waiter in self._queue:
            waiter.answered.set()
        self._queue.clear()

    def _call(self) -> None:
        """Admit from the head of the queue as many as there is room for."""
        self.changed.notify()  # who waits for it runs after this
        while self._queue:
            waiter = self._queue.head
            # There was one left when it began to wait, and others were faster.
            waiter.without = self._number_over(waiter.need)
            if not waiter.without:
                if self._held_up_by(waiter.need):
                    return
                self.take(waiter.need)
                waiter.admitted = True
            self._queue.pop()
            waiter.answered.set()

    def _number_over(self, need: Resources, coming: Resources = NONE) -> Limit | None:
        """The kind of numbers of which there are too few, if the run needs one."""
        wanted = self.taken + need - coming
        pairs = zip(Limit, *map(attrs.astuple, (need, wanted, self.budget)), strict=True)
        return next(
            (one for one, asked, all_, most in pairs if one in _NUMBERS and asked and all_ > most),
            None,
        )

    def _no_number_left(self, kind: Limit) -> AtCapacity:
        return self._refuse(Refusal.NO_NUMBER, f"all {kind.value} are taken")

    def _withdraw(self, waiter: _Waiter) -> None:
        if waiter.admitted:
            # Its turn came after it was cancelled and before it could know.
            self.leave(waiter.need)
        elif self._queue.remove(waiter.owner, waiter):
            # It may have been what the others waited for.
            self._call()

    def _is_full(self, need: Resources, coming: Resources) -> bool:
        """Whether it would have to wait, and nobody more may wait."""
        return not self._is_room(need, coming) and self.waiting >= self._limits.queue

    def _is_room(self, need: Resources, coming: Resources = NONE) -> bool:
        return not self._queue and (self.taken + need - coming).over(self.budget) is None

    def _held_up_by(self, need: Resources) -> Limit | None:
        return (self.taken + need).over(self.budget)

    # --- words ------------------------------------------------------------------------------

    def _queue_full(self, need: Resources) -> AtCapacity:
        waiting = self.waiting
        queue = f"{waiting} of {self._limits.queue} runs wait" if waiting else "no run may wait"
        why = f"{self._reached(need)}, and {queue} for room (MANAGER_QUEUE)"
        return self._refuse(Refusal.QUEUE_FULL, why)

    def _waited_too_long(self, need: Resources) -> AtCapacity:
        return self._refuse(
            Refusal.TIMEOUT,
            f"no room came free within {go_duration(self._limits.queue_timeout_s)}"
            f" (MANAGER_QUEUE_TIMEOUT): {self._reached(need)}, with {self.waiting - 1} more"
            " waiting",
        )

    def _refuse(self, why: Refusal, detail: str) -> AtCapacity:
        """Nobody knows when a VM ends. What counts as a long wait here serves as the estimate."""
        self.refused[why] += 1
        retry_s = max(1, math.ceil(self._limits.queue_timeout_s))
        return AtCapacity(
            detail,
            advice=f"end a VM, raise the limits, or try again in {retry_s} s",
            retry_after_s=retry_s,
        )

    def _reached(self, need: Resources) -> str:
        """What holds up the head of the queue, and with it all. ``need``: if nobody waits."""
        need = self._queue.head.need if self._queue else need
        match self._held_up_by(need):
            case Limit.MEMORY:
                return (
                    f"the VMs have {in_mib(self.taken.memory_bytes)} of"
                    f" {in_mib(self.budget.memory_bytes)} of memory and the next one needs"
                    f" {in_mib(need.memory_bytes)} (MANAGER_MEMORY_OVERCOMMIT)"
                )
            case Limit.VCPUS:
                return (
                    f"the VMs have {self.taken.vcpus} of {self.budget.vcpus} virtual CPUs and the"
                    f" next one needs {need.vcpus} (MANAGER_VCPU_OVERCOMMIT)"
                )
            case Limit.PORTS:
                return (
                    f"the VMs have {self.taken.ports} of {self.budget.ports} host ports and the"
                    f" next one needs {need.ports} (MANAGER_QEMU_HOST_FWD_RANGE)"
                )
            case _:
                return f"{self.taken.vms} of {self.budget.vms} VMs run (MANAGER_MAX_VMS)"


def _times(amount: int, ratio: float) -> int:
    """Rounded down, but 100 times 0.29 is 29."""
    return math.floor(round(amount * ratio, 6))


def in_mib(size: int) -> str:
    return f"{size // _MIB} MiB"
