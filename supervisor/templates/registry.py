"""All templates: the state of each, and the VMs that depend on each.

A VM's task chooses its template here. `supervisor.runs.template_builder` builds a missing template,
and removes templates that no VM needs any more. All VMs of a supervisor have the same settings, so
there is one present fingerprint. A template of an earlier fingerprint stays while a VM's disk lies
on the template's disk.
"""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.config import TemplateUse
from supervisor.errors import Stopping, TemplateError
from supervisor.templates import template
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.config import Config
    from supervisor.qemu.host import Host
    from supervisor.state.record import Record
    from supervisor.templates.template import Fingerprint, Template

log = structlog.stdlib.get_logger()

#: After this many clones in a row that did not start, a template is built again.
_MOST_FAILURES = 3


class TemplateState(enum.StrEnum):
    BUILDING = "building"
    READY = "ready"
    #: It could not be built. The builder tries again later.
    FAILED = "failed"
    #: The image, QEMU or a setting was changed, or the template is invalid; VMs still use it.
    STALE = "stale"


@attrs.define(eq=False)
class Entry:
    """A template and its state.

    :ivar vm_id: the VM that becomes the template, while it is built
    :ivar problem: why the template is failed or stale
    :ivar error: the name of the error that kept it from being built
    :ivar since: when it entered its state
    :ivar built_in_s: how many seconds the build took; None if an earlier supervisor built it
    :ivar size_bytes: its size on disk; None until it is built
    :ivar holders: ids of the VMs whose disk or memory uses it
    :ivar failures: clones in a row that did not start
    :ivar doubts: clones in a row that did not answer their first call
    :ivar invalid: whether no VM may start from it again, whatever the present fingerprint is
    """

    template: Template
    state: TemplateState
    vm_id: str | None = None
    problem: str | None = None
    error: str | None = None
    since: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    built_in_s: float | None = None
    size_bytes: int | None = None
    holders: set[str] = attrs.field(factory=set)
    failures: int = 0
    doubts: int = 0
    invalid: bool = False

    def enter(self, state: TemplateState, problem: str | None = None) -> None:
        self.state, self.problem, self.since = state, problem, datetime.now(UTC)


class Templates:
    """All templates of one supervisor.

    :ivar entries: by the template's name
    :ivar obstacle: why no template can be built now; None if one can
    :ivar wanted: notified when the builder may have a template to build or to remove
    """

    def __init__(self, config: Config, host: Host) -> None:
        self.entries: dict[str, Entry] = {}
        self.obstacle: str | None = None
        self.wanted = Signal()
        #: Whether the builder has looked once, so that `obstacle` and the states are known.
        self.looked = False
        self.restored = 0
        self.fallen_back = 0
        self._config = config
        self._host = host
        self._changed = Signal()
        self._closed = False
        #: The obstacle of the fingerprint that was checked last, by its digest.
        self._obstacles: dict[str, str | None] = {}

    # --- all templates ----------------------------------------------------------------------

    def load(self, records: Iterable[Record]) -> None:
        """Adopt an earlier supervisor's templates. Remove incomplete and useless ones. Blocking."""
        holders = defaultdict(set)
        for record in records:
            if record.template and (not record.ended or record.options.keep_disk):
                holders[record.template].add(record.id)
        for one in template.found(self._config.qemu.tmp):
            entry = Entry(one, TemplateState.READY, holders=holders[one.name])
            if one.is_sound():
                entry.size_bytes = one.size_bytes()
            elif entry.holders:
                # VMs still need its disk. No VM starts from it any more.
                entry.invalid = True
                entry.enter(TemplateState.STALE, "a file of it is damaged")
            else:
                one.remove()
                continue
            self.entries[one.name] = entry

    async def look(self) -> Fingerprint | None:
        """Compute the present fingerprint, and update the state of every template to it.

        :returns: the fingerprint; None if no template of it can be built
        """
        before = self.obstacle
        fingerprint, self.obstacle = await trio.to_thread.run_sync(self._look)
        digest = fingerprint.digest if fingerprint else None
        for entry in self.entries.values():
            if entry.state is TemplateState.READY and entry.template.digest != digest:
                entry.enter(TemplateState.STALE, "the image, QEMU or a setting was changed")
                log.info("template: stale", template=entry.template.name, vms=len(entry.holders))
            elif entry.state is TemplateState.STALE and entry in self.of(digest or ""):
                entry.enter(TemplateState.READY)  # the change was undone
                self.changed()
        if self.obstacle != before:
            log.info("template: possible" if self.obstacle is None else "template: none",
                     why=self.obstacle)  # fmt: skip
            self.changed()
        return None if self.obstacle else fingerprint

    def _look(self) -> tuple[Fingerprint | None, str | None]:
        if self._config.start.templates is TemplateUse.OFF:
            dials = self._config.qemu.net.dials
            return None, "MANAGER_AGENT_DIALS is set" if dials else "MANAGER_TEMPLATES is off"
        if self._config.agent.is_fixed:
            return None, "MANAGER_AGENT_GRPC_URL is the address of one guest"
        try:
            fingerprint = template.fingerprint(self._config.qemu, self._host)
        except OSError as error:
            return None, f"{error.filename}: {error.strerror}"
        if fingerprint.digest not in self._obstacles:
            # This reads the whole image, so it is done once for each fingerprint.
            self._obstacles = {fingerprint.digest: template.obstacle(self._config.qemu, self._host)}
        return fingerprint, self._obstacles[fingerprint.digest]

    def changed(self) -> None:
        """Wake the tasks that wait in `ready`."""
        self._changed.notify()

    def close(self) -> None:
        """The supervisor is stopping: end the waits in `ready`."""
        self._closed = True
        self.changed()

    # --- for VMs ----------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait for a template that is ready.

        :raises TemplateError: if no template can be built, or none is ready in the time of a boot
        :raises Stopping: if `close` is called, before or during the wait
        """
        timeout_s = self._config.agent.boot_timeout_s
        with trio.move_on_after(timeout_s):
            return await self._wait_ready()
        raise TemplateError(
            f"no template was ready within {timeout_s:g} s",
            advice="see MANAGER_BOOT_TIMEOUT and the log",
        )

    async def _wait_ready(self) -> None:
        await self.look()
        while True:
            changed = self._changed.next()
            if self._closed:
                raise Stopping
            states = {entry.state: entry for entry in self.entries.values()}
            if TemplateState.READY in states:
                return
            if self.obstacle:
                raise TemplateError(f"no template can be built: {self.obstacle}")
            if TemplateState.FAILED in states and TemplateState.BUILDING not in states:
                problem = states[TemplateState.FAILED].problem
                raise TemplateError(f"the template could not be built: {problem}")
            if not self.is_building:
                self.wanted.notify()
            await changed.wait()

    def is_ready(self, name: str) -> bool:
        """Whether this template is there, and VMs may start from it."""
        return name in self.entries and self.entries[name].state is TemplateState.READY

    def has_ready(self, digest: str) -> bool:
        """Whether VMs of this fingerprint can start from a template."""
        return any(entry.state is TemplateState.READY for entry in self.of(digest))

    @property
    def is_building(self) -> bool:
        return any(entry.state is TemplateState.BUILDING for entry in self.entries.values())

    async def present(self) -> str:
        """The present fingerprint's digest; empty if a file of the fingerprint is missing."""
        try:
            return await trio.to_thread.run_sync(self._digest)
        except OSError:
            return ""

    async def choose(self, vm_id: str, use: TemplateUse) -> tuple[str, Template | None]:
        """Choose how a VM starts. The VM becomes a holder of its template, until `release`.

        :returns: the present fingerprint's digest; and the template, None to boot from cold
        :raises TemplateError: if the run requires a template and none is ready any more
        """
        digest = await self.present()
        if use is TemplateUse.OFF:
            return digest, None
        for entry in self.of(digest):
            if entry.state is TemplateState.READY:
                entry.holders.add(vm_id)
                return digest, entry.template
        if use is TemplateUse.REQUIRE:
            raise TemplateError(
                "the template is not ready any more: the image, QEMU or a setting was changed, or"
                " clones did not start",
                advice="send the run again",
            )
        self.wanted.notify()
        return digest, None

    def of(self, digest: str) -> list[Entry]:
        """The valid templates of a fingerprint: one at most, except for a moment."""
        entries = self.entries.values()
        return [one for one in entries if one.template.digest == digest and not one.invalid]

    def new_name(self, digest: str) -> str:
        """An unused name for a template of this fingerprint."""
        numbered = (f"{digest}-{number}" for number in itertools.count(2))
        names = itertools.chain([digest], numbered)
        return next(name for name in names if name not in self.entries)

    def _digest(self) -> str:
        return template.fingerprint(self._config.qemu, self._host).digest

    def came_up(self, name: str) -> None:
        """A clone of this template has started and renewed itself."""
        self.restored += 1
        if entry := self.entries.get(name):
            entry.failures = entry.doubts = 0

    def doubt(self, name: str) -> None:
        """A clone of this template, called for the first time, has not answered.

        After some in a row, clones are called for their renewal first, until one comes up. Who
        fails then has failed by itself; who fails at a computation may have failed for that.
        """
        if entry := self.entries.get(name):
            entry.doubts += 1

    def is_doubted(self, name: str) -> bool:
        """Whether clones of this template are to be called for their renewal first."""
        entry = self.entries.get(name)
        return entry is not None and entry.doubts >= _MOST_FAILURES

    def failed(self, name: str) -> None:
        """A clone of this template did not start."""
        if entry := self.entries.get(name):
            entry.failures += 1
            if entry.failures >= _MOST_FAILURES and entry.state is TemplateState.READY:
                log.error("template: invalid, will be built again", template=name)
                entry.invalid = True
                entry.enter(TemplateState.STALE, "clones did not start from it")
                self.wanted.notify()

    def release(self, vm_id: str) -> None:
        """This VM does not need its template any more."""
        for entry in self.entries.values():
            if vm_id in entry.holders:
                entry.holders.discard(vm_id)
                self.wanted.notify()
