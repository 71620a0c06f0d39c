"""A VM as everybody sees it: its record, what may be asked of it, and what can be waited for.

The VM's task (`task`) and the tasks below that one write the record. Requests hold a `Vm`, read
it, wait on it and ask for things; they never own it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.config import Auth
from supervisor.errors import Busy, RunFailed, Stopping, SupervisorError
from supervisor.qemu.connection import MonitorState
from supervisor.state.record import (
    EndCause,
    EndMode,
    EventKind,
    Launch,
    Phase,
    Purpose,
    RelayState,
)
from supervisor.state.status import VmState
from supervisor.state.vm_dir import VmDir
from supervisor.vm.console_readers import Console
from supervisor.vm.on_record import OnRecord

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config
    from supervisor.qemu.host import Clock
    from supervisor.qemu.qmp import Facts, Monitor
    from supervisor.state.journal import Journal
    from supervisor.state.record import Record, RunOptions
    from supervisor.state.secret import Secret
    from supervisor.vm.session import Session

log = structlog.stdlib.get_logger()


@attrs.frozen
class EndRequest:
    """That somebody wants the VM to end. ``why`` is for the log, the event and the error."""

    mode: EndMode
    cause: EndCause
    why: str


class Vm(OnRecord):
    """A VM, from the decision to start or adopt it until long after its end.

    :ivar session: the present QEMU, or the last one; None before the first
    :ivar agent_ready: whether the present guest's agent answers
    :ivar agent_lost: whether it was ready, and does not answer any more
    :ivar agent_problem: what is wrong with an agent that is not ready, if that is known
    :ivar agent_last_lost: the problem of the last time that it was lost, if this supervisor saw one
    :ivar agent_protected: whether the agent refused to answer a stranger; None if that is not known
    :ivar resumes: how often the guest has run on after a pause; 1 more if it was adopted
    :ivar guests: how many were booted again or reset
    :ivar prepared: whether the guest is ready to become a template, and nobody is connected
    :ivar failure: why its run or its task failed, if the VM's own end does not say it
    :ivar end_request: what was asked for; it may become more urgent, never less
    :ivar claimed: whether a run is about to have this VM of the pool, or this held clone
    :ivar restored: whether it is a held clone whose guest could run
    :ivar fresh_reply: the agent's answer for one who waits for it, if it is short
    :ivar waited_for: how many do
    :ivar renews_itself: whether it is a copy that nobody has to call to be renewed
    :ivar leaving: whether the VM's task ends and QEMU runs on
    """

    def __init__(
        self,
        record: Record,
        config: Config,
        journal: Journal,
        clock: Clock,
        secret: Secret | None,
        requested_s: float | None = None,
    ) -> None:
        """
        :param secret: None for a VM that has ended, or that an earlier version began
        :param requested_s: when its run was asked for, by ``clock``; None for now
        """
        super().__init__(record, journal, clock, requested_s)
        self.config = config
        self.dir = VmDir(config.qemu.tmp / record.id)
        self.secret = secret
        self.session: Session | None = None
        self.agent_ready = False
        self.agent_lost = False
        self.agent_problem = ""
        self.agent_last_lost = ""
        self.agent_protected: bool | None = None
        self.resumes = 0
        self.guests = 0
        self.prepared = False
        self.failure: SupervisorError | None = None
        self.end_request: EndRequest | None = None
        self.claimed = False
        self.restored = False
        self.renews_itself = False
        self.fresh_reply: str | None = None
        self.waited_for = 0
        self.leaving = False
        #: What the task's work is done in.
        self.scope = trio.CancelScope()
        self.resetting = trio.Lock()
        self.attesting = trio.Lock()
        self.computing = trio.Lock()
        self.uploads = 0
        self.console = Console()
        self._over = trio.Event()
        if record.ended:
            self._over.set()

    # --- what others may read ---------------------------------------------------------------

    @property
    def awaits_owner(self) -> bool:
        """Whether the guest waits for its owner's word before its first instruction."""
        waits = (Launch.WAITING, Launch.MEASURED, Launch.SECRET)
        return self.record.launch in waits and self.status.state is VmState.PRELAUNCH

    @property
    def is_held(self) -> bool:
        """Whether the guest waits for a run before its first instruction, and could run at once."""
        return (
            self.record.purpose is Purpose.HELD
            and self.restored
            and self.session is not None
            and not self.session.qemu.gone
            and self.monitor_state is not MonitorState.LOST
        )

    @property
    def is_kept_back(self) -> bool:
        """Whether the guest would run, but for somebody's word."""
        return self.awaits_owner or (self.record.purpose is Purpose.HELD and self.restored)

    @property
    def is_let_go(self) -> bool:
        """Whether the guest of a held clone is about to run."""
        taken = self.restored and self.record.purpose is not Purpose.HELD
        return taken and self.record.first_ran_s is None

    @property
    def is_coming_up(self) -> bool:
        """Whether somebody waits for its agent's answer."""
        return self.record.awaits_answer and not self.ended

    @property
    def opens_agent(self) -> bool:
        """Whether the agent is to answer everybody, for nobody is asked who calls.

        Not before a run has the VM: a run must find it as the supervisor made it.
        """
        return self.config.auth is Auth.OFF and self.record.relay is not RelayState.IDLE

    @property
    def ending(self) -> bool:
        """Whether the VM is on its way to its end: asked to, or by its guest's own shutdown."""
        return self.end_request is not None or self.status.state is VmState.SHUTDOWN

    @property
    def hurried(self) -> bool:
        """Whether QEMU must quit without the guest being asked."""
        forced = self.end_request is not None and self.end_request.mode is EndMode.FORCE
        return forced or self.status.state is VmState.SHUTDOWN

    @property
    def monitor_state(self) -> MonitorState:
        if self.session is None or self.session.qemu.gone:
            return MonitorState.NONE
        return self.session.connection.state

    @property
    def facts(self) -> Facts | None:
        """What QEMU last said of itself."""
        return self.session.facts if self.session else None

    @property
    def pid(self) -> int | None:
        """QEMU's process id, or with ``USE_SUDO`` sudo's; None before there is one."""
        return self.record.process.pid if self.record.process else None

    @property
    def uptime_s(self) -> float | None:
        """Seconds since the guest first ran; None before that and after the end."""
        since = self.record.running_since_s
        return None if self.ended or since is None else self.clock.boottime_s() - since

    @property
    def credential(self) -> str | None:
        """What its run must show to the agent; None if nobody must, or if no run has this VM."""
        is_asked = self.config.auth is Auth.ON and self.record.purpose is Purpose.RUN
        # Whoever had it would get what is for the parties alone.
        is_asked &= self.record.options.parties is None
        is_asked &= not self.record.options.dials  # such an agent knows its users by their keys
        return self.secret.credential if self.secret and is_asked and not self.ended else None

    @property
    def reply_file(self) -> Path:
        """The file with the agent's answer.

        :raises Busy: if there is no answer
        """
        if not self.record.answered:
            why = f": {self.record.error}" if self.record.error else ""
            raise Busy(f"VM {self.id} has no answer, its computation is {self.record.relay}{why}")
        return self.dir.reply

    async def read_reply(self) -> str:
        """The agent's answer.

        :raises Busy: if there is no answer
        :raises SupervisorError: if it cannot be read
        """
        file = self.reply_file
        fresh, self.fresh_reply = self.fresh_reply, None
        if fresh is not None:
            return fresh
        try:
            # Up to 33 MB, so nobody keeps it.
            return (await trio.to_thread.run_sync(file.read_bytes)).decode(errors="replace")
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: OSError) -> SupervisorError:
        """What to tell if the answer's file cannot be read."""
        if isinstance(error, FileNotFoundError) and self.ended:
            return Busy(
                f"VM {self.id} has ended, and its answer is not kept any longer",
                advice="MANAGER_KEEP_REPLIES says for how long answers are kept",
            )
        return SupervisorError(
            f"the answer of VM {self.id} cannot be read: {self.dir.reply}: {error.strerror}"
        )

    # --- what others may wait for -----------------------------------------------------------

    async def wait_over(self) -> bool:
        """Whether the VM has ended, once that is decided: it may be left to run on instead."""
        await self._over.wait()
        return not self.leaving

    async def wait_ended(self) -> None:
        """Return when the VM has ended.

        :raises Stopping: if it is left running by a supervisor that stops
        """
        if not await self.wait_over():
            raise Stopping(f"the supervisor stops; VM {self.id} runs on, for the next one to adopt")

    async def wait_ran(self) -> None:
        """Return when the guest has begun to run.

        :raises SupervisorError: if it never will; the VM has ended then
        """
        await self.until(lambda: self.record.first_ran_s is not None or self._over.is_set())
        if self.record.first_ran_s is None:
            await self.wait_ended()
            raise self.failure or RunFailed(self.id, self.record.error or str(self.status))

    async def wait_answered(self) -> None:
        """Return when the agent has answered the computation.

        :raises SupervisorError: if there is none and never will be; the VM has ended then
        """
        await self.until(lambda: self.record.settled or self._over.is_set())
        if self.record.answered:
            return
        if self.leaving or self.record.relay is not RelayState.INTERRUPTED:
            await self.wait_ended()
        raise self.failure or RunFailed(self.id, self.record.error or self.record.relay)

    # --- what others may ask for ------------------------------------------------------------

    def request_end(self, mode: EndMode, cause: EndCause, why: str) -> None:
        """Begin to end the VM. ``FORCE`` hurries an end that was begun gracefully."""
        if self.end_request is None:
            self.end_request = EndRequest(mode, cause, why)
        elif mode is EndMode.FORCE:
            self.end_request = attrs.evolve(self.end_request, mode=mode)
        self.notify()

    def leave(self) -> bool:
        """Let the VM go without ending it. False if its guest has not run, or becomes a template.

        The VM's task returns; QEMU goes on.
        """
        unborn = self.status.state is VmState.PRELAUNCH and self.record.first_ran_s is None
        # A guest that was measured may have its owner's secret, and cannot be launched again.
        unborn = unborn and self.record.launch in (Launch.PLAIN, Launch.ASKED)
        if self.ended or unborn or self.record.purpose is Purpose.TEMPLATE:
            return False
        self.leaving = True
        self.scope.cancel()
        return True

    async def assign(
        self, computation: bytes, options: RunOptions, requested_s: float, owner: str
    ) -> bool:
        """Give a VM that was kept for runs a run's computation; from now on it is that run's VM.

        False if it has begun to end meanwhile; then nothing has changed.

        :param requested_s: when the run was asked for, by ``clock``
        :raises OSError, RuntimeError: if it cannot be put on record; then nothing has changed
        """
        phase = Phase.HELD if self.record.purpose is Purpose.HELD else Phase.POOL
        data = {"ttl_s": options.ttl_s, "restart": options.restart, "keep_disk": options.keep_disk}
        # What a run asks for is counted from now on; if its guest has not run yet, from then.
        clock = {"first_ran_s": requested_s} if self.record.first_ran_s else {}
        # A run that was answered must not be the next supervisor's spare VM.
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self.ending or self.ended:
                    return False
                self._requested_s, self._phases = requested_s, {}
                self.reached(phase)
                try:
                    await self._write(
                        (EventKind.TAKEN, data),
                        required=True,
                        before=partial(self.dir.have_computation, computation, options.restart),
                        owner=owner,
                        purpose=Purpose.RUN,
                        options=options,
                        relay=RelayState.WAITING,
                        **clock,
                    )
                except BaseException:
                    await self.dir.drop_computation()
                    raise
        self.notify()
        return True

    def monitor(self) -> Monitor:
        """What to speak to QEMU through now.

        :raises Busy: if there is no QEMU
        :raises MonitorError: if there is no connection to it
        """
        if self.session is None or self.session.qemu.gone or self.ended:
            raise Busy(f"VM {self.id} cannot be asked: it is {self.status}")
        return self.session.monitor()

    async def query_now(self) -> None:
        """Have ``facts`` be QEMU's answers of this moment.

        :raises Busy: if there is no QEMU to ask
        :raises MonitorError: if it does not answer
        """
        self.monitor()
        if self.session:
            await self.session.query()

    # --- the agent -------------------------------------------------------------------------

    def note_agent(self, *, problem: str) -> None:
        """The agent answers; or it was ready, and has this problem now."""
        self.agent_ready, self.agent_lost, self.agent_problem = not problem, bool(problem), problem
        self.agent_last_lost = problem or self.agent_last_lost
        self.notify()

    def forget_agent(self) -> None:
        """There is no agent: the guest was reset, or has ended."""
        self.agent_ready, self.agent_lost, self.agent_problem = False, False, ""
        self.agent_protected = None

    def close(self) -> None:
        """The VM's task is over: who waits for the VM waits no longer."""
        self._over.set()
        self.notify()
