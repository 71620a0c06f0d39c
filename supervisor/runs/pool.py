"""The warm pool: VMs whose agent is ready before anybody asks for one."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil
import structlog
import trio

from supervisor.config import TemplateUse
from supervisor.qemu.connection import MonitorState
from supervisor.state.record import Purpose
from supervisor.state.status import VmState
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.runs.vms import Vms
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()


class Pool:
    """One supervisor's. `keep` is its task.

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
        #: Runs that wait for the room of VMs that did not fit them.
        self._giving_way = 0

    @property
    def vms(self) -> list[Vm]:
        """Those that are no run's yet; that are ready first, and among them the oldest."""
        mine = [
            vm
            for vm in self._vms
            if vm.record.purpose is Purpose.POOL and not (vm.claimed or vm.ended or vm.ending)
        ]
        return sorted(mine, key=lambda vm: not vm.agent_ready)

    def pick(self, use: TemplateUse, fingerprint: str, *, ready: bool) -> Vm | None:
        """A VM for a run that options so for a template: a ready one, or also one that will be.

        Nobody else is given it any more.

        :param fingerprint: of what VMs are made of now
        """
        for vm in self.vms:
            fits = use is TemplateUse.AUTO or _kind(vm) is use
            present = vm.record.fingerprint == fingerprint or vm.status.state is VmState.PRELAUNCH
            if fits and present and not _is_held(vm) and (vm.agent_ready or not ready):
                vm.claimed = True
                self._taken_at = trio.current_time()
                self.changed.notify()
                return vm
        return None

    @asynccontextmanager
    async def giving_way(self) -> AsyncIterator[None]:
        """End one, if there is one, for a run that must have another kind of VM.

        None takes its place for as long as that run waits for room.
        """
        self._giving_way += 1
        try:
            for vm in self.vms[-1:]:
                log.info("pool: giving up", vm=vm.id, why="a run needs its room")
                await self._vms.discard(vm).wait()
            yield
        finally:
            self._giving_way -= 1
            self.changed.notify()

    async def keep(self) -> None:
        """Fill it, one VM at a time, and replace what has waited for too long."""
        while True:
            changed = self.changed.next()
            await self._replace()
            if not self._config.pool_size:
                return
            # A VM that starts would slow down the answer to the run that has just taken one.
            await trio.sleep_until(self._taken_at + self._config.pool_interval_s)
            if self._may_grow():
                vm = await self._vms.start_spare(Purpose.POOL)
                if vm:
                    await self._see_it_ready(vm)
                    continue
            with trio.move_on_after(self._timing.pool_look_s):
                await changed.wait()

    async def _see_it_ready(self, vm: Vm) -> None:
        """Wait until it is, or is somebody's; after a failure longer, and longer each time."""
        began = trio.current_time()
        await vm.until(lambda: vm.agent_ready or vm.ended or vm.claimed or _is_held(vm))
        if not vm.ended or vm.end_request is not None:
            self._failures = 0
            await trio.sleep_until(began + self._config.pool_interval_s)
            return
        self._failures += 1
        wait_s = self._timing.pool_retry.wait_s(self._failures)
        log.warning("pool: VM failed", vm=vm.id, problem=vm.record.error, again_in_s=wait_s)
        await trio.sleep(wait_s)

    async def _replace(self) -> None:
        """End those that are too old, too many, or not what a new one would be."""
        fingerprint = await self._vms.templates.present()
        oldest = datetime.now(UTC).timestamp() - self._config.pool_max_age_s
        for number, vm in enumerate(self.vms):
            why = ""
            if number >= self._config.pool_size:
                why = "the pool is smaller now"
            elif _is_held(vm):
                why = f"it is {vm.status}, its monitor {vm.monitor_state}"
            elif vm.record.created_at.timestamp() < oldest:
                why = "it has waited for long enough"
            elif fingerprint and vm.record.fingerprint != fingerprint and vm.record.first_ran_s:
                why = "VMs are made of something else now"
            if why:
                log.info("pool: replacing", vm=vm.id, why=why)
                self._vms.discard(vm)

    def _may_grow(self) -> bool:
        templates = self._vms.templates
        if self._giving_way or len(self.vms) >= self._config.pool_size:
            return False
        if templates.is_building or not templates.looked:
            return False  # a template that comes makes better ones
        # The host could give one more VM all that it may come to use.
        need = self._vms.config.qemu.memory_bytes
        return bool(psutil.virtual_memory().available >= need)


def _is_held(vm: Vm) -> bool:
    """Whether it is of no use to anybody now: paused, out of disk, on its way down, lost."""
    going = vm.status.state in (VmState.PRELAUNCH, VmState.RUNNING)
    return not going or vm.monitor_state is MonitorState.LOST


def _kind(vm: Vm) -> TemplateUse | None:
    """Which wish a VM fits that is not ``auto``; None if that is not decided yet."""
    if vm.record.template:
        return TemplateUse.REQUIRE
    cold = vm.record.fingerprint or vm.record.options.template is TemplateUse.OFF
    return TemplateUse.OFF if cold else None
