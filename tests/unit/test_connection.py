"""How often one QEMU is asked, whatever it answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import trio

from supervisor.config import LifeConfig, Timing
from supervisor.errors import MonitorError
from supervisor.qemu import qmp
from supervisor.qemu.connection import Connection, MonitorState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from supervisor.qemu.connection import Handler
    from supervisor.qemu.process import Qemu


class Nonsense:
    """A monitor that answers at once, and never to the question."""

    connected = True
    flooded = False
    waiting_events = 0

    def __init__(self, events: trio.MemoryReceiveChannel[Any]) -> None:
        self.events = events
        self.asked = 0

    async def query_status(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        raise MonitorError("QEMU's answer does not follow QAPI")


class Runs:
    """A QEMU that does not end."""

    async def wait(self) -> None:
        await trio.sleep_forever()


class Silent:
    async def on_connect(self, monitor: object) -> None:
        pass

    async def on_state(self, state: MonitorState) -> None:
        pass


async def test_qemu_that_answers_nonsense_at_once_is_asked_seldom(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, receive = trio.open_memory_channel[Any](0)
    monitor = Nonsense(receive)

    @asynccontextmanager
    async def connect(*_: object) -> AsyncIterator[Nonsense]:
        yield monitor

    monkeypatch.setattr(qmp, "connect", connect)
    connection = Connection("vm", Path("qmp.sock"), LifeConfig(), Timing())
    with send, receive, trio.move_on_after(120):
        await connection.keep(cast("Qemu", Runs()), cast("Handler", Silent()))
    assert connection.state is MonitorState.LOST
    assert 10 < monitor.asked < 40
