"""All VMs of one supervisor: admission, run, list, end, adoption. Owns the nursery they live in."""

from __future__ import annotations

import contextvars
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor import adoption, retention
from supervisor.config import MAX_COMPUTATION
from supervisor.errors import (
    AtCapacity,
    Busy,
    InvalidRequest,
    LaunchError,
    Stopping,
    SupervisorError,
    TooLarge,
    VmNotFound,
)
from supervisor.journal import Journal
from supervisor.life import Life
from supervisor.limits import Admission, Need, host_room
from supervisor.link import LinkState
from supervisor.metrics import Gauges, Metrics
from supervisor.ports import PortPool
from supervisor.record import EndMode, Record, Wishes
from supervisor.vm import Vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from supervisor.adoption import Inheritance
    from supervisor.config import Config
    from supervisor.launch import Host
    from supervisor.record import Event
    from supervisor.store import Store

log = structlog.stdlib.get_logger()

_CALLER_LEFT = "its caller went away"

_LONGEST_KEY = 255


class Service:
    """The VMs, by id, in the order of their start. ``journal`` tells of each change."""

    def __init__(self, config: Config, host: Host, journal: Journal, nursery: trio.Nursery) -> None:
        self.config = config
        self.host = host
        self.journal = journal
        self.vms: dict[str, Vm] = {}
        self.admission = Admission(config.limits, host_room())
        self.metrics = Metrics(self._gauges)
        self._by_key: dict[str, Vm] = {}
        #: Keys of runs that are being admitted.
        self._arriving: dict[str, trio.Event] = {}
        #: VMs that are ended only to be removed.
        self._deleting: set[str] = set()
        #: Runs that have room and are not listed yet.
        self._starting = 0
        self._closing = False
        self._nursery = nursery
        self._context = contextvars.copy_context()
        self._ports = PortPool(config.qemu.net)
        self._vm_ended = trio.Event()

    def get(self, vm_id: str) -> Vm:
        """:raises VmNotFound:"""
        try:
            return self.vms[vm_id]
        except KeyError:
            raise VmNotFound(vm_id) from None

    # --- runs -------------------------------------------------------------------------------

    async def run(self, computation: bytes, wishes: Wishes) -> Vm:
        """A VM whose agent has answered the computation.

        Failing, or cancelled without an idempotency key to come back with, the VM is ended;
        what is known of it stays until it is deleted.

        :raises SupervisorError:
        """
        vm = await self.submit(computation, wishes)
        try:
            await vm.wait_answered()
        except trio.Cancelled:
            if not wishes.idempotency_key:
                vm.ask_to_end(EndMode.FORCE, _CALLER_LEFT)
            raise
        return vm

    async def submit(self, computation: bytes, wishes: Wishes) -> Vm:
        """A VM for the computation, on record; it tells how far it has come.

        With a key that was used before it is the VM of that time.

        :raises SupervisorError: if it is not admitted
        """
        _check(computation)
        key = wishes.idempotency_key
        if key is None:
            return await self._admit(computation, wishes)
        if not 0 < len(key) <= _LONGEST_KEY:
            raise InvalidRequest(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters")
        while key in self._arriving:
            await self._arriving[key].wait()
        if vm := self._by_key.get(key):
            if vm.record.wishes.fingerprint != wishes.fingerprint:
                raise Busy(f"the idempotency key {key!r} belongs to another run, of VM {vm.id}")
            return vm
        self._arriving[key] = trio.Event()
        try:
            return await self._admit(computation, wishes)
        finally:
            self._arriving.pop(key).set()

    async def _admit(self, computation: bytes, wishes: Wishes) -> Vm:
        if self._closing:
            raise Stopping
        need = Need.of(self.config.qemu)
        try:
            await self.admission.enter(need)
        except AtCapacity as error:
            log.warning("run refused", problem=str(error))
            raise
        self._starting += 1
        try:
            self._check_agent()
            record = await self._put_on_record(need, wishes, computation)
        except BaseException:
            self.admission.leave(need)
            raise
        finally:
            self._starting -= 1
        vm = self._add(record)
        life = Life(vm, self.host, self._ports)
        self._spawn(self._supervise, vm, life.run)
        self._spawn(self._measure, vm)
        return vm

    def _check_agent(self) -> None:
        url = self.config.agent.url
        if url.is_loopback or url.port is None:
            return
        holders = [f"VM {vm.id}" for vm in self.vms.values() if not vm.ended]
        if self._starting > 1:
            holders.append("another VM that is being started")
        if holders:
            raise Busy(
                f"{holders[0]} has the only agent there is, at {url}: end it first,"
                " or set MANAGER_AGENT_GRPC_URL so that each VM has its own"
            )

    async def _put_on_record(self, need: Need, wishes: Wishes, computation: bytes) -> Record:
        record = Record(
            id=str(uuid.uuid4()),
            created_at=datetime.now(UTC),
            wishes=wishes,
            memory_bytes=need.memory_bytes,
            vcpus=need.vcpus,
        )
        try:
            return await self.journal.create(record, computation)
        except OSError as error:
            raise LaunchError(
                f"the record of VM {record.id} cannot be written ({error.strerror}), so it is not"
                f" started; see to {self.config.qemu.tmp}"
            ) from error

    def _add(self, record: Record) -> Vm:
        vm = Vm(record, self.config, self.journal)
        self.vms[vm.id] = vm
        if record.wishes.idempotency_key:
            self._by_key[record.wishes.idempotency_key] = vm
        return vm

    def follow(
        self, after: int | None, vm_id: str | None
    ) -> AbstractAsyncContextManager[tuple[list[Event], trio.MemoryReceiveChannel[Event]]]:
        """Events as `Journal.follow` gives them; those on record of one VM alone, if named."""
        return self.journal.follow(after, [vm_id] if vm_id else list(self.vms))

    # --- the end of VMs ---------------------------------------------------------------------

    async def end(self, vm: Vm, mode: EndMode) -> None:
        """Return once the VM has ended. Being cancelled does not call the end off."""
        vm.ask_to_end(mode, "it was asked for")
        await vm.wait_ended()

    async def delete(self, vm: Vm) -> None:
        """End the VM by force if need be, and remove its directory and all trace of it.

        Being cancelled does not leave it half done.
        """
        done = trio.Event()

        async def finish() -> None:
            self._deleting.add(vm.id)
            vm.ask_to_end(EndMode.FORCE, "it was deleted")
            if await vm.wait_over():
                await self._forget(vm)
            done.set()

        self._spawn(finish)
        await done.wait()
        await vm.wait_ended()

    async def _forget(self, vm: Vm) -> None:
        self._deleting.discard(vm.id)
        if self.vms.pop(vm.id, None):
            key = vm.record.wishes.idempotency_key
            if key:
                self._by_key.pop(key, None)
            await self.journal.remove(vm.id)

    def _gauges(self) -> Gauges:
        vms = self.vms.values()
        return Gauges(
            by_state=Counter(vm.status.state.value for vm in vms),
            waiting=self.admission.waiting,
            lost=sum(vm.monitor_state is LinkState.LOST for vm in vms),
        )

    # --- the supervisor's own stop ----------------------------------------------------------

    def hurry(self) -> None:
        """End every VM now, without asking the guests."""
        for vm in self.vms.values():
            vm.ask_to_end(EndMode.FORCE, "the supervisor stops at once")

    async def end_all(self) -> None:
        """Admit no VM any more, and return once none runs. All graces run at the same time."""
        self._close()
        running = [vm for vm in self.vms.values() if not vm.ended]
        log.info("ending all VMs", vms=[vm.id for vm in running])
        for vm in running:
            vm.ask_to_end(EndMode.GRACEFUL, "the supervisor stops")
        for vm in running:
            await vm.wait_over()

    async def leave_all(self) -> None:
        """Admit no VM any more, and let all go that run. Those still being started are ended.

        After `end_all`, or called again, it finds nothing to do.
        """
        if self._closing:
            return
        self._close()
        left = [vm for vm in self.vms.values() if vm.leave()]
        if left:
            log.info("leaving VMs to the next supervisor", vms=[vm.id for vm in left])
        unborn = [vm for vm in self.vms.values() if not vm.ended and vm not in left]
        for vm in unborn:
            vm.ask_to_end(EndMode.FORCE, "the supervisor stops")
        for vm in [*left, *unborn]:
            await vm.wait_over()

    def _close(self) -> None:
        self._closing = True
        self.admission.close()

    def _spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """A task that outlives the request that begins it, and so takes nothing of it along.

        Else the request's body would stay in memory for as long as the VM runs.
        """
        self._context.copy().run(self._nursery.start_soon, task, *args)

    # --- the tasks --------------------------------------------------------------------------

    def inherit(self, inheritance: Inheritance) -> None:
        """List what an earlier supervisor left, and take up what of it lives."""
        for record in inheritance.records:
            vm = self._add(record)
            vm.reply = inheritance.replies.get(vm.id)
            if record.ended_at is None:
                self.admission.take(Need(record.memory_bytes, record.vcpus))
                found = inheritance.processes.get(record.id)
                life = Life(vm, self.host, self._ports)
                if vm.relay.pending:
                    self._spawn(self._measure, vm)
                self._spawn(self._supervise, vm, life.take_up, found)

    async def _supervise(self, vm: Vm, life: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await life(*args)
        finally:
            self.admission.leave(Need(vm.record.memory_bytes, vm.record.vcpus))
            self._vm_ended.set()

    async def _measure(self, vm: Vm) -> None:
        started = trio.current_time()
        try:
            await vm.wait_answered()
            outcome = "answered"
            log.info("answered", vm=vm.id)
        except SupervisorError:
            outcome = "abandoned" if vm.end_request.why == _CALLER_LEFT else "failed"
        self.metrics.count_run(outcome, trio.current_time() - started)

    async def keep_within_limits(self) -> None:
        """Forget ended VMs, oldest first, beyond what is to be kept."""
        while True:
            self._vm_ended = trio.Event()
            now = datetime.now(UTC)
            staying = [vm for vm in self.vms.values() if vm.id not in self._deleting]
            for vm in retention.surplus(staying, self.config.retention, now):
                log.info("forgetting an ended VM", vm=vm.id)
                await self._forget(vm)
            with trio.move_on_after(retention.LOOK_S):
                await self._vm_ended.wait()


def _check(computation: bytes) -> None:
    if not computation:
        raise InvalidRequest("computation is empty", member="computation")
    if len(computation) > MAX_COMPUTATION:
        raise TooLarge(
            f"computation is {len(computation)} bytes, the limit is {MAX_COMPUTATION}",
            member="computation",
        )


@asynccontextmanager
async def open_service(config: Config, host: Host, store: Store) -> AsyncIterator[Service]:
    """A service that has taken up what an earlier one left.

    Leaving the context, cancelled or not, leaves the VMs running that `Service.end_all` has
    not ended.
    """
    async with trio.open_nursery() as nursery:
        closing = trio.Event()
        service: Service = await nursery.start(_house, config, host, store, closing)
        try:
            yield service
        finally:
            closing.set()


async def _house(
    config: Config,
    host: Host,
    store: Store,
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[Service],
) -> None:
    """The VMs' nursery, in a task of its own: shielded, for it outlives what uses it."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        inheritance = await adoption.look(config, store)
        journal = Journal(store, inheritance.sequence)
        service = Service(config, host, journal, nursery)
        await adoption.announce(inheritance, journal)
        service.inherit(inheritance)
        nursery.start_soon(service.keep_within_limits)
        task_status.started(service)
        await closing.wait()
        with trio.move_on_after(config.shutdown.longest_s):
            await service.leave_all()
        journal.told.close()
        nursery.cancel_scope.cancel()
