"""Builds the template that is missing, and removes templates that no VM needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.agent import line
from supervisor.errors import MonitorError, SupervisorError, TemplateError
from supervisor.state.record import EndCause, EndMode, Purpose
from supervisor.state.status import VmState
from supervisor.templates import template
from supervisor.templates.registry import Entry, TemplateState
from supervisor.templates.template import Template

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.runs.vms import Vms
    from supervisor.templates.template import Fingerprint
    from supervisor.vm.vm import Vm
    from supervisor.waiting import Signal

log = structlog.stdlib.get_logger()


class TemplateBuilder:
    """The template builder of one supervisor. `keep` is its task.

    :param told: notified after each build, for who waits for clones
    """

    def __init__(self, vms: Vms, told: Iterable[Signal]) -> None:
        self._vms = vms
        self._told = tuple(told)
        self._templates = vms.templates
        self._config = vms.config
        #: Builds in a row that failed.
        self._failures = 0
        self._retry_at = 0.0
        #: Digest of the fingerprint that was built last.
        self._tried = ""

    async def keep(self) -> None:
        """Keep a template that fits a VM started now."""
        while True:
            wanted = self._templates.wanted.next()
            fingerprint = await self._templates.look()
            await self._remove_unused(fingerprint)
            self._templates.looked = True
            if fingerprint and not self._templates.of(fingerprint.digest):
                await self._build(fingerprint)
            with trio.move_on_after(self._config.timing.template_look_s):
                await wanted.wait()

    async def _remove_unused(self, fingerprint: Fingerprint | None) -> None:
        for name, entry in list(self._templates.entries.items()):
            if entry.state is TemplateState.FAILED:
                same = fingerprint is not None and fingerprint.digest == entry.template.digest
                keep = same and trio.current_time() < self._retry_at
            else:
                keep = entry.state is not TemplateState.STALE or bool(entry.holders)
            if not keep:
                del self._templates.entries[name]
                await trio.to_thread.run_sync(entry.template.remove)
                log.info("template: removed", template=name)

    async def _build(self, fingerprint: Fingerprint) -> None:
        """Build the template. A failure is logged, and the build is tried again after a while."""
        name = self._templates.new_name(fingerprint.digest)
        path = template.directory(self._config.qemu.tmp) / name
        entry = Entry(Template(path), TemplateState.BUILDING)
        self._templates.entries[name] = entry
        if fingerprint.digest != self._tried:
            self._tried, self._failures = fingerprint.digest, 0
        vm = None
        began = trio.current_time()
        try:
            vm = await self._vms.start_spare(Purpose.TEMPLATE)
            if vm is None:
                raise TemplateError("there is no room for the VM that becomes the template")
            entry.vm_id = vm.id
            log.info("template: building", template=name, vm=vm.id)
            await self._make(entry, vm, fingerprint)
        except Exception as error:
            self._failed(entry, vm, error)
        else:
            self._failures = 0
            entry.built_in_s = trio.current_time() - began
            entry.enter(TemplateState.READY)
            log.info("template: ready", template=name, size_bytes=entry.size_bytes,
                     in_s=round(entry.built_in_s, 3))  # fmt: skip
            await self._vms.delete(vm)
        entry.vm_id = None
        self._templates.changed()
        for signal in self._told:
            signal.notify()

    def _failed(self, entry: Entry, vm: Vm | None, error: Exception) -> None:
        # Room comes and goes, and a VM that somebody ended did not fail.
        quiet = vm is None or (vm.end_request and not vm.end_request.cause.is_failure)
        bug = None if isinstance(error, SupervisorError) else error
        self._failures += 1
        wait_s = self._config.timing.template_retry.wait_s(self._failures)
        tell = log.info if quiet and not bug else log.error
        tell("template: failed", template=entry.template.name, vm=entry.vm_id,
             problem=str(error), again_in_s=wait_s, exc_info=bug)  # fmt: skip
        if vm:
            why = "no template could be made of it"
            vm.request_end(EndMode.FORCE, EndCause.TEMPLATE_FAILED, why)
        entry.enter(TemplateState.FAILED, str(error))
        entry.error = type(error).__name__
        self._retry_at = trio.current_time() + wait_s

    async def _make(self, entry: Entry, vm: Vm, fingerprint: Fingerprint) -> None:
        """:raises SupervisorError: if it cannot be made"""
        timeout_s = self._config.agent.boot_timeout_s
        with trio.move_on_after(timeout_s):
            await vm.until(lambda: vm.prepared or vm.record.settled or vm.ended)
        if not vm.prepared:
            late = "the guest" if vm.agent_ready else "the agent"
            raise (
                vm.failure
                or TemplateError(
                    f"{late} of VM {vm.id} was not ready to be frozen within {timeout_s:g} s",
                    advice=f"see MANAGER_BOOT_TIMEOUT; {vm.dir.what_was_printed()}",
                )
            )
        # The guest still closes its last connection; nothing tells when it rests.
        await trio.sleep(self._config.timing.template_settle_s)
        timeout_s = self._config.life.start_timeout_s
        has_line = False
        with trio.move_on_after(timeout_s) as patience:
            has_line = await _freeze(vm)
        if patience.cancelled_caught:
            raise TemplateError(
                f"VM {vm.id} was not frozen within {timeout_s:g} s",
                advice="see MANAGER_START_TIMEOUT",
            )
        if vm.record.fingerprint != fingerprint.digest:
            raise TemplateError("what VMs are made of was changed meanwhile")
        create = entry.template.create_from
        await trio.to_thread.run_sync(create, vm.dir, fingerprint, has_line)
        entry.size_bytes = await trio.to_thread.run_sync(entry.template.size_bytes)


async def _freeze(vm: Vm) -> bool:
    """Stop the guest, and have QEMU write the devices' state to the VM's directory.

    :returns: whether the guest has its line open
    """
    monitor = vm.monitor()
    has_line = await monitor.has_port_open(line.NAME)
    await monitor.stop()
    await vm.until(lambda: vm.status.state is not VmState.RUNNING)
    try:
        with vm.dir.state.open("wb") as state:
            await monitor.save_state(state)
    except OSError as error:
        raise MonitorError(f"{vm.dir.state}: {error.strerror}") from error
    return has_line
