"""What the API asks of the supervisor: run a computation, end VMs, read events."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio
from prometheus_client import generate_latest

from supervisor import spans
from supervisor.build import build_info
from supervisor.caller import Right
from supervisor.config import Policy, Tee, TemplateUse
from supervisor.errors import (
    AtCapacity,
    HostError,
    InvalidRequest,
    Stopping,
    SupervisorError,
    TeeUnavailable,
    TemplateError,
)
from supervisor.qemu import accel
from supervisor.qemu.connection import MonitorState
from supervisor.runs.admission import NONE, Resources
from supervisor.runs.idempotency import IdempotencyKeys
from supervisor.runs.metrics import Gauges, Metrics, Outcome
from supervisor.runs.quotas import Quotas
from supervisor.runs.usage import Usages
from supervisor.state.journal import EventsOnRecord
from supervisor.state.record import EndCause, EndMode, Purpose
from supervisor.state.shares import Shares
from supervisor.tee import policy
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from supervisor.caller import Caller
    from supervisor.runs.held_clones import HeldClones
    from supervisor.runs.pool import Pool
    from supervisor.runs.vms import Vms
    from supervisor.state.record import Event, RunOptions
    from supervisor.vm.vm import Vm

    Following = AbstractAsyncContextManager[tuple[EventsOnRecord, trio.MemoryReceiveChannel[Event]]]

log = structlog.stdlib.get_logger()

_READER_RETRY_S = 10


class Service:
    """One supervisor's. ``vms``, ``pool`` and ``held`` are where its VMs come from."""

    def __init__(self, vms: Vms, pool: Pool, held: HeldClones) -> None:
        self.vms = vms
        self.pool = pool
        self.held = held
        self.config = vms.config
        self.journal = vms.journal
        build = build_info()
        versions = {
            "version": build.version,
            "commit": build.commit,
            "qemu": str(vms.host.qemu),
        }
        self.metrics = Metrics(self._gauges, versions)
        self.usages = Usages()
        self._keys = IdempotencyKeys(vms)
        self._quotas = Quotas(vms.config.limits, vms)
        #: Looks at the host, however many runs ask for confidential guests.
        self._readers = trio.CapacityLimiter(1)

    # --- runs -------------------------------------------------------------------------------

    async def submit(self, computation: bytes, options: RunOptions, caller: Caller) -> Vm:
        """A VM for the computation, on record and the caller's; it tells how far it has come.

        With a key that this caller used before, it is the VM of that time.

        :raises SupervisorError: if it is not admitted
        """
        async with self._keys.claim(options, caller.name) as known:
            if known:
                return known
            vm = await self._admit(computation, options, caller)
            self.vms.spawn(self.measure, vm)
            return vm

    async def create(self, shares: Shares, options: RunOptions, caller: Caller) -> Vm:
        """A VM, on record, whose guest asks another service for its computation.

        :raises SupervisorError: if it is not admitted
        """
        return await self._admit(shares, options, caller)

    async def wait_ran(self, vm: Vm) -> None:
        """Return when the guest has begun to run. If this is cancelled, the VM is ended.

        :raises SupervisorError: if it never will
        """
        try:
            await vm.wait_ran()
        except trio.Cancelled:
            self.abandon(vm)
            raise

    async def wait_answered(self, vm: Vm, options: RunOptions, patience_s: float = 0.0) -> None:
        """Return when the agent has answered the computation.

        If it fails, or is cancelled without an idempotency key to come back with, the VM is ended;
        what is known of the VM stays until it is deleted.

        :param options: what `submit` got
        :param patience_s: how long it may be cancelled before somebody waits again
        :raises SupervisorError:
        """
        vm.waited_for += 1
        try:
            await vm.wait_answered()
        except trio.Cancelled:
            vm.fresh_reply = None
            if not options.idempotency_key:
                if patience_s:
                    self.vms.spawn(self._abandon_later, vm, patience_s)
                else:
                    self.abandon(vm)
            raise
        finally:
            vm.waited_for -= 1

    async def _admit(self, work: bytes | Shares, options: RunOptions, caller: Caller) -> Vm:
        """A VM within the caller's quota, once there is room for it.

        :param work: a computation, or what the guest reads to find one
        :raises AtCapacity: as the log says why; a party is not told what others have
        """
        if self.vms.closing:
            raise Stopping
        options = self._settle_tee(options)
        requested_s = self.vms.host.clock.boottime_s()
        room = Resources.of_new_vm(
            self.config.qemu, technology=options.technology, forwards=options.forwards
        )
        try:
            with self._quotas.claim(caller, room):
                if options.technology:
                    await self._check_host(options.technology, caller)
                if options.template is TemplateUse.REQUIRE:
                    await self._wait_template(caller)
                if isinstance(work, Shares):
                    return await self._start_cvm(work, options, requested_s, room, caller)
                return await self._start(work, options, requested_s, room, caller)
        except AtCapacity as error:
            log.warning("run refused", problem=str(error.__cause__ or error), owner=caller.name)
            raise

    def _settle_tee(self, options: RunOptions) -> RunOptions:
        """The options with what ``auto`` comes to here.

        :raises InvalidRequest: if the technology does not know the policy, or excludes an option
        """
        if options.tee is Tee.AUTO:
            best = self.vms.host.accel.tee or Tee.NONE
            options = attrs.evolve(options, tee=Tee(best))
        if options.tee is Tee.NONE:
            return attrs.evolve(options, tee_policy="")
        technology = Technology(options.tee)
        try:
            policy.encode(technology, Policy.read(options.tee_policy))
        except ValueError as error:
            raise InvalidRequest(
                str(error),
                member="tee_policy",
                advice="the run's tee_policy takes the place of MANAGER_TEE_POLICY",
            ) from None
        if options.template is TemplateUse.REQUIRE:
            raise InvalidRequest(
                f"template=require excludes tee={options.tee}: the memory of a confidential guest"
                " cannot be copied",
                member="template",
            )
        return options

    async def _check_host(self, technology: Technology, caller: Caller) -> None:
        """:raises TeeUnavailable: if this host starts no such guest; only who may see the host is
        told what it lacks
        """
        lacks = partial(accel.what_host_lacks, self.config.qemu, self.vms.host, technology)
        what = f"this host starts no {technology.label} guest"
        try:
            missing = await trio.to_thread.run_sync(lacks, limiter=self._readers)
        except HostError as error:
            found, advice = error.detail, error.advice
        else:
            if missing is None:
                return
            found, advice = missing.found, missing.advice
        if caller.may(Right.HOST):
            raise TeeUnavailable(f"{what}: {found}", advice=advice)
        log.warning(what, problem=found, owner=caller.name)
        raise TeeUnavailable(what, advice="ask its operator, who finds the reason in the log")

    async def _wait_template(self, caller: Caller) -> None:
        try:
            await self.vms.templates.ready()
        except TemplateError as error:
            if caller.may(Right.TEMPLATES):
                raise
            # The error may name the VM that should have become the template, and files.
            log.warning("no template for a run", problem=str(error), owner=caller.name)
            raise TemplateError(
                "no template is ready", advice='send the run with "template": "auto"'
            ) from error

    async def _start(
        self,
        computation: bytes,
        options: RunOptions,
        requested_s: float,
        room: Resources,
        caller: Caller,
    ) -> Vm:
        """A VM of the pool that is ready, else a held clone, else a new one.

        If there is no room for one, it is a VM of the pool that comes up.
        """
        vms, pool, held, owner = self.vms, self.pool, self.held, caller.name
        fingerprint = await vms.templates.present() if pool.vms or held.vms else ""
        vm = None
        while vm is None:
            picked = pool.pick(options, fingerprint, ready=True)
            if picked or (picked := held.pick(options, fingerprint)):
                vm = await self._take(picked, computation, options, requested_s, owner)
            elif vms.admission.try_enter(room):
                vm = await vms.start(room, options, computation, requested_s, owner=owner)
            elif picked := pool.pick(options, fingerprint, ready=False):
                vm = await self._take(picked, computation, options, requested_s, owner)
            else:
                await self._enter(room, caller)
                vm = await vms.start(room, options, computation, requested_s, owner=owner)
        return vm

    async def _start_cvm(
        self,
        shares: Shares,
        options: RunOptions,
        requested_s: float,
        room: Resources,
        caller: Caller,
    ) -> Vm:
        """Never one of the pool, whose guests have read no shares."""
        vms = self.vms
        if not vms.admission.try_enter(room):
            await self._enter(room, caller)
        return await vms.start(
            room, options, None, requested_s, Purpose.CVM, owner=caller.name, shares=shares
        )

    async def _enter(self, room: Resources, caller: Caller) -> None:
        """Take room when there is some; a VM kept for runs that does not fit this one gives way."""
        vms, admission, owner = self.vms, self.vms.admission, caller.name
        spares = [*self.pool.vms, *self.held.vms][-1:]
        coming = Resources.on_record(spares[0].record) if spares else NONE
        if not spares and vms.coming:
            coming = vms.coming[0]  # which gives way as soon as it is listed
        try:
            # A run that is turned away costs no spare VM.
            admission.check(room, owner, coming)
            for vm in spares:
                log.info("giving up", vm=vm.id, purpose=vm.record.purpose, why="a run needs room")
                vms.discard(vm)
            await admission.enter(room, owner, coming)
        except AtCapacity as error:
            if not caller.is_party:
                raise
            raise _without_others(error) from error

    async def _take(
        self, vm: Vm, computation: bytes, options: RunOptions, requested_s: float, owner: str
    ) -> Vm | None:
        """Give a run a VM that was kept for one; None if that VM ends just now."""
        try:
            assigned = await vm.assign(computation, options, requested_s, owner)
        except OSError as error:
            why = "its run could not be put on record"
            vm.request_end(EndMode.FORCE, EndCause.UNRECORDED, why)
            raise self.vms.unrecorded(vm.id, error) from error
        except BaseException:
            self.abandon(vm)
            raise
        return vm if assigned else None

    async def _abandon_later(self, vm: Vm, patience_s: float) -> None:
        await trio.sleep(patience_s)
        if not vm.waited_for:
            self.abandon(vm)

    def abandon(self, vm: Vm) -> None:
        """End a VM whose caller is gone."""
        vm.request_end(EndMode.FORCE, EndCause.CALLER_LEFT, "its caller went away")

    async def measure(self, vm: Vm) -> None:
        """Count the run of this VM once its outcome is known."""
        started = trio.current_time()
        try:
            await vm.wait_answered()
            outcome = Outcome.ANSWERED
            log.info("answered", vm=vm.id)
        except SupervisorError:
            request = vm.end_request
            left = request is not None and request.cause is EndCause.CALLER_LEFT
            outcome = Outcome.ABANDONED if left else Outcome.FAILED
        took_s = trio.current_time() - started
        self.metrics.count_run(outcome, took_s, vm.record.start, vm.record.steps)
        about = {"vm.id": vm.id, "start": vm.record.start}
        spans.tell_steps(vm.requested_at, vm.record.steps, about)
        self.held.changed.notify()

    # --- VMs --------------------------------------------------------------------------------

    async def end(self, vm: Vm, mode: EndMode) -> None:
        """Return once the VM has ended. Being cancelled does not call the end off."""
        vm.request_end(mode, EndCause.API, "it was asked for")
        await vm.wait_ended()

    def follow(self, caller: Caller, after: int | None, vm_id: str | None = None) -> Following:
        """Events as `Journal.follow` gives them: the caller's, and of one VM alone if it is named.

        :raises AtCapacity: at once, if too many follow events already
        """
        readers = self.journal.events.subscribers
        if readers >= self.config.timing.readers:
            raise AtCapacity(
                f"{self.config.timing.readers} readers follow events already",
                advice="end one, or read pages of events with ?limit=",
                retry_after_s=_READER_RETRY_S,
            )
        if vm_id:
            whose = partial(tuple, self._whose(caller, vm_id))
        else:
            whose = partial(self._whose, caller, None)
        return self.journal.follow(after, whose, self._wanted(caller, vm_id))

    def on_record(self, caller: Caller, after: int, vm_id: str | None) -> EventsOnRecord:
        """The caller's events on record with a greater number; of one VM alone if it is named."""
        whose, wants = self._whose(caller, vm_id), self._wanted(caller, vm_id)
        return EventsOnRecord(self.journal, after, self.journal.sequence, whose, wants)

    def _whose(self, caller: Caller, vm_id: str | None) -> tuple[str, ...]:
        """:raises VmNotFound:"""
        named = [self.vms.see(vm_id, caller)] if vm_id else self.vms.seen_by(caller)
        return tuple(vm.id for vm in named)

    def _wanted(self, caller: Caller, vm_id: str | None) -> Callable[[Event], bool]:
        """Which events a caller is told: those of its VMs, and all if it sees all."""
        return lambda event: (
            vm_id in (None, event.vm_id)
            and (caller.sees(event.owner) or self.vms.tells(event, caller))
        )

    async def metrics_text(self) -> bytes:
        """What Prometheus is answered."""
        await self.usages.sample(self.vms)
        await self.usages.look_at_disk(self.config.qemu.tmp, self.vms)
        return generate_latest(self.metrics.registry)

    def _gauges(self) -> Gauges:
        templates = self.vms.templates
        return Gauges(
            by_state=Counter(vm.status.state.value for vm in self.vms),
            held=sum(vm.is_held for vm in self.held.vms),
            waiting=self.vms.admission.waiting,
            refused=self.vms.admission.refused,
            lost=sum(vm.monitor_state is MonitorState.LOST for vm in self.vms),
            templates=Counter(one.state.value for one in templates.entries.values()),
            pool=Counter("ready" if vm.agent_ready else "coming" for vm in self.pool.vms),
            clones={"restored": templates.restored, "fallback": templates.fallen_back},
            events=self.journal.counted,
            usages={
                vm.id: usage
                for vm in self.vms
                if not vm.ended and (usage := self.usages.last.vms.get(vm.id))
            },
            disk=self.usages.disk,
        )


def _without_others(error: AtCapacity) -> AtCapacity:
    """The same without what others have and how many of them wait."""
    if error.retry_after_s is None:
        return error  # it says what this host can never do
    return AtCapacity(
        "there is no room for one more VM now",
        advice=f"end one of your VMs, or try again in {error.retry_after_s} s",
        retry_after_s=error.retry_after_s,
    )
