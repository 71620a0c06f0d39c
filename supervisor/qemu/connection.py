"""A VM's QMP connection for as long as its QEMU lives: made, watched, lost and made again."""

from __future__ import annotations

import enum
import math
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from supervisor.errors import MonitorError, MonitorFlooded, SocketGone
from supervisor.qemu import qmp
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.waiting import Backoff, move_on_when

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import LifeConfig
    from supervisor.config.timing import Timing
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qmp import Monitor, QmpEvent, RunStatus

log = structlog.stdlib.get_logger()

#: Between attempts to connect anew.
_RETRY = Backoff(0.1, 5.0)

#: A healthy QEMU greets at once. Now and then a QEMU that has just been started never greets a
#: connection that was made before its monitor was up; it greets the next one.
_GREETING_S = 2.0

#: So many connections are made at a time. A thousand VMs may be adopted at once, and each QEMU
#: must have answered before it counts as late.
_connecting = trio.CapacityLimiter(64)


class MonitorState(enum.StrEnum):
    """Whether QEMU answers. A fact beside the VM's state, not part of it."""

    #: Not connected yet, or not any more.
    NONE = "none"
    OK = "ok"
    #: The process lives and does not answer.
    LOST = "lost"


class Handler(Protocol):
    """What a `Connection` tells of. Its calls come one after the other, never two at once."""

    async def on_connect(self, monitor: Monitor) -> None:
        """A connection is negotiated, the first or a later one. No event was delivered on it yet.

        A MonitorError that this raises breaks the connection off.
        """

    async def on_event(self, event: QmpEvent) -> None:
        """QEMU sent an event."""

    async def on_heartbeat(self, answer: RunStatus | None) -> None:
        """A heartbeat's answer; None if an event has overtaken the answer."""

    async def on_state(self, state: MonitorState) -> None:
        """QEMU stopped answering, or answers again."""

    async def on_error(self, error: MonitorError) -> None:
        """QEMU refused a command of ``on_connect``; or no connection will ever be of use again.

        The latter is SocketGone or MonitorFlooded, and nothing is called after it.
        """


class Connection:
    """The connection to one QEMU process."""

    def __init__(self, vm_id: str, socket_path: Path, life: LifeConfig, timing: Timing) -> None:
        self.state = MonitorState.NONE
        #: Set once the first connection has been made, or it is certain that none can be.
        self.tried = trio.Event()
        #: Why the last attempt failed, if it did.
        self.problem = ""
        self._vm_id = vm_id
        self._socket_path = socket_path
        self._life = life
        self._timing = timing
        self._monitor: Monitor | None = None
        self._events_seen = 0
        self._order = trio.Lock()

    def monitor(self) -> Monitor:
        """What to speak to QEMU through now.

        :raises MonitorError: if there is no connection
        """
        if self._monitor is None:
            raise MonitorError(f"VM {self._vm_id} has no connection to its QEMU now")
        return self._monitor

    async def keep(self, qemu: Qemu, handler: Handler) -> None:
        """Keep the connection. Return once the process is gone and all it said is handled.

        Also return, after ``on_error``, if the process lives and cannot be of use any more.
        """
        failures = 0
        while True:
            failure = None
            try:
                if not await self._converse(qemu, handler):
                    return  # gone before it was reached: there is nothing more to hear
                failures = 0
            except MonitorError as error:
                failures += 1
                failure = error
                self.problem = str(error)
                if isinstance(error, SocketGone):
                    self.tried.set()
            # A process closes its sockets a moment before it is seen to have ended.
            with trio.move_on_after(EXIT_LAG_S):
                await qemu.wait()
                return
            useless = isinstance(failure, SocketGone | MonitorFlooded)
            refused = failure is not None and failure.error_class is not None
            if failure and refused:
                await handler.on_error(failure)
            await self._enter(MonitorState.LOST, handler)
            if failure and useless:
                await handler.on_error(failure)
                return
            with trio.move_on_after(_RETRY.wait_s(max(failures, 1))):
                await qemu.wait()
                return

    async def _converse(self, qemu: Qemu, handler: Handler) -> bool:
        """One connection, from its making to its end. False if the process went before."""
        greeting_s = min(self._life.answer_s, _GREETING_S)
        opened = qmp.connect(self._socket_path, greeting_s, self._life.answer_s, self._timing)
        try:
            async with AsyncExitStack() as stack:
                async with _connecting:
                    async with move_on_when(qemu.wait) as waiting:
                        monitor = await stack.enter_async_context(opened)
                    if waiting.cancelled_caught:
                        return False
                    self._monitor = monitor
                    await handler.on_connect(monitor)
                self.tried.set()
                await self._enter(MonitorState.OK, handler)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_heartbeats, monitor, handler)
                    async for event in monitor.events:
                        self._events_seen += 1
                        async with self._order:
                            await handler.on_event(event)
                    nursery.cancel_scope.cancel()
                if monitor.flooded:
                    raise MonitorFlooded(f"the monitor of VM {self._vm_id} is flooded with events")
        finally:
            self._monitor = None
        return True

    async def _send_heartbeats(self, monitor: Monitor, handler: Handler) -> None:
        """Ask for the status again and again; a QEMU that does not answer, without a pause."""
        # VMs that were adopted at once must not all be asked at once.
        pause_s = random.uniform(0, self._life.heartbeat_s)
        while True:
            if self.state is MonitorState.OK:
                await trio.sleep_until(_shared_moment(trio.current_time() + pause_s, pause_s))
                pause_s = self._life.heartbeat_s
            events_seen = self._events_seen
            try:
                answer = await monitor.query_status()
            except MonitorError as error:
                if not monitor.connected:
                    await trio.sleep(_RETRY.first_s)  # `keep` decides what that means
                    continue
                if self.state is MonitorState.OK:
                    log.warning("QEMU does not answer", vm=self._vm_id, problem=str(error))
                await self._enter(MonitorState.LOST, handler)
            else:
                await self._enter(MonitorState.OK, handler)
                async with self._order:
                    # An event that came meanwhile says the same, and better.
                    fresh = events_seen == self._events_seen and not monitor.waiting_events
                    await handler.on_heartbeat(answer if fresh else None)

    async def _enter(self, state: MonitorState, handler: Handler) -> None:
        if state is not self.state:
            before, self.state = self.state, state
            # That a new VM's monitor answers is no news.
            if before is not MonitorState.NONE or state is MonitorState.LOST:
                await handler.on_state(state)


def _shared_moment(time: float, pause_s: float) -> float:
    """A moment that many VMs share: to wake up for each alone would cost more than to ask them."""
    return float(math.ceil(time)) if pause_s >= 1 else time
