"""A VM's QMP link over its whole life: made, watched, lost and made again."""

from __future__ import annotations

import enum
import math
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.errors import MonitorError, MonitorFlooded, SocketGone
from supervisor.qemu import qmp
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.waiting import CutShort, unless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from supervisor.config import LifeConfig
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qmp import Monitor, QmpEvent, RunStatus

log = structlog.stdlib.get_logger()

#: Between attempts to connect anew: the first wait, and the longest.
_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0


#: A QEMU that is well greets at once. Now and then one that has just been started never greets
#: a connection that was made before its monitor was up; another one is.
_GREETING_S = 2.0

#: So many links are made at a time: of a thousand VMs that are taken up at once, each is to
#: have its answers before they count as late.
_being_made = trio.CapacityLimiter(64)


class MonitorState(enum.StrEnum):
    """Whether QEMU answers. Beside the VM's state, not part of it."""

    #: Not connected yet, or not any more.
    NONE = "none"
    OK = "ok"
    #: There is a process, and it does not answer.
    LOST = "lost"


class Link:
    """The link to one QEMU process.

    :param met: called on each connection, the first and every later one, before events are heard
    :param hear: called with each event, in order
    :param beat: called at each heartbeat, with QEMU's answer if no event has overtaken it
    :param turned: called when QEMU stops answering, or answers again
    :param refused: called with QEMU's word where that is why a connection came to nothing
    """

    def __init__(
        self,
        vm_id: str,
        socket_path: Path,
        life: LifeConfig,
        *,
        met: Callable[[Monitor], Awaitable[None]],
        hear: Callable[[QmpEvent], Awaitable[None]],
        beat: Callable[[RunStatus | None], Awaitable[None]],
        turned: Callable[[MonitorState], Awaitable[None]],
        refused: Callable[[MonitorError], Awaitable[None]],
    ) -> None:
        self.state = MonitorState.NONE
        #: Set once the first connection has been made, or is never to be had.
        self.tried = trio.Event()
        #: Why the last connection failed, if it did.
        self.problem = ""
        self._vm_id = vm_id
        self._socket_path = socket_path
        self._life = life
        self._met = met
        self._hear = hear
        self._beat = beat
        self._turned = turned
        self._refused = refused
        self._monitor: Monitor | None = None
        self._heard = 0
        self._order = trio.Lock()

    def monitor(self) -> Monitor:
        """What to speak to QEMU through now.

        :raises MonitorError: if there is no connection
        """
        if self._monitor is None:
            raise MonitorError(f"VM {self._vm_id} has no connection to its QEMU now")
        return self._monitor

    async def keep(self, qemu: Qemu) -> None:
        """Keep the link until the process has gone and all it said has been heard.

        :raises SocketGone: if the process lives and can never be reached again
        :raises MonitorFlooded: if its guest has it say too much
        """
        wait_s = _RETRY_S
        while True:
            try:
                await self._converse(qemu)
                wait_s = _RETRY_S
                failure = None
            except CutShort:
                return  # gone before it was reached: there is nothing to hear any more
            except MonitorError as error:
                failure = error
                self.problem = str(error)
                if isinstance(error, SocketGone):
                    self.tried.set()
            # A process closes its sockets a moment before it is seen to have ended.
            with trio.move_on_after(EXIT_LAG_S):
                await qemu.wait()
                return
            if failure and failure.error_class is not None:
                await self._refused(failure)
            await self._turn(MonitorState.LOST)
            if isinstance(failure, SocketGone | MonitorFlooded):
                raise failure
            with trio.move_on_after(wait_s):
                await qemu.wait()
                return
            wait_s = min(2 * wait_s, _LONGEST_RETRY_S)

    async def _converse(self, qemu: Qemu) -> None:
        """One connection, from its making to its end."""
        greeting_s = min(self._life.answer_s, _GREETING_S)
        connection = qmp.connect(self._socket_path, greeting_s, self._life.answer_s)
        try:
            async with AsyncExitStack() as stack:
                async with _being_made:
                    link = await unless(qemu.wait, stack.enter_async_context, connection)
                    self._monitor = link
                    await self._met(link)
                self.tried.set()
                await self._turn(MonitorState.OK)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._beats, link)
                    async for event in link.events:
                        self._heard += 1
                        async with self._order:
                            await self._hear(event)
                    nursery.cancel_scope.cancel()
                if link.flooded:
                    raise MonitorFlooded(f"the monitor of VM {self._vm_id} is flooded with events")
        finally:
            self._monitor = None

    async def _beats(self, link: Monitor) -> None:
        """Ask again and again; of a QEMU that does not answer, without a pause."""
        # VMs that were taken up at once are not all to be asked at once.
        pause_s = random.uniform(0, self._life.heartbeat_s)
        while True:
            if self.state is MonitorState.OK:
                await trio.sleep_until(_on_the_beat(trio.current_time() + pause_s, pause_s))
                pause_s = self._life.heartbeat_s
            heard = self._heard
            try:
                answer = await link.query_status()
            except MonitorError as error:
                if not link.connected:
                    await trio.sleep(_RETRY_S)  # `keep` decides what that means
                    continue
                if self.state is MonitorState.OK:
                    log.warning("QEMU does not answer", vm=self._vm_id, problem=str(error))
                await self._turn(MonitorState.LOST)
            else:
                await self._turn(MonitorState.OK)
                async with self._order:
                    # An event that came meanwhile says the same, and better.
                    fresh = heard == self._heard and not link.waiting_events
                    await self._beat(answer if fresh else None)

    async def _turn(self, state: MonitorState) -> None:
        if state is not self.state:
            before, self.state = self.state, state
            # That a new VM's monitor answers is no news.
            if before is not MonitorState.NONE or state is MonitorState.LOST:
                await self._turned(state)


def _on_the_beat(time: float, pause_s: float) -> float:
    """A moment that many VMs share: to wake up for them one by one would cost more than to ask."""
    return float(math.ceil(time)) if pause_s >= 1 else time
