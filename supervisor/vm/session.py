"""One QEMU process of a VM, from its first QMP connection to its exit."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.qemu.process import EXIT_LAG_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.agent.line import Line
    from supervisor.qemu.connection import Connection, Handler
    from supervisor.qemu.process import Qemu
    from supervisor.qemu.qapi import RunStatus
    from supervisor.qemu.qmp import Facts, Monitor

#: How long events that QEMU sent before its exit may take to be read.
_DRAIN_S = 5.0


class Session:
    """What belongs to one QEMU. A VM that is booted again gets another session.

    :ivar facts: QEMU's last words on itself; None before the first
    :ivar resets: how often the guest has been reset
    :ivar watchdog_fired: whether the guest's watchdog is why it ended, or is about to end
    :ivar refusal: why QEMU was killed before its guest ran
    :ivar line: to the agent of a copy, or of a guest that will be copied; None if it has none
    """

    def __init__(self, qemu: Qemu, connection: Connection) -> None:
        self.qemu = qemu
        self.connection = connection
        self.facts: Facts | None = None
        self.resets = 0
        self.watchdog_fired = False
        self.refusal = ""
        self.line: Line | None = None

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[trio.Nursery]:
        """Hold the QMP connection for as long as QEMU lives.

        Yields a nursery for all that goes on beside it. Leaving waits until QEMU has exited and
        the handler has had all events that QEMU sent; then it cancels what is in the nursery.
        """
        heard = trio.Event()

        async def listen() -> None:
            await self.connection.keep(self.qemu, handler)
            heard.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                yield nursery
                await self.qemu.wait()
                # What QEMU said last decides how its exit is judged.
                with trio.move_on_after(_DRAIN_S):
                    await heard.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self.line:
                await self.line.close()

    async def query(self) -> Facts:
        """QEMU's answers of this moment.

        One that was started without SEV stays so, and is asked for that once.

        :raises MonitorError: if it does not answer
        """
        may_have_sev = self.facts is None or self.facts.sev.enabled
        self.facts = await self.monitor().query(sev=may_have_sev)
        return self.facts

    def monitor(self) -> Monitor:
        """:raises MonitorError: if there is no connection now"""
        return self.connection.monitor()

    async def let_the_end_decide(self, *, ending: bool) -> None:
        """Return only if QEMU goes on. Else its exit is the error to report, and cancels this.

        :param ending: whether the VM is known to be about to end
        """
        if not ending:
            # Ports close a moment before the process that held them is seen to be gone.
            with trio.move_on_after(EXIT_LAG_S) as patience:
                await self.qemu.wait()
            if patience.cancelled_caught:
                return
        await trio.sleep_forever()

    def note(self, run_status: RunStatus) -> None:
        """Keep an answer that came without being asked for the rest."""
        if self.facts:
            self.facts = attrs.evolve(self.facts, run_status=run_status, at=datetime.now(UTC))
