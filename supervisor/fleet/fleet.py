"""One member of a fleet: its parts, and the tasks that keep it one."""

from __future__ import annotations

import hashlib
import math
import os
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakValueDictionary

import attrs
import structlog
import trio

from supervisor.build import build_info
from supervisor.config import TemplateUse
from supervisor.errors import (
    AtCapacity,
    FleetUnavailable,
    HandedBack,
    HostError,
    HostLost,
    NotOwner,
    Stopping,
    SupervisorError,
)
from supervisor.fleet.connection import client_context
from supervisor.fleet.entry import Entry
from supervisor.fleet.facts import HostFacts
from supervisor.fleet.keys import Keys
from supervisor.fleet.ledger import is_epoch
from supervisor.fleet.members import LEASE_S, Members
from supervisor.fleet.metrics import Now
from supervisor.fleet.nats import NatsEngine
from supervisor.fleet.owner import Owner, goes_back
from supervisor.fleet.records import Records
from supervisor.fleet.taking import Taking
from supervisor.qemu import accel
from supervisor.qemu.host import boot_id
from supervisor.qemu.ports import PORTS_OF_A_VM
from supervisor.runs.admission import Resources
from supervisor.state.record import EndCause, EndMode, RelayState
from supervisor.tee.facts import Technology
from supervisor.templates.registry import TemplateState

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prometheus_client.registry import Collector

    from supervisor.caller import Caller
    from supervisor.config import Config
    from supervisor.fleet.identity import Identity
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

#: How often the image and the firmware setup are looked at.
_LOOK_S = 30.0
_RETRY_S = 0.5
_FIND_S = 1.0
#: To tell the others that this supervisor stops.
_LEAVE_S = 1.0


class Fleet:
    """This host in it. `serve` is its task.

    :ivar name: of this host
    :ivar draining: whether it takes no runs
    """

    def __init__(self, config: Config, identity: Identity, now: Callable[[], float]) -> None:
        self.identity = identity
        self.name = identity.name
        self.address = config.fleet.address or identity.address
        self.draining = False
        self.engine = NatsEngine(self.name)
        self.members = Members(self.engine, self.name, self.look, now)
        self.records = Records(self.engine)
        self.owner = Owner(self.records, self.members)
        self.taking = Taking(self.engine, self.records, self.members, self.owner, self.look)
        self.keys = Keys(self.engine, self.records)
        self.entry = Entry(self.engine, self.records, self.members, self.taking, config.limits)
        self._config = config
        self._starting: WeakValueDictionary[tuple[str, int], trio.Lock] = WeakValueDictionary()
        self._service: Service | None = None
        #: When a host has last not answered whether it has a VM, on trio's clock.
        self._unheard_at = -math.inf
        self._facts = HostFacts(
            name=self.name,
            address=str(self.address),
            seat=hashlib.sha256(f"{boot_id()} {config.qemu.tmp}".encode()).hexdigest()[:16],
            version=build_info().version,
            vm_memory_bytes=config.qemu.memory_bytes,
            vm_vcpus=config.qemu.smp_count,
            templates=config.start.templates is not TemplateUse.OFF,
            labels=dict(config.fleet.labels or {}),
            firmware=config.qemu.firmware.code_file.name,
            since=time.time(),
        )

    # --- what this host can do --------------------------------------------------------------

    def look(self) -> HostFacts:
        """What it can do now."""
        service = self._service
        if service is None or service.vms.closing:
            return attrs.evolve(self._facts, draining=True)
        vms, admission = service.vms, service.vms.admission
        free = attrs.astuple(admission.budget - _within(admission.taken, admission.budget))
        # What is kept for runs gives way to one, or is what it gets.
        spares = [Resources.on_record(vm.record) for vm in (*service.pool.vms, *service.held.vms)]
        room = sum(spares, Resources(*free))
        numbers = {"sev": room.sev, "sev_es": room.sev_es, "tdx": room.tdx}
        ready = any(one.state is TemplateState.READY for one in vms.templates.entries.values())
        return attrs.evolve(
            self._facts,
            vms_free=0 if admission.waiting else min(room.vms, room.ports // PORTS_OF_A_VM),
            memory_free_bytes=room.memory_bytes,
            vcpus_free=room.vcpus,
            tee={name: numbers[Technology(name).numbered_as] for name in self._facts.tee},
            template=ready or bool(spares),
            draining=self.draining,
        )

    async def _notice(self, service: Service) -> None:
        """Have it known at once when room is taken or given back."""
        while True:
            await service.vms.admission.changed.next().wait()
            self.members.notice()

    async def _look_again(self, service: Service) -> None:
        """Keep what takes longer to find out: the image's digest, and technologies."""
        self._facts = attrs.evolve(self._facts, qemu=str(service.vms.host.qemu))
        lacks = partial(accel.what_host_lacks, self._config.qemu, service.vms.host)
        seen: object = None
        while True:
            present, digest = await trio.to_thread.run_sync(
                _digest, self._config.qemu.disk.file, seen
            )
            if present != seen:
                seen = present
                self._facts = attrs.evolve(self._facts, image=digest)
            starts = await trio.to_thread.run_sync(_technologies, lacks)
            self._facts = attrs.evolve(self._facts, tee=dict.fromkeys(starts, 0))
            self.members.notice()
            await trio.sleep(_LOOK_S)

    def collectors(self) -> list[Collector]:
        """What Prometheus may ask."""
        return [self.entry.placed, Now(self._gauges)]

    def _gauges(self) -> dict[str, float]:
        return {
            "connected": self.engine.connected,
            "lease": self.members.is_safe,
            "hosts": len(self.members.hosts),
            "draining": self.draining,
            "waiting": self.entry.waiting,
        }

    # --- tasks ------------------------------------------------------------------------------

    def tls(self) -> ssl.SSLContext:
        """What this member shows to the others, and whom it believes. Blocking."""
        return client_context(self._config.fleet.directory)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Be connected to the fleet within the body. asyncio's loop must be there."""
        config = self._config.fleet
        assert config.servers
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.engine.keep_connected, config.servers, config.directory)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def serve(self, service: Service) -> None:
        """Be a member until cancelled."""
        self._service = service
        for vm in service.vms:
            if vm.record.options.fleet_run:
                self.follow(service, vm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_again, service)
            nursery.start_soon(self._notice, service)
            nursery.start_soon(self.members.keep_lease)
            nursery.start_soon(self.members.watch)
            nursery.start_soon(self.owner.fence, service.vms)
            nursery.start_soon(self.taking.take_all)
            nursery.start_soon(self.entry.withdraw_all)
            nursery.start_soon(self._answer)
            nursery.start_soon(self._close, service)
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(_LEAVE_S, shield=True):
                    # VMs that are left running are this host's until its lease runs out: the next
                    # supervisor has that long.
                    stay = [vm for vm in service.vms if vm.record.purpose.is_for_a_caller]
                    stays = not all(vm.ended for vm in stay)
                    await (self.members.renew_last() if stays else self.members.leave())

    async def _close(self, service: Service) -> None:
        await service.vms.closed.wait()
        self.entry.close()

    async def start(
        self,
        computation: bytes,
        options: RunOptions,
        caller: Caller,
        claim: tuple[str, int],
    ) -> Vm:
        """A VM for a run that this host has; the one it has already, if it is asked again.

        :param claim: the run's id, and the epoch in which this host has it
        :raises HandedBack: if there is no room for it after all; then it is another host's
        :raises SupervisorError: if it is not admitted; then it is over
        """
        service, (run_id, epoch) = self._service, claim
        if service is None:
            raise Stopping
        # Whether two requests are one run the fleet has found out, and said by the claim.
        options = attrs.evolve(options, fleet_run=run_id, epoch=epoch, request_hash="")
        # A connection may break for the host that asks, and not yet for this one.
        async with self._starting.setdefault(claim, trio.Lock()):
            for vm in service.vms:
                if (vm.record.options.fleet_run, vm.record.options.epoch) == claim:
                    return vm
            async with self.taking.accepted(run_id, epoch):
                try:
                    if self.draining:  # since it said that it takes this run
                        raise Stopping(f"host {self.name} is being drained")
                    vm = await service.submit(computation, options, caller)
                except BaseException as error:
                    if not _has_no_room(error):
                        service.vms.spawn(self.owner.give_up, run_id, epoch)
                        raise
                    await self.owner.hand_back(run_id, epoch)
                    raise HandedBack(f"host {self.name} has no room: {error}") from error
            self.follow(service, vm)
            return vm

    async def wait_answered(self, vm: Vm, options: RunOptions, patience_s: float = 0.0) -> None:
        """As the service's.

        :raises HandedBack: if another host is to have the run
        """
        if self._service is None:
            raise Stopping
        try:
            await self._service.wait_answered(vm, options, patience_s)
        except SupervisorError as error:
            if goes_back(vm.record):
                raise HandedBack(f"host {self.name} was stopped: {error}") from error
            raise

    @property
    def busy(self) -> int:
        """How many VMs here have a run that is not over."""
        vms = self._service.vms if self._service else ()
        return sum(vm.record.purpose.is_for_a_caller and not vm.record.settled for vm in vms)

    def drain(self) -> None:
        """Take no runs any more, and give those back whose agents have not got them."""
        self.draining = True
        self.members.notice()
        if self._service:
            for vm in self._service.vms:
                if vm.record.options.fleet_run and vm.record.relay is RelayState.WAITING:
                    self._service.vms.spawn(self._hand_back, vm)

    def resume(self) -> None:
        """Take runs again."""
        self.draining = False
        self.members.notice()

    async def _hand_back(self, vm: Vm) -> None:
        options = vm.record.options
        try:
            await self.owner.hand_back(options.fleet_run, options.epoch)
        except (NotOwner, FleetUnavailable) as error:
            log.info("run stays here", vm=vm.id, problem=str(error))
            return
        why = f"host {self.name} is being drained"
        vm.failure = vm.failure or HandedBack(f"{why}: run {options.fleet_run} is given back")
        vm.request_end(EndMode.FORCE, EndCause.HANDED_BACK, why)

    def follow(self, service: Service, vm: Vm) -> None:
        """Tell the fleet how the run of a VM ends."""
        service.vms.spawn(self.owner.follow, vm, service.vms)

    async def _answer(self) -> None:
        """Answer the others' calls, over each connection that there is."""
        while True:
            with suppress(FleetUnavailable):
                await self.engine.changed.until(lambda: self.engine.connected)
                async with self.engine.answering(self.name, self._on_call):
                    await self.engine.changed.until(lambda: not self.engine.connected)
            await trio.sleep(_RETRY_S)

    async def _on_call(self, subject: str, body: bytes) -> bytes:
        words = body.decode(errors="replace").split(" ")
        if (said := self.entry.answer(subject, words)) is not None:
            return said
        match subject, words:
            case "takes", _:
                return await self.taking.take_next(body)
            case "left", [run_id, epoch] if is_epoch(epoch):
                self._abandon(run_id, int(epoch))
            case "find", [vm_id]:
                has = self._service is not None and vm_id in self._service.vms
                return self.name.encode() if has else b""
        return b""

    def _abandon(self, run_id: str, epoch: int) -> None:
        self.taking.left(run_id, epoch)
        service = self._service
        for vm in service.vms if service else ():
            options = vm.record.options
            is_it = (options.fleet_run, options.epoch) == (run_id, epoch)
            if service and is_it and not (options.idempotency_key or vm.record.settled):
                service.abandon(vm)

    async def find(self, vm_id: str) -> str | None:
        """The member that has a VM; None if there is no such VM.

        :raises FleetUnavailable: if nobody can be asked
        :raises HostLost: if none says so, and one that is lost or does not answer may have it
        """
        hosts = self.members.hosts
        found = await self.engine.ask_all("find", vm_id.encode(), _FIND_S, len(hosts))
        name = found.decode(errors="replace") if found else ""
        if name in hosts:
            return name
        if found is None:
            self._unheard_at = trio.current_time()
        self.check_lost(vm_id)
        return None

    def check_lost(self, vm_id: str) -> None:
        """Of a VM that no host has that answers, or that is another caller's, alike.

        :raises HostLost: if one that is lost, or has just not answered, may have it
        """
        unheard = trio.current_time() - self._unheard_at < LEASE_S
        if (unheard or self.members.lost) and _is_uuid(vm_id):
            raise HostLost(vm_id, self.members.lost)


def _within(taken: Resources, budget: Resources) -> Resources:
    """What is taken, and no more than there is: adopted VMs may be more."""
    pairs = zip(attrs.astuple(taken), attrs.astuple(budget), strict=True)
    return Resources(*(min(one, most) for one, most in pairs))


def _has_no_room(error: BaseException) -> bool:
    """Whether another host may have room; an owner that has its quota gets round all of them."""
    if isinstance(error, AtCapacity):
        return error.retry_after_s is not None
    return isinstance(error, Stopping)


def _is_uuid(given: str) -> bool:
    """Whether a VM could have this id."""
    try:
        return str(UUID(given)) == given
    except ValueError:
        return False


def _technologies(lacks: Callable[[Technology], object]) -> list[str]:
    """Those that this host starts guests of. Blocking."""
    found = []
    for technology in Technology:
        with suppress(HostError):
            if lacks(technology) is None:
                found.append(technology.value)
    return found


def _digest(image: Path | None, seen: object) -> tuple[object, str]:
    """Of the guest image, if it is another one than was seen."""
    try:
        if image is None:
            return None, ""
        found = image.stat()
        present = (str(image), found.st_ino, found.st_size, found.st_mtime_ns)
        if present == seen:
            return seen, ""
        with image.open("rb") as file:
            return present, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {os.strerror(error.errno or 0)}", ""
