"""The steps by which a VM is ended, and the graces between them, without a process or a wait."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
import pytest
import trio

from supervisor.config import Config, QemuConfig, ShutdownConfig
from supervisor.config.settings import Seconds
from supervisor.errors import MonitorError
from supervisor.qemu.host import Clock
from supervisor.state.record import EndCause, EndMode, Record, RunOptions
from supervisor.state.status import Status, VmState
from supervisor.vm.decisions import Step, shutdown_steps
from supervisor.vm.shutdown import shut_down_when_asked
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from trio.testing import MockClock

    from supervisor.state.journal import Journal
    from supervisor.vm.session import Session

CONFIG = Config(
    qemu=QemuConfig(tmp=Path("tmp")),
    shutdown=ShutdownConfig(
        powerdown_grace_s=Seconds(60.0),
        powerdown_interval_s=Seconds(25.0),
        quit_grace_s=Seconds(10.0),
        term_grace_s=Seconds(5.0),
    ),
)
RUNNING = Status(VmState.RUNNING, "running")
GOING_DOWN = Status(VmState.SHUTDOWN, "guest-shutdown")


class NoDisk:
    """A journal that keeps nothing."""

    async def commit(
        self, record: Record, *_: object, required: bool = False, before: object = None
    ) -> Record:
        await trio.lowlevel.checkpoint()
        return record


def running_vm(status: Status = RUNNING) -> Vm:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    record = Record(
        id="7f0c5f3e-0000-4000-8000-000000000001",
        created_at=at,
        options=RunOptions(),
        memory_bytes=1,
        vcpus=1,
        status=status,
    )
    return Vm(record, CONFIG, cast("Journal", NoDisk()), Clock(), None)


class FakeQemu:
    """Stands in for session, process, connection and monitor alike.

    It notes each step and when it was taken.

    :param hears: the press of the button that the guest reacts to
    :param answers: whether QMP does
    :param connected: whether there is a connection to QEMU
    """

    pid = 1

    def __init__(
        self,
        vm: Vm | None = None,
        *,
        hears: float = math.inf,
        answers: bool = True,
        connected: bool = True,
    ) -> None:
        self.steps: list[tuple[str, float]] = []
        self.vm = vm or running_vm()
        self.qemu = self.connection = self
        self.tried = trio.Event()
        self.tried.set()
        self._born = trio.current_time()
        self._hears = hears
        self._answers = answers
        self._connected = connected

    def _note(self, step: str) -> None:
        self.steps.append((step, trio.current_time() - self._born))

    def monitor(self) -> FakeQemu:
        if not self._connected:
            raise MonitorError("there is no connection")
        return self

    async def cont(self) -> None:
        await self._qmp("cont")

    async def powerdown(self) -> None:
        await self._qmp("button")
        if [step for step, _ in self.steps].count("button") >= self._hears:
            await self.vm.set_status(GOING_DOWN)

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

    async def end(self, mode: EndMode, *, after_s: float = 200) -> list[tuple[str, float]]:
        """The steps taken in so many seconds."""
        request_end(self.vm, mode)
        return await self.see(after_s=after_s)

    async def see(self, *, after_s: float = 200) -> list[tuple[str, float]]:
        with trio.move_on_after(after_s):
            await shut_down_when_asked(self.vm, cast("Session", self))
        return self.steps


def request_end(vm: Vm, mode: EndMode) -> None:
    vm.request_end(mode, EndCause.API, "it was asked for")


async def test_every_step_in_its_time(autojump_clock: MockClock) -> None:
    assert await FakeQemu().end(EndMode.GRACEFUL) == [
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
    steps = await FakeQemu(hears=presses).end(EndMode.GRACEFUL)
    assert [step for step, _ in steps].count("button") == presses


async def test_force_begins_at_quit(autojump_clock: MockClock) -> None:
    assert await FakeQemu().end(EndMode.FORCE) == [
        ("quit", 0),
        ("SIGTERM", 10),
        ("SIGKILL", 15),
    ]


async def test_force_hurries_an_end_that_was_begun(autojump_clock: MockClock) -> None:
    qemu = FakeQemu()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(qemu.end, EndMode.GRACEFUL)
        await trio.sleep(30)
        request_end(qemu.vm, EndMode.FORCE)
    assert qemu.steps[2:] == [("quit", 30), ("SIGTERM", 40), ("SIGKILL", 45)]


async def test_guest_that_goes_down_is_quit_without_being_asked(
    autojump_clock: MockClock,
) -> None:
    qemu = FakeQemu(running_vm(GOING_DOWN))
    assert await qemu.see(after_s=5) == [("quit", 0)]
    assert qemu.vm.record.ending is None


async def test_paused_guest_is_let_go_for_each_press(autojump_clock: MockClock) -> None:
    qemu = FakeQemu(running_vm(Status(VmState.PAUSED, "paused")))
    steps = await qemu.end(EndMode.GRACEFUL, after_s=30)
    assert [step for step, _ in steps] == ["cont", "button", "cont", "button"]


async def test_guest_that_never_ran_is_killed(autojump_clock: MockClock) -> None:
    qemu = FakeQemu(running_vm(Status(VmState.PRELAUNCH, "prelaunch")))
    assert await qemu.end(EndMode.GRACEFUL) == [("SIGKILL", 0)]


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("mode", list(EndMode))
async def test_without_a_monitor_signals_remain(
    autojump_clock: MockClock, mode: EndMode, answers: bool
) -> None:
    steps = await FakeQemu(answers=answers, connected=not answers).end(mode)
    assert [step for step, _ in steps] == ["SIGTERM", "SIGKILL"]


async def test_force_stays_force_and_the_first_cause_is_the_one() -> None:
    vm = running_vm()
    vm.request_end(EndMode.GRACEFUL, EndCause.TTL, "first")
    assert (vm.ending, vm.hurried) == (True, False)
    vm.request_end(EndMode.FORCE, EndCause.DELETED, "second")
    vm.request_end(EndMode.GRACEFUL, EndCause.API, "third")
    assert vm.end_request is not None
    assert attrs.astuple(vm.end_request) == (EndMode.FORCE, EndCause.TTL, "first")
    assert vm.hurried


async def test_end_is_put_on_record_before_it_is_begun(autojump_clock: MockClock) -> None:
    qemu = FakeQemu()
    await qemu.end(EndMode.GRACEFUL)
    assert (qemu.vm.record.ending, qemu.vm.record.end_cause) == (EndMode.GRACEFUL, EndCause.API)


@pytest.mark.parametrize(
    ("state", "hurried", "first"),
    [
        (VmState.PRELAUNCH, False, Step.SIGKILL),
        (VmState.PRELAUNCH, True, Step.SIGKILL),
        (VmState.RUNNING, False, Step.POWERDOWN),
        (VmState.PAUSED, False, Step.POWERDOWN),
        (VmState.RUNNING, True, Step.QUIT),
        (VmState.SHUTDOWN, True, Step.QUIT),
    ],
)
def test_first_step(state: VmState, hurried: bool, first: Step) -> None:
    steps = shutdown_steps(state, hurried=hurried)
    assert steps == tuple(Step)[list(Step).index(first) :]
