"""The steps by which a VM is ended, and the graces between them, without a process or a wait."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import pytest
import trio

from supervisor.config import ShutdownConfig
from supervisor.config.settings import Seconds
from supervisor.errors import MonitorError
from supervisor.state.record import EndMode
from supervisor.vm.shutdown import EndRequest, end

if TYPE_CHECKING:
    from trio.testing import MockClock

    from supervisor.qemu.connection import Link
    from supervisor.qemu.process import Qemu

GRACE = ShutdownConfig(
    powerdown_grace_s=Seconds(60.0),
    powerdown_interval_s=Seconds(25.0),
    quit_grace_s=Seconds(10.0),
    term_grace_s=Seconds(5.0),
)


class FakeVm:
    """Stands in for process and monitor alike. Notes each step and when it was taken.

    :param hears: the press of the button that the guest reacts to
    :param answers: whether QMP does
    :param connected: whether there is a connection to QEMU
    """

    pid = 1

    def __init__(
        self, *, hears: float = math.inf, answers: bool = True, connected: bool = True
    ) -> None:
        self.steps: list[tuple[str, float]] = []
        self._born = trio.current_time()
        self._hears = hears
        self._answers = answers
        self._connected = connected
        self._going_down = trio.Event()

    def _note(self, step: str) -> None:
        self.steps.append((step, trio.current_time() - self._born))

    def monitor(self) -> FakeVm:
        if not self._connected:
            raise MonitorError("there is no connection")
        return self

    async def powerdown(self) -> None:
        await self._qmp("button")
        if [step for step, _ in self.steps].count("button") >= self._hears:
            self._going_down.set()

    async def quit(self) -> None:
        await self._qmp("quit")

    async def _qmp(self, step: str) -> None:
        await trio.lowlevel.checkpoint()
        if not self._answers:
            raise MonitorError("it is gone")
        self._note(step)

    async def terminate(self) -> None:
        self._note("SIGTERM")

    async def kill(self) -> None:
        self._note("SIGKILL")

    async def press(self) -> None:
        await self.monitor().powerdown()

    async def going_down(self) -> None:
        await self._going_down.wait()

    async def end(self, request: EndRequest, *, after_s: float = 200) -> list[tuple[str, float]]:
        """The steps taken in so many seconds."""
        with trio.move_on_after(after_s):
            qemu, link = cast("Qemu", self), cast("Link", self)
            await end(request, qemu, link, GRACE, self.press, self.going_down)
        return self.steps


def asked(mode: EndMode) -> EndRequest:
    request = EndRequest()
    request.ask(mode, "of the test")
    return request


async def test_every_step_in_its_time(autojump_clock: MockClock) -> None:
    assert await FakeVm().end(asked(EndMode.GRACEFUL)) == [
        ("button", 0),
        ("button", 25),
        ("button", 50),
        ("quit", 60),
        ("SIGTERM", 70),
        ("SIGKILL", 75),
    ]


@pytest.mark.parametrize("presses", [1, 2, 3])
async def test_button_is_not_pressed_after_the_guest_heard(
    autojump_clock: MockClock, presses: int
) -> None:
    steps = await FakeVm(hears=presses).end(asked(EndMode.GRACEFUL))
    assert [step for step, _ in steps].count("button") == presses


async def test_force_begins_at_quit(autojump_clock: MockClock) -> None:
    assert await FakeVm().end(asked(EndMode.FORCE)) == [
        ("quit", 0),
        ("SIGTERM", 10),
        ("SIGKILL", 15),
    ]


async def test_force_hurries_an_end_that_was_begun(autojump_clock: MockClock) -> None:
    vm, request = FakeVm(), asked(EndMode.GRACEFUL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vm.end, request)
        await trio.sleep(30)
        request.ask(EndMode.FORCE, "of the hurried")
    assert vm.steps[2:] == [("quit", 30), ("SIGTERM", 40), ("SIGKILL", 45)]


@pytest.mark.parametrize("way", ["answers", "connected"])
@pytest.mark.parametrize("mode", list(EndMode))
async def test_without_a_monitor_signals_remain(
    autojump_clock: MockClock, mode: EndMode, way: str
) -> None:
    steps = await FakeVm(**{way: False}).end(asked(mode))
    assert [step for step, _ in steps] == ["SIGTERM", "SIGKILL"]


def test_force_stays_force_and_the_first_reason_is_the_one() -> None:
    request = EndRequest()
    request.ask(EndMode.FORCE, "first")
    request.ask(EndMode.GRACEFUL, "second")
    assert (request.mode, request.why) == (EndMode.FORCE, "first")
    assert request.any.is_set()
    assert request.force.is_set()


def test_graceful_is_not_yet_force() -> None:
    request = asked(EndMode.GRACEFUL)
    assert request.any.is_set()
    assert not request.force.is_set()
