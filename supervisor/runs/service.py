"""All VMs of one supervisor: admission, run, list, end, adoption. Owns the nursery they live in."""

from __future__ import annotations

import contextvars
import uuid
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import MAX_COMPUTATION, TemplateUse
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
from supervisor.qemu.connection import MonitorState
from supervisor.qemu.ports import PortPool
from supervisor.qemu.process import boottime_s
from supervisor.runs import retention
from supervisor.runs.admission import Admission, Need, host_room
from supervisor.runs.idempotency import IdempotencyKeys
from supervisor.runs.metrics import Gauges, Metrics
from supervisor.runs.pool import Pool
from supervisor.runs.template_builder import TemplateBuilder
from supervisor.state.record import EndMode, Purpose, Record, RelayState, RunOptions
from supervisor.templates.registry import Templates
from supervisor.vm.task import VmTask
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from supervisor.config import Config
    from supervisor.qemu.host import Host
    from supervisor.state.journal import Journal
    from supervisor.state.record import Event
    from supervisor.state.recovery import Recovered

log = structlog.stdlib.get_logger()

_CALLER_LEFT = "its caller went away"


class Service:
    """The VMs, by id, in the order of their start. ``journal`` tells of each change."""

    def __init__(self, config: Config, host: Host, journal: Journal, nursery: trio.Nursery) -> None:
        self.config = config
        self.host = host
        self.journal = journal
        self.vms: dict[str, Vm] = {}
        self.admission = Admission(config.limits, host_room())
        self.metrics = Metrics(self._gauges)
        self.templates = Templates(config, host)
        self.pool = Pool(self)
        self._keys = IdempotencyKeys()
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

    async def run(self, computation: bytes, options: RunOptions) -> Vm:
        """A VM whose agent has answered the computation.

        Failing, or cancelled without an idempotency key to come back with, the VM is ended;
        what is known of it stays until it is deleted.

        :raises SupervisorError:
        """
        vm = await self.submit(computation, options)
        try:
            await vm.wait_answered()
        except trio.Cancelled:
            if not options.idempotency_key:
                vm.ask_to_end(EndMode.FORCE, _CALLER_LEFT)
            raise
        return vm

    async def submit(self, computation: bytes, options: RunOptions) -> Vm:
        """A VM for the computation, on record; it tells how far it has come.

        With a key that was used before it is the VM of that time.

        :raises SupervisorError: if it is not admitted
        """
        _check(computation)
        return await self._keys.once(options, partial(self._admit, computation, options))

    async def _admit(self, computation: bytes, options: RunOptions) -> Vm:
        if self._closing:
            raise Stopping
        asked_s = boottime_s()
        if options.template is TemplateUse.REQUIRE:
            await self.templates.ready()
        vm = None
        fingerprint = await self.templates.present() if self.pool.vms else ""
        need = Need.of(self.config.qemu)
        while vm is None:
            if picked := self.pool.pick(options.template, fingerprint, ready=True):
                vm = await self._take(picked, computation, options, asked_s)
            elif self.admission.try_enter(need):
                vm = await self._begin(need, options, computation, asked_s)
            elif picked := self.pool.pick(options.template, fingerprint, ready=False):
                vm = await self._take(picked, computation, options, asked_s)
            else:
                await self._enter(need)
                vm = await self._begin(need, options, computation, asked_s)
        self._spawn(self._measure, vm)
        return vm

    async def _enter(self, need: Need) -> None:
        """Take room when there is some; a VM of the pool that does not fit the run gives way."""
        async with self.pool.giving_way():
            try:
                await self.admission.enter(need)
            except AtCapacity as error:
                log.warning("run refused", problem=str(error))
                raise

    async def _take(
        self, vm: Vm, computation: bytes, options: RunOptions, asked_s: float
    ) -> Vm | None:
        """Give a run a VM of the pool; None if that ends just now."""
        try:
            if not await vm.give(computation, options, asked_s):
                return None
        except OSError as error:
            vm.ask_to_end(EndMode.FORCE, "its run could not be put on record")
            raise self._unwritten(vm.id, error) from error
        except BaseException:
            vm.ask_to_end(EndMode.FORCE, _CALLER_LEFT)
            raise
        if vm.id in self.vms:
            self._keys.add(vm)
        return vm

    async def start(self, purpose: Purpose) -> Vm | None:
        """A VM without a computation; None if there is no room for it now, or nothing to spare."""
        # A VM that becomes a template is none that runs could have.
        need = Need.of(self.config.qemu, vms=int(purpose is not Purpose.TEMPLATE))
        if self._closing or not self.admission.try_enter(need):
            return None
        options = RunOptions(template=self.config.start.templates)
        try:
            return await self._begin(need, options, None, boottime_s(), purpose)
        except SupervisorError as error:
            log.warning("VM not started", purpose=purpose, problem=str(error))
            return None

    async def _begin(
        self,
        need: Need,
        options: RunOptions,
        computation: bytes | None,
        asked_s: float,
        purpose: Purpose = Purpose.RUN,
    ) -> Vm:
        """A VM on record, and its task; what it needs has been taken."""
        self._starting += 1
        record = Record(
            id=str(uuid.uuid4()),
            created_at=datetime.now(UTC),
            options=options,
            purpose=purpose,
            relay=RelayState.IDLE if computation is None else RelayState.WAITING,
            memory_bytes=need.memory_bytes,
            vcpus=need.vcpus,
            phases={"queue": boottime_s() - asked_s},
        )
        try:
            self._check_agent()
            record = await self.journal.create(record, computation)
        except OSError as error:
            self.admission.leave(need)
            raise self._unwritten(record.id, error) from error
        except BaseException:
            self.admission.leave(need)
            raise
        finally:
            self._starting -= 1
        vm = self._add(record, asked_s)
        vm.reached("directory")
        life = VmTask(vm, self.host, self._ports)
        self._spawn(self._supervise, vm, life.run)
        return vm

    def _check_agent(self) -> None:
        if not self.config.agent.is_fixed:
            return
        holders = [f"VM {vm.id}" for vm in self.vms.values() if not vm.ended]
        if self._starting > 1:
            holders.append("another VM that is being started")
        if holders:
            raise Busy(
                f"{holders[0]} has the only agent there is, at {self.config.agent.url}: end it"
                " first, or set MANAGER_AGENT_GRPC_URL so that each VM has its own"
            )

    def _unwritten(self, vm_id: str, error: OSError) -> LaunchError:
        return LaunchError(
            f"the record of VM {vm_id} cannot be written ({error.strerror}), so it is not"
            f" started; see to {self.config.qemu.tmp}"
        )

    def _add(self, record: Record, born_s: float | None = None) -> Vm:
        vm = Vm(record, self.config, self.journal, self.templates, born_s)
        self.vms[vm.id] = vm
        self._keys.add(vm)
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
        await self.discard(vm).wait()
        await vm.wait_ended()

    def discard(self, vm: Vm) -> trio.Event:
        """Begin to do that; the event is set when it is done, or the VM is left to run on."""
        done = trio.Event()
        self._deleting.add(vm.id)
        vm.ask_to_end(EndMode.FORCE, "it was deleted")
        self._spawn(self._remove, vm, done)
        return done

    async def _remove(self, vm: Vm, done: trio.Event) -> None:
        if await vm.wait_over():
            await self._forget(vm)
        done.set()

    async def _forget(self, vm: Vm) -> None:
        self._deleting.discard(vm.id)
        if self.vms.pop(vm.id, None):
            self._keys.remove(vm)
            await self.journal.remove(vm.id)
            self.templates.release(vm.id)

    def _gauges(self) -> Gauges:
        vms = self.vms.values()
        return Gauges(
            by_state=Counter(vm.status.state.value for vm in vms),
            waiting=self.admission.waiting,
            lost=sum(vm.monitor_state is MonitorState.LOST for vm in vms),
            templates=Counter(one.state.value for one in self.templates.entries.values()),
            pool=Counter("ready" if vm.relay.agent_ready else "coming" for vm in self.pool.vms),
            clones={
                "restored": self.templates.restored,
                "fallback": self.templates.fallen_back,
            },
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
            # What has no computation has nothing that it could lose.
            idle = vm.record.purpose is not Purpose.RUN
            mode = EndMode.FORCE if idle else EndMode.GRACEFUL
            vm.ask_to_end(mode, "the supervisor stops")
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
        self.templates.close()

    def _spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """A task that outlives the request that begins it, and so takes nothing of it along.

        Else the request's body would stay in memory for as long as the VM runs.
        """
        self._context.copy().run(self._nursery.start_soon, task, *args)

    # --- the tasks --------------------------------------------------------------------------

    def inherit(self, recovered: Recovered) -> None:
        """List what an earlier supervisor left, and take up what of it lives."""
        self.templates.load(recovered.records)
        for record in recovered.records:
            vm = self._add(record)
            vm.reply = recovered.replies.get(vm.id)
            if record.purpose is Purpose.TEMPLATE:
                # Its making was cut short.
                self.discard(vm)
            if record.ended_at is None:
                self.admission.take(Need.on_record(record))
                found = recovered.processes.get(record.id)
                life = VmTask(vm, self.host, self._ports)
                if vm.relay.pending:
                    self._spawn(self._measure, vm)
                self._spawn(self._supervise, vm, life.take_up, found)

    async def _supervise(self, vm: Vm, life: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await life(*args)
        finally:
            self.admission.leave(Need.on_record(vm.record))
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

    @property
    def housekeeping(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """What goes on beside the VMs, for as long as there is the service."""
        return self._keep_within_limits, TemplateBuilder(self).keep, self.pool.keep

    async def _keep_within_limits(self) -> None:
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
