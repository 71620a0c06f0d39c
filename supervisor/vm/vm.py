"""A VM as everybody sees it: its record, what may be asked of it, and what can be waited for.

Its task, in `life`, and the few tasks below that one alone write its record. Requests hold a
`Vm`, read it, wait on it and ask for things; they never own it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from supervisor.errors import (
    Busy,
    RunFailed,
    Stopping,
    SupervisorError,
)
from supervisor.qemu import process
from supervisor.qemu.connection import Link, MonitorState
from supervisor.state.record import EndMode, Purpose, RelayState
from supervisor.state.status import Status, VmState
from supervisor.state.vm_dir import VmDir
from supervisor.vm.relay import Relay
from supervisor.vm.restart import Restarts
from supervisor.vm.shutdown import EndRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.config import Config
    from supervisor.errors import CloneFailed
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qmp import Facts, Monitor
    from supervisor.state.journal import Journal, News
    from supervisor.state.record import Record, RunOptions
    from supervisor.templates.registry import Templates

log = structlog.stdlib.get_logger()


class Vm:
    """A VM, from the decision to start it, or to take it up, until long after its end.

    ``record`` is what is written in the VM's directory: a change is made by `commit` alone, and is
    seen once it is on disk, or once the disk has refused it.
    """

    #: QEMU's last words on itself.
    facts: Facts | None = None
    #: The agent's answer to the computation, once ``record.relay`` says that there is one.
    reply: str | None = None
    qemu: Qemu | None = None
    link: Link | None = None
    #: Why its task failed, where the VM's own end does not say it.
    failure: SupervisorError | None = None
    #: Why it could not be started from its template, where it is to be tried from cold.
    clone_failure: CloneFailed | None = None
    #: Whether a run is about to have it, out of the pool.
    claimed = False
    #: Whether its task is to end without the VM.
    leaving = False
    #: How often the guest has been reset.
    resets = 0
    #: Whether the guest's watchdog is why it ended, or is to.
    watchdog_ended_it = False
    #: On trio's clock: until then, failures of the disk are no news.
    disk_quiet_until = 0.0

    def __init__(
        self,
        record: Record,
        config: Config,
        journal: Journal,
        templates: Templates,
        born_s: float | None = None,
    ) -> None:
        """:param born_s: when its run was asked for, on the host's CLOCK_BOOTTIME; else now"""
        self.record = record
        self.config = config
        self.templates = templates
        self.dir = VmDir(config.qemu.tmp / record.id)
        self.end_request = EndRequest()
        self.relay = Relay(self)
        self.restarts = Restarts(config.life)
        #: What the task's work is done in.
        self.scope = trio.CancelScope()
        self.resetting = trio.Lock()
        self._journal = journal
        self._writing = trio.Lock()
        self._changed = trio.Event()
        self._over = trio.Event()
        self._phases = dict(record.phases)
        #: What the next commit is to write.
        self._news: list[News] = []
        self._changes: dict[str, Any] = {}
        self._born_s = process.boottime_s() if born_s is None else born_s
        if record.ended_at:
            self._over.set()

    # --- what others may ask ----------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> Status:
        return self.record.status

    @property
    def ended(self) -> bool:
        """Whether the process is gone, no other will follow, and only the record is left."""
        return self.record.ended_at is not None

    @property
    def monitor_state(self) -> MonitorState:
        return self.link.state if self.link else MonitorState.NONE

    @property
    def pid(self) -> int | None:
        """QEMU's process id, or with ``USE_SUDO`` sudo's; None before there is one."""
        return self.record.process.pid if self.record.process else None

    @property
    def uptime_s(self) -> float | None:
        """Seconds since the guest first ran; None before that and after the end."""
        since = self.record.running_since_s
        return None if self.ended or since is None else process.boottime_s() - since

    async def wait_over(self) -> bool:
        """Whether the VM has ended, once that is decided: it may be left to run on instead."""
        await self._over.wait()
        return not self.leaving

    async def wait_ended(self) -> None:
        """Return when the VM has ended.

        :raises Stopping: if it is left running by a supervisor that stops
        """
        if not await self.wait_over():
            raise Stopping(f"the supervisor stops; VM {self.id} runs on, for the next to take up")

    async def wait_answered(self) -> str:
        """The agent's answer to the computation.

        :raises SupervisorError: if there is none and never will be; the VM has ended then
        """
        await self.relay.settled.wait()
        if self.record.relay is RelayState.ANSWERED and self.reply is not None:
            return self.reply
        if self.leaving or self.record.relay is not RelayState.INTERRUPTED:
            await self.wait_ended()
        failure = self.relay.failure or self.failure
        raise failure or RunFailed(self.id, self.record.error or self.record.relay)

    def ask_to_end(self, mode: EndMode, why: str) -> None:
        """Begin to end the VM; ``FORCE`` also hurries an end that was begun gracefully."""
        self.end_request.ask(mode, why)

    def quit_after_guest_shutdown(self) -> None:
        """End a QEMU whose guest has ended: it waits for us, so that its end is heard of.

        Another guest may follow; see `restart`.
        """
        self.end_request.ask(EndMode.FORCE, "the guest has ended", for_good=False)

    def leave(self) -> bool:
        """Let the VM go without ending it, unless its guest has not run yet or is to be frozen.

        Its task returns; QEMU goes on.
        """
        unborn = self.status.state is VmState.PRELAUNCH and self.record.first_ran_s is None
        if self.ended or unborn or self.record.purpose is Purpose.TEMPLATE:
            return False
        self.leaving = True
        self.scope.cancel()
        return True

    async def give(self, computation: bytes, options: RunOptions, asked_s: float) -> bool:
        """Give a VM of the pool its computation; from now on it is that run's.

        False if it has begun to end meanwhile, and nothing has changed.

        :param asked_s: when the run was asked for, on CLOCK_BOOTTIME
        :raises OSError: if that cannot be written; then nothing has changed
        """
        await trio.to_thread.run_sync(self.dir.computation.write_bytes, computation)
        if self.end_request.any.is_set() or self.ended:
            self.dir.computation.unlink(missing_ok=True)
            return False
        self._born_s, self._phases = asked_s, {}
        self.reached("pool")
        told = {"ttl_s": options.ttl_s, "restart": options.restart, "keep_disk": options.keep_disk}
        # What a run asks for is counted from now on; if its guest has not run yet, from then.
        clock = {"first_ran_s": asked_s} if self.record.first_ran_s else {}
        changes = {"purpose": Purpose.RUN, "options": options, "relay": RelayState.WAITING}
        await self.commit("taken", told, **changes, **clock)
        return True

    def monitor(self) -> Monitor:
        """What to speak to QEMU through now.

        :raises Busy: if there is no QEMU
        :raises MonitorError: if there is no connection to it
        """
        if self.link is None or self.ended:
            raise Busy(f"VM {self.id} cannot be asked: it is {self.status}")
        return self.link.monitor()

    async def query_now(self) -> Facts:
        """QEMU's answers of this moment.

        :raises Busy: if there is no QEMU to ask
        :raises MonitorError: if it does not answer
        """
        self.facts = await self.monitor().ask()
        return self.facts

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once this is so; it is looked at after every change of the record."""
        while not condition():
            await self._changed.wait()

    # --- the record -------------------------------------------------------------------------

    async def commit(self, kind: str, data: Mapping[str, Any], **changes: Any) -> None:
        """Write a change and the event that made it; then let it be seen.

        Not cancelled half-way: what happened is on record.
        """
        self.defer(kind, data, **changes)
        await self.write_deferred()

    async def write_deferred(self) -> None:
        """Write what has been put off, if anything."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._news:  # else the one before us has written ours as well
                    news, changes = self._news, self._changes | {"phases": dict(self._phases)}
                    self._news, self._changes = [], {}
                    changed = attrs.evolve(self.record, **changes)
                    self.record = await self._journal.commit(changed, *news)
        self.wake()

    def defer(self, kind: str, data: Mapping[str, Any], **changes: Any) -> None:
        """The same with the next commit: for what another supervisor could find out by itself."""
        self._news.append((kind, data))
        self._changes |= changes

    async def set_status(self, status: Status, **changes: Any) -> None:
        if status != self.status or changes:
            log.info("state", vm=self.id, state=status.state, reason=status.reason)
            data = {"state": status.state, "reason": status.reason}
            await self.commit("state", data, status=status, **changes)

    def reached(self, phase: str) -> bool:
        """Note when a step was first reached; the next commit writes it. Whether it was now."""
        first = phase not in self._phases
        if first:
            self._phases[phase] = process.boottime_s() - self._born_s
        return first

    def forget(self, *phases: str) -> None:
        """These steps are to be taken again."""
        for phase in phases:
            self._phases.pop(phase, None)

    def close(self) -> None:
        """Its task is over: who waits for the VM waits no longer."""
        self._over.set()
        self.relay.settled.set()
        self.wake()

    def wake(self) -> None:
        """Have every ``until`` look anew."""
        self._changed.set()
        self._changed = trio.Event()
