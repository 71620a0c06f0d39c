"""Keeps a QMP connection to one QEMU while its process lives: connects, checks, reconnects."""

from __future__ import annotations

import enum
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from supervisor.errors import MonitorError, MonitorFlooded, SocketGone
from supervisor.qemu import qmp
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.waiting import Backoff, move_on_when, sleep_in_step

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import LifeConfig
    from supervisor.config.timing import Timing
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qapi import QmpEvent, RunStatus
    from supervisor.qemu.qmp import Monitor

log = structlog.stdlib.get_logger()

#: Waits between attempts to reconnect.
_RETRY = Backoff(0.1, 5.0)

#: A healthy QEMU greets at once. A QEMU that was just started sometimes never greets a connection
#: that was made before its monitor was up. It then greets the next connection.
_GREETING_S = 2.0

#: How many connections are made at a time. A thousand VMs may be adopted at once, and without
#: this limit the supervisor would be too slow to read each greeting within its deadline.
_connecting = trio.CapacityLimiter(64)


class MonitorState(enum.StrEnum):
    """Whether QEMU answers. A fact beside the VM's state, not part of it."""

    #: Not connected yet.
    NONE = "none"
    OK = "ok"
    #: The process lives, but does not answer.
    LOST = "lost"


class Handler(Protocol):
    """The receiver of what happens on a `Connection`.

    ``on_event`` and ``on_heartbeat`` never run concurrently. ``on_state`` may run beside them.
    """

    async def on_connect(self, monitor: Monitor) -> None:
        """A connection, the first or a later one, is negotiated. Its events come after this call.

        :raises MonitorError: to close this connection; `Connection.keep` then reconnects
        """

    async def on_event(self, event: QmpEvent) -> None:
        """QEMU sent an event."""

    async def on_heartbeat(self, answer: RunStatus | None) -> None:
        """A heartbeat was answered.

        :param answer: None if an event came after the question and made the answer stale
        """

    async def on_state(self, state: MonitorState) -> None:
        """QEMU stopped answering, or answers again. Not called for the first connection."""

    async def on_error(self, error: MonitorError) -> None:
        """QEMU refused a command of `on_connect`, or the connection is lost for good.

        A connection is lost for good at SocketGone and MonitorFlooded. No call follows these.
        """


class Connection:
    """The connection to one QEMU process."""

    def __init__(self, vm_id: str, socket_path: Path, life: LifeConfig, timing: Timing) -> None:
        self.state = MonitorState.NONE
        #: Set once the first connection is made, or nothing listens on the socket.
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
        """The present connection.

        :raises MonitorError: if there is no connection
        """
        if self._monitor is None:
            raise MonitorError(f"VM {self._vm_id} has no QMP connection now")
        return self._monitor

    async def keep(self, qemu: Qemu, handler: Handler) -> None:
        """Connect, and reconnect after each loss, until the process has ended.

        Returns after the process has ended and the last of its events is handled. Also returns,
        after `Handler.on_error`, if the connection is lost for good and the process still lives.
        """
        failures = 0
        while True:
            failure = None
            try:
                if not await self._connect_once(qemu, handler):
                    return  # the process ended before its greeting: there are no events
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

    async def _connect_once(self, qemu: Qemu, handler: Handler) -> bool:
        """Serve one connection until it ends. False if the process ended before its greeting."""
        greeting_s = min(self._life.answer_s, _GREETING_S)
        answer_s = self._life.answer_s
        opened = qmp.connect(self._vm_id, self._socket_path, greeting_s, answer_s, self._timing)
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
                    raise MonitorFlooded(f"QEMU of VM {self._vm_id} sends too many events")
        finally:
            self._monitor = None
        return True

    async def _send_heartbeats(self, monitor: Monitor, handler: Handler) -> None:
        """Query the status at each interval; while QEMU does not answer, again and again."""
        # VMs that were adopted together must not all be queried together.
        pause_s = random.uniform(0, self._life.heartbeat_s)
        failures = 0
        while True:
            if self.state is MonitorState.OK:
                await sleep_in_step(pause_s)
                pause_s = self._life.heartbeat_s
            events_seen, began = self._events_seen, trio.current_time()
            try:
                answer = await monitor.query_status()
            except MonitorError as error:
                if not monitor.connected:
                    await trio.sleep(_RETRY.first_s)  # `keep` handles the lost connection
                    continue
                if self.state is MonitorState.OK:
                    log.warning("QEMU does not answer", vm=self._vm_id, problem=str(error))
                await self._enter(MonitorState.LOST, handler)
                # A QEMU that answers at once, with something else, must not keep us busy.
                failures += 1
                await trio.sleep_until(began + _RETRY.wait_s(failures))
            else:
                failures = 0
                await self._enter(MonitorState.OK, handler)
                async with self._order:
                    # An event that came meanwhile is newer than the answer.
                    fresh = events_seen == self._events_seen and not monitor.waiting_events
                    await handler.on_heartbeat(answer if fresh else None)

    async def _enter(self, state: MonitorState, handler: Handler) -> None:
        if state is not self.state:
            before, self.state = self.state, state
            # The first answer of a new VM's monitor is expected, and no event.
            if before is not MonitorState.NONE or state is MonitorState.LOST:
                await handler.on_state(state)
