"""Held clones: restored from the template, and stopped before their first instruction.

A run that takes one is spared QEMU's start and the restore. A held clone has executed nothing, and
nobody can speak to its guest; so it costs memory and no CPU time, needs no agent, and is thrown
away when the template is not the present one any more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.config import TemplateUse
from supervisor.qemu import cgroup
from supervisor.qemu.connection import MonitorState
from supervisor.state.record import Purpose
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from supervisor.runs.pool import Pool
    from supervisor.runs.vms import Vms
    from supervisor.state.record import RunOptions
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


class HeldClones:
    """The held clones of one supervisor. `keep` is its task.

    :ivar changed: notified when one may have to be made: a run was answered, a template is ready
    """

    def __init__(self, vms: Vms, pool: Pool) -> None:
        self.changed = Signal()
        self._vms = vms
        self._pool = pool
        self._size = vms.config.start.held_clones
        self._timing = vms.config.timing
        #: Clones in a row that could not be held.
        self._failures = 0
        self._taken_at = -math.inf
        #: The last of these.
        self._failed: Vm | None = None

    @property
    def vms(self) -> list[Vm]:
        """Those that no run has, the oldest first."""
        return self._vms.spares(Purpose.HELD)

    def pick(self, options: RunOptions, fingerprint: str) -> Vm | None:
        """Claim one for a run; None if there is none that fits.

        :param fingerprint: of the machine that a VM started now would have
        """
        if options.template is TemplateUse.OFF or options.technology or options.attest:
            return None
        for vm in self.vms:
            same_net = options.forwards is vm.record.options.forwards and not options.dials
            if vm.is_held and same_net and self._is_of_present_template(vm, fingerprint):
                vm.claimed = True
                self._taken_at = trio.current_time()
                return vm
        return None

    async def keep(self) -> None:
        """Hold as many as the setting says, made one at a time; throw away those of no use."""
        while self._size:
            changed = self.changed.next()
            fingerprint = await self._vms.templates.present()
            self._throw_away(fingerprint)
            if self._may_grow(fingerprint):
                vm = await self._vms.start_spare(Purpose.HELD)
                if vm:
                    await self._see_it_held(vm)
                    continue
            # While a run comes up, another start would slow it down; not for ever.
            at = self._taken_at + self._timing.held_interval_s
            if at <= trio.current_time():
                at = trio.current_time() + self._timing.pool_look_s
            with trio.move_on_at(at):
                await changed.wait()

    async def _see_it_held(self, vm: Vm) -> None:
        # Once it is held, a run may have it before this task comes to look.
        await vm.until(lambda: vm.is_held or vm.claimed or vm.ended or vm.ending)
        request = vm.end_request
        if not vm.ended or (request and not request.cause.is_failure):
            self._failures = 0
            return
        self._failures += 1
        if self._failed:
            self._vms.discard(self._failed)  # one is enough to find out why
        self._failed = vm
        wait_s = self._timing.pool_retry.wait_s(self._failures)
        log.warning("held clone: failed", vm=vm.id, problem=vm.record.error, again_in_s=wait_s)
        await trio.sleep(wait_s)

    def _throw_away(self, fingerprint: str) -> None:
        for vm in self.vms:
            why = ""
            if vm.monitor_state is MonitorState.LOST:
                why = "its monitor is lost"
            elif vm.is_held and not self._is_of_present_template(vm, fingerprint):
                why = "its template is not used any more"
            if why:
                log.info("held clone: giving up", vm=vm.id, why=why)
                self._vms.discard(vm)

    def _is_of_present_template(self, vm: Vm, fingerprint: str) -> bool:
        is_ready = self._vms.templates.is_ready(vm.record.template or "")
        return is_ready and vm.record.fingerprint == fingerprint

    def _may_grow(self, fingerprint: str) -> bool:
        templates = self._vms.templates
        if len(self.vms) >= self._size or self._pool.wants_more or not templates.looked:
            return False
        if not templates.has_ready(fingerprint):
            return False
        lately = trio.current_time() < self._taken_at + self._timing.held_interval_s
        if lately and any(vm.is_coming_up for vm in self._vms):
            return False
        # The host must have the memory that one more VM may come to use.
        return cgroup.available_bytes() >= self._vms.config.qemu.memory_bytes
