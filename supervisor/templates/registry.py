"""Which templates there are, what state each is in, and which VMs depend on it.

A VM's task asks here what to start from; `builder` makes what is missing and removes what
nobody needs any more. All VMs of a supervisor are made by the same settings, so there is one
present fingerprint at a time; the templates of earlier ones stay for as long as a VM's disk lies on
theirs.
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

#: A template from which so many VMs in a row did not come up is made anew.
_MOST_FAILURES = 3


class TemplateState(enum.StrEnum):
    BUILDING = "building"
    READY = "ready"
    #: It could not be made, and is tried again after a while.
    FAILED = "failed"
    #: The image, QEMU or a setting is another one now; VMs still use it.
    STALE = "stale"


@attrs.define(eq=False)
class Entry:
    """What is known of one template.

    :ivar vm_id: that it is being made of
    :ivar problem: why it could not be made
    :ivar since: when it entered its state
    :ivar holders: ids of the VMs whose disk or memory it is part of
    :ivar failures: VMs in a row that did not come up from it
    :ivar invalid: whether it is of no use for VMs to come, whatever they are made of
    """

    template: Template
    state: TemplateState
    vm_id: str | None = None
    problem: str | None = None
    since: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    built_in_s: float | None = None
    size_bytes: int | None = None
    holders: set[str] = attrs.field(factory=set)
    failures: int = 0
    invalid: bool = False

    def enter(self, state: TemplateState, problem: str | None = None) -> None:
        self.state, self.problem, self.since = state, problem, datetime.now(UTC)


class Templates:
    """All templates of one supervisor.

    :ivar entries: by name
    :ivar obstacle: why none can be made now, if so
    :ivar wanted: notified when somebody has found that there is something to build or to remove
    """

    def __init__(self, config: Config, host: Host) -> None:
        self.entries: dict[str, Entry] = {}
        self.obstacle: str | None = None
        self.wanted = Signal()
        #: Whether it is known by now if a template is to be built.
        self.looked = False
        self.restored = 0
        self.fallen_back = 0
        self._config = config
        self._host = host
        self._changed = Signal()
        self._closed = False
        #: What was found to be in the way of the last fingerprint that was looked into.
        self._looked: dict[str, str | None] = {}

    # --- what is there ----------------------------------------------------------------------

    def load(self, records: Iterable[Record]) -> None:
        """Take up what an earlier supervisor left, and remove what it did not finish. Blocking."""
        holders = defaultdict(set)
        for record in records:
            if record.template and (record.ended_at is None or record.options.keep_disk):
                holders[record.template].add(record.id)
        for one in template.found(self._config.qemu.tmp):
            entry = Entry(one, TemplateState.READY, holders=holders[one.name])
            if one.is_sound():
                entry.size_bytes = one.size_bytes()
            elif entry.holders:
                # Its disk is still needed; nothing is started from it any more.
                entry.invalid = True
                entry.enter(TemplateState.STALE, "it is damaged")
            else:
                one.remove()
                continue
            self.entries[one.name] = entry

    async def look(self) -> Fingerprint | None:
        """See what VMs are made of now; None if no template of that can be made."""
        before = self.obstacle
        fingerprint, self.obstacle = await trio.to_thread.run_sync(self._look)
        digest = fingerprint.digest if fingerprint else None
        for entry in self.entries.values():
            if entry.state is TemplateState.READY and entry.template.digest != digest:
                entry.enter(TemplateState.STALE, "what VMs are made of was changed")
                log.info("template: stale", template=entry.template.name, vms=len(entry.holders))
            elif entry.state is TemplateState.STALE and entry in self.of(digest or ""):
                entry.enter(TemplateState.READY)  # what was changed was changed back
                self.changed()
        if self.obstacle != before:
            log.info("template: possible" if self.obstacle is None else "template: none",
                     why=self.obstacle)  # fmt: skip
            self.changed()
        return None if self.obstacle else fingerprint

    def _look(self) -> tuple[Fingerprint | None, str | None]:
        if self._config.start.templates is TemplateUse.OFF:
            return None, "MANAGER_TEMPLATES is off"
        if self._config.agent.is_fixed:
            return None, "MANAGER_AGENT_GRPC_URL is the address of one guest"
        try:
            fingerprint = template.fingerprint(self._config.qemu, self._host)
        except OSError as error:
            return None, f"{error.filename}: {error.strerror}"
        if fingerprint.digest not in self._looked:
            # It reads the image, all of it: once for each.
            self._looked = {fingerprint.digest: template.obstacle(self._config.qemu, self._host)}
        return fingerprint, self._looked[fingerprint.digest]

    def changed(self) -> None:
        """Have all who wait for a template look anew."""
        self._changed.notify()

    def close(self) -> None:
        """The supervisor stops: nobody need wait for a template any more."""
        self._closed = True
        self.changed()

    # --- what VMs ask -----------------------------------------------------------------------

    async def ready(self) -> None:
        """Return once there is a template to start from.

        :raises TemplateError: if there is none and will be none, or not in the time of a boot
        :raises Stopping: if `close` was or is called
        """
        timeout_s = self._config.agent.boot_timeout_s
        with trio.move_on_after(timeout_s):
            return await self._become_ready()
        raise TemplateError(
            f"there was no template after {timeout_s:g} s",
            advice="see MANAGER_BOOT_TIMEOUT and the log",
        )

    async def _become_ready(self) -> None:
        await self.look()
        while True:
            changed = self._changed.next()
            if self._closed:
                raise Stopping
            states = {entry.state: entry for entry in self.entries.values()}
            if TemplateState.READY in states:
                return
            if self.obstacle:
                raise TemplateError(f"no template can be had: {self.obstacle}")
            if TemplateState.FAILED in states and TemplateState.BUILDING not in states:
                problem = states[TemplateState.FAILED].problem
                raise TemplateError(f"the template could not be made: {problem}")
            if not self.is_building:
                self.wanted.notify()
            await changed.wait()

    @property
    def is_building(self) -> bool:
        return any(one.state is TemplateState.BUILDING for one in self.entries.values())

    async def present(self) -> str:
        """The digest of what VMs are made of now; nothing if a part of it is missing."""
        try:
            return await trio.to_thread.run_sync(self._digest)
        except OSError:
            return ""

    async def choose(self, vm_id: str, use: TemplateUse) -> tuple[str, Template | None]:
        """The digest of what a VM is made of now, and a template to start it from, held for it.

        :raises TemplateError: if it requires one and there is none any more
        """
        digest = await self.present()
        if use is TemplateUse.OFF:
            return digest, None
        for entry in self.of(digest):
            if entry.state is TemplateState.READY:
                entry.holders.add(vm_id)
                return digest, entry.template
        if use is TemplateUse.REQUIRE:
            raise TemplateError("there is no template any more of what VMs are made of now")
        self.wanted.notify()
        return digest, None

    def of(self, digest: str) -> list[Entry]:
        """All those of one fingerprint that are not invalid: one at most, but for a moment."""
        mine = self.entries.values()
        return [one for one in mine if one.template.digest == digest and not one.invalid]

    def new_name(self, digest: str) -> str:
        """What to call another one of this fingerprint."""
        others = (f"{digest}-{number}" for number in itertools.count(2))
        return next(one for one in itertools.chain([digest], others) if one not in self.entries)

    def _digest(self) -> str:
        return template.fingerprint(self._config.qemu, self._host).digest

    def came_up(self, name: str) -> None:
        """A VM that was started from it has renewed itself."""
        self.restored += 1
        if entry := self.entries.get(name):
            entry.failures = 0

    def failed(self, name: str) -> None:
        """A VM did not come up from it."""
        self.fallen_back += 1
        if entry := self.entries.get(name):
            entry.failures += 1
            if entry.failures >= _MOST_FAILURES and entry.state is TemplateState.READY:
                log.error("template: of no use, to be made anew", template=name)
                entry.invalid = True
                entry.enter(TemplateState.STALE, "VMs did not come up from it")
                self.wanted.notify()

    def release(self, vm_id: str) -> None:
        """Nothing of this VM lies on a template any more."""
        for entry in self.entries.values():
            if vm_id in entry.holders:
                entry.holders.discard(vm_id)
                self.wanted.notify()
