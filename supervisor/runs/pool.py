"""The warm pool: VMs whose agent is ready before anybody asks for one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import TemplateUse
from supervisor.qemu import cgroup
from supervisor.qemu.connection import MonitorState
from supervisor.state.record import Purpose
from supervisor.state.status import VmState
from supervisor.tee import binding
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from supervisor.runs.vms import Vms
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


class Pool:
    """The pool of one supervisor. `keep` is its task.

    :ivar changed: notified when the pool may have to be filled
    """

    def __init__(self, vms: Vms) -> None:
        self.changed = Signal()
        self._vms = vms
        self._config = vms.config.start
        self._timing = vms.config.timing
        #: VMs in a row that ended by themselves.
        self._failures = 0
        self._taken_at = -math.inf

    @property
    def vms(self) -> list[Vm]:
        """The VMs that no run has: ready VMs first, and the oldest first among those."""
        return sorted(self._vms.spares(Purpose.POOL), key=lambda vm: not vm.agent_ready)

    def pick(self, options: RunOptions, fingerprint: str, *, ready: bool) -> Vm | None:
        """Claim a VM for a run; None if no VM fits.

        :param options: the run's
        :param fingerprint: of the machine that a VM started now would have
        :param ready: whether the VM's agent must be ready already
        """
        if options.attest or binding.binds(options.technology):
            return None  # a guest of the pool was started for no computation
        for vm in self.vms:
            fits = options.template in (TemplateUse.AUTO, _kind(vm))
            fits &= options.forwards is vm.record.options.forwards
            fits &= options.dials is vm.record.options.dials
            fits &= options.tee is vm.record.options.tee
            fits &= options.tee_policy == vm.record.options.tee_policy
            present = vm.record.fingerprint == fingerprint or vm.status.state is VmState.PRELAUNCH
            if fits and present and not _is_unusable(vm) and (vm.agent_ready or not ready):
                vm.claimed = True
                self._taken_at = trio.current_time()
                self.changed.notify()
                return vm
        return None

    @property
    def wants_more(self) -> bool:
        """Whether it has not as many VMs as the setting says."""
        return len(self.vms) < self._config.pool_size

    async def keep(self) -> None:
        """Fill the pool, one VM at a time, and replace VMs that have waited for too long."""
        while True:
            changed = self.changed.next()
            await self._replace()
            if not self._config.pool_size:
                return
            # A start now would slow down the run that has just taken a VM.
            await trio.sleep_until(self._taken_at + self._config.pool_interval_s)
            if self._may_grow():
                held = self._vms.spares(Purpose.HELD)
                if held and not self._vms.has_room_for(Purpose.POOL):
                    log.info("held clone: giving up", vm=held[-1].id, why="the pool needs its room")
                    await self._vms.discard(held[-1]).wait()
                    continue
                vm = await self._vms.start_spare(Purpose.POOL)
                if vm:
                    await self._see_it_ready(vm)
                    continue
            with trio.move_on_after(self._timing.pool_look_s):
                await changed.wait()

    async def _see_it_ready(self, vm: Vm) -> None:
        """Wait until the VM is ready or claimed. If the VM fails, back off."""
        began = trio.current_time()
        await vm.until(lambda: vm.agent_ready or vm.ended or vm.claimed or _is_unusable(vm))
        request = vm.end_request
        if not vm.ended or (request and not request.cause.is_failure):
            self._failures = 0
            await trio.sleep_until(began + self._config.pool_interval_s)
            return
        self._failures += 1
        wait_s = self._timing.pool_retry.wait_s(self._failures)
        log.warning("pool: VM failed", vm=vm.id, problem=vm.record.error, again_in_s=wait_s)
        await trio.sleep(wait_s)

    async def _replace(self) -> None:
        """End VMs that are too many, too old, of no use, or differ from a VM started now."""
        fingerprint = await self._vms.templates.present()
        oldest_s = self._vms.host.clock.boottime_s() - self._config.pool_max_age_s
        for number, vm in enumerate(self.vms):
            why = ""
            if number >= self._config.pool_size:
                why = "the pool is smaller now"
            elif _is_unusable(vm):
                why = f"it is {vm.status}, its monitor {vm.monitor_state}"
            elif (vm.record.first_ran_s or math.inf) < oldest_s:
                why = "it has waited for long enough"
            elif fingerprint and vm.record.fingerprint != fingerprint and vm.record.first_ran_s:
                why = "VMs are made of something else now"
            elif vm.record.template and self._config.templates is TemplateUse.OFF:
                why = "VMs are booted now, and it was not"
            if why:
                log.info("pool: replacing", vm=vm.id, why=why)
                self._vms.discard(vm)

    def _may_grow(self) -> bool:
        templates = self._vms.templates
        if binding.binds(self._vms.host.accel.tee):
            return False  # no run could take it
        if not self.wants_more:
            return False
        if templates.is_building or not templates.looked:
            return False  # VMs from the template that is being built are better
        # The host must have the memory that one more VM may come to use.
        return cgroup.available_bytes() >= self._vms.config.qemu.memory_bytes


def _is_unusable(vm: Vm) -> bool:
    """Whether no run can use the VM now: it is paused, goes down, or does not answer any more."""
    going = vm.status.state in (VmState.PRELAUNCH, VmState.RUNNING)
    return not going or vm.agent_lost or vm.monitor_state is MonitorState.LOST


def _kind(vm: Vm) -> TemplateUse | None:
    """The template use that a VM fits, beside ``auto``; None while that is not decided."""
    if vm.record.template:
        return TemplateUse.REQUIRE
    cold = vm.record.fingerprint or vm.record.options.template is TemplateUse.OFF
    return TemplateUse.OFF if cold else None
