"""The ways to an agent that answers, one round of each, and what came of all rounds."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import grpc

from scripts.benchmarks import bare_qemu, guest, supervised
from supervisor.errors import MonitorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scripts.benchmarks.client import Connection
    from scripts.benchmarks.host import Supervisor
    from scripts.benchmarks.libvirtd import Libvirt

BARE, LIBVIRT, COLD = "bare QEMU", "libvirt", "POST /run, cold"
TEMPLATE, POOL = "POST /run, from a template", "POST /run, from the pool"
HELD = "POST /run, from a held clone"
BURST, LIVE = "many at once", "GET status?live=1"

#: What may go wrong with one way and is no reason not to measure the others.
_FAILURES = (guest.Unmeasured, MonitorError, grpc.RpcError, OSError, subprocess.SubprocessError)

#: For so long QMP is asked in each round, by one caller and by so many at once.
_ASK_S, CALLERS = 1.0, 4
#: What has just been made ready is still busy with that, and would compete with the run for it.
_REST_S = 0.5


def at_once(way: str) -> str:
    """What `Samples.rates` calls the questions of `CALLERS` callers."""
    return f"{way}, {CALLERS} callers"


@attrs.define
class Samples:
    """What was measured so far.

    :param phases: by way, of each round: when each step was done, in seconds; the last is the
        answer
    :param rates: by way, of each round: questions a second
    :param power_offs: by way, of each round: seconds
    :param bursts: seconds to the last of many answers
    :param crowds: of each of those, how long each of the many took
    :param idle: what idle clones take
    :param problems: by what was to be measured: why it was not, or no further
    :param pci: by way: the guest's devices
    :param accelerators: by which VMs of the supervisor were run
    """

    phases: dict[str, list[dict[str, float]]] = attrs.field(factory=dict)
    rates: dict[str, list[float]] = attrs.field(factory=dict)
    power_offs: dict[str, list[float]] = attrs.field(factory=dict)
    bursts: list[float] = attrs.field(factory=list)
    crowds: list[list[float]] = attrs.field(factory=list)
    idle: dict[str, Any] | None = None
    problems: dict[str, str] = attrs.field(factory=dict)
    pci: dict[str, list[str]] = attrs.field(factory=dict)
    built_in_s: float | None = None
    libvirt: str | None = None
    accelerators: set[str] = attrs.field(factory=set)

    def seconds(self, way: str) -> list[float]:
        return [one["answer"] for one in self.phases.get(way, ())]

    def note(self, way: str, phases: dict[str, float]) -> None:
        self.phases.setdefault(way, []).append(phases)

    def note_run(self, way: str, done: supervised.Run) -> None:
        self.accelerators.add(guest.accelerator(done.vm["argv"]))
        self.note(way, done.phases)

    def ask(self, way: str, rate: Callable[[float, int], float]) -> None:
        """Note how many questions a second *rate* measures, for so long and of so many callers."""
        for name, callers in ((way, 1), (at_once(way), CALLERS)):
            self.rates.setdefault(name, []).append(rate(_ASK_S, callers))

    @contextmanager
    def attempt(self, what: str, say: Callable[[str], None]) -> Iterator[None]:
        """What cannot be measured is said and noted, and the rest goes on."""
        try:
            yield
        except _FAILURES as error:
            self.problems.setdefault(what, str(error))
            say(f"{what}: not measured: {error}")


class Rounds:
    """One round of each way, on the same host ports, one after another.

    :param supervisor: which boots from cold where it is told to
    """

    def __init__(self, samples: Samples, supervisor: Supervisor, directory: Path) -> None:
        self._samples = samples
        self._supervisor = supervisor
        self._directory = directory
        #: The last VM that was booted from cold.
        self._vm: dict[str, Any] | None = None

    def cold(self, connection: Connection) -> None:
        """Through the supervisor; then its live status, and a graceful shutdown."""
        done = supervised.run(connection, template="off")
        self._vm = vm = done.vm
        self._samples.note_run(COLD, done)
        rate = supervised.live_status_rate(self._supervisor.port, vm["id"], _ASK_S)
        self._samples.rates.setdefault(LIVE, []).append(rate)
        took = supervised.power_off(connection, vm)
        self._samples.power_offs.setdefault(COLD, []).append(took)
        supervised.remove(self._supervisor.port, [vm["id"]])

    def bare(self) -> None:
        """QEMU alone; then QMP, and the power button."""
        vm = self._like()
        argv = guest.known_to_us(vm["argv"])
        with bare_qemu.started(argv, Path(vm["directory"]), self._directory / "bare") as qemu:
            answered = guest.wait_for_answer(vm["agent"]["address"])
            moments = {
                "greeting": qemu.greeted_at,
                "agent": answered.ready_at,
                "answer": answered.at,
            }
            self._samples.note(BARE, _since(qemu.executed_at, moments))
            if BARE not in self._samples.pci:
                self._samples.pci[BARE] = qemu.pci_devices()
            self._samples.ask(BARE, qemu.query_status_rate)
            self._samples.power_offs.setdefault(BARE, []).append(qemu.power_off())

    def libvirt(self, libvirt: Libvirt) -> None:
        """A domain, from its definition; then QMP."""
        vm = self._like()
        begun = libvirt.start(guest.known_to_us(vm["argv"]), vm["forwards"])
        try:
            answered = guest.wait_for_answer(vm["agent"]["address"])
            moments = {
                "definition": begun["defined_at"],
                "creation": begun["created_at"],
                "agent": answered.ready_at,
                "answer": answered.at,
            }
            self._samples.note(LIBVIRT, _since(begun["begun_at"], moments))
            if LIBVIRT not in self._samples.pci:
                self._samples.pci[LIBVIRT] = libvirt.pci_devices()
            self._samples.ask(LIBVIRT, libvirt.query_status_rate)
        finally:
            libvirt.end()

    def template(self, connection: Connection) -> None:
        """From a template; a fallback to a cold boot would be this run's failure."""
        done = supervised.run(connection, template="require")
        self._samples.note_run(TEMPLATE, done)
        supervised.remove(self._supervisor.port, [done.vm["id"]])

    def _like(self) -> dict[str, Any]:
        """A VM whose command line others can have.

        :raises Unmeasured: if the supervisor has run none
        """
        if self._vm is None:
            raise guest.Unmeasured("there is no command line: the supervisor has booted no VM")
        return self._vm


def _since(begun_at: float, moments: dict[str, float]) -> dict[str, float]:
    return {name: at - begun_at for name, at in moments.items()}


# --- what only a supervisor does ------------------------------------------------------------


def from_pool(samples: Samples, supervisor: Supervisor, connection: Connection, size: int) -> None:
    """One round: a run that is served by the pool, which was full.

    :raises Unmeasured: if it was not
    """
    supervised.wait_for_metric(connection, 'qmp_supervisor_pool{state="ready"}', size)
    time.sleep(_REST_S)
    done = supervised.run(connection)
    supervised.remove(supervisor.port, [done.vm["id"]])
    if "pool" not in done.vm["phases_s"]:
        raise guest.Unmeasured("the pool was ready and did not serve a run")
    samples.note_run(POOL, done)


def from_held(samples: Samples, supervisor: Supervisor, connection: Connection, size: int) -> None:
    """One round: a run that takes a held clone, of which there were as many as there can be.

    :raises Unmeasured: if it did not
    """
    supervised.wait_for_metric(connection, "qmp_supervisor_held_clones", size)
    time.sleep(_REST_S)
    done = supervised.run(connection)
    supervised.remove(supervisor.port, [done.vm["id"]])
    if "held" not in done.vm["phases_s"]:
        raise guest.Unmeasured("a clone was held, and the run did not take it")
    samples.note_run(HELD, done)


def many_at_once(
    samples: Samples, supervisor: Supervisor, count: int, idle_s: tuple[float, float] | None
) -> None:
    """One round: so many runs from a template at the same moment.

    :param idle_s: look at the clones when they have been idle for the first of these seconds,
        and at their CPU for the second
    """
    runs = supervised.burst(supervisor.port, count, template="require")
    samples.bursts.append(supervised.together_s(runs))
    samples.crowds.append(sorted(one.seconds for one in runs))
    if idle_s:
        samples.idle = supervised.idle([one.vm for one in runs], *idle_s)
    supervised.remove(supervisor.port, [one.vm["id"] for one in runs])
