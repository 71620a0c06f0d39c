"""What Prometheus may ask."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor.runs.admission import Refusal
from supervisor.state.record import EventKind
from supervisor.state.status import VmState
from supervisor.templates.registry import TemplateState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from supervisor.qemu.process import Usage

#: Seconds. A restored VM answers in a tenth, an emulated cloud image in minutes.
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
#: Of a step, the shortest of which take a millisecond.
_STEP_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 20, 60, 300)


class Outcome(enum.StrEnum):
    """What a run that was admitted has come to."""

    ANSWERED = "answered"
    FAILED = "failed"
    #: Its caller went away.
    ABANDONED = "abandoned"


@attrs.frozen
class Gauges:
    """What can be counted at any moment.

    :param waiting: runs in the queue for room
    :param refused: runs that were turned away so far, by reason
    :param lost: VMs whose QEMU does not answer
    :param templates: by state
    :param held: clones that are held for runs to come
    :param pool: its VMs, by whether they are ``ready`` or ``coming``
    :param clones: VMs started from a template so far, by outcome
    :param events: so far, by kind
    :param usages: of running VMs, by id
    :param disk: of the file system that ``tmp/`` is on, and of what the supervisor keeps there
    """

    by_state: Mapping[str, int]
    held: int
    waiting: int
    refused: Mapping[Refusal, int]
    lost: int
    templates: Mapping[str, int]
    pool: Mapping[str, int]
    clones: Mapping[str, int]
    events: Mapping[str, int]
    usages: Mapping[str, Usage]
    disk: Disk


@attrs.frozen
class Disk:
    """Bytes.

    :param size, free: of the file system that ``tmp/`` is on; what users other than root have free
    :param event_logs: of the files of events
    :param results: of the results of algorithms
    """

    size: int = 0
    free: int = 0
    event_logs: int = 0
    results: int = 0


class Metrics:
    """One supervisor's registry.

    :param gauges: asked at each scrape
    :param build: what runs here: names and versions
    """

    def __init__(self, gauges: Callable[[], Gauges], build: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        about = "What runs here: this version, and where QEMU is."
        Info("qmp_supervisor_build", about, registry=self.registry).info(dict(build))
        ProcessCollector(registry=self.registry)
        self.registry.register(_Now(gauges))
        self._runs = Counter(
            "qmp_supervisor_runs", "Computations by outcome.", ["outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "qmp_supervisor_run_seconds",
            "From a computation's acceptance to the agent's answer.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._steps = Histogram(
            "qmp_supervisor_step_seconds",
            "Each step of runs that were answered.",
            ["step", "start"],
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        for outcome in Outcome:
            self._runs.labels(outcome)

    def count_run(
        self, outcome: Outcome, seconds: float, start: str, steps: Iterable[tuple[str, float]]
    ) -> None:
        """Count a run that is over.

        :param start: ``cold``, ``template``, ``held`` or ``pool``
        :param steps: of its start, with the seconds that each took
        """
        self._runs.labels(outcome).inc()
        if outcome is Outcome.ANSWERED:
            self._seconds.observe(seconds)
            for step, took_s in steps:
                self._steps.labels(step, start).observe(took_s)


class _Now(Collector):
    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        now = self._gauges()
        help_ = "VMs by state, those on record that have ended among them."
        yield _by("state", "qmp_supervisor_vms", help_, VmState, now.by_state)
        help_ = "Templates by state."
        yield _by("state", "qmp_supervisor_templates", help_, TemplateState, now.templates)
        help_ = "VMs that are kept ready for runs to come."
        yield _by("state", "qmp_supervisor_pool", help_, ("ready", "coming"), now.pool)
        yield GaugeMetricFamily(
            "qmp_supervisor_held_clones", "Clones that are held for runs to come.", now.held
        )
        refused = CounterMetricFamily(
            "qmp_supervisor_runs_refused", "Runs that found no room.", labels=["reason"]
        )
        for reason in Refusal:
            refused.add_metric([reason], now.refused.get(reason, 0))
        yield refused
        clones = CounterMetricFamily(
            "qmp_supervisor_clones",
            "VMs started from a template: those that came up, and those that did not.",
            labels=["outcome"],
        )
        for outcome, count in now.clones.items():
            clones.add_metric([outcome], count)
        yield clones
        events = CounterMetricFamily(
            "qmp_supervisor_events", "Events since the start, by kind.", labels=["event"]
        )
        for kind in EventKind:
            events.add_metric([kind], now.events.get(kind, 0))
        yield events
        yield GaugeMetricFamily(
            "qmp_supervisor_runs_waiting", "Runs that wait for room.", now.waiting
        )
        yield from _of_disk(now.disk)
        yield from _of_vms(now.usages)
        yield GaugeMetricFamily(
            "qmp_supervisor_monitors_lost", "VMs whose QEMU does not answer.", now.lost
        )


def _of_disk(disk: Disk) -> Iterable[Metric]:
    for name, about, size in (
        ("tmp_size", "Size of the file system of tmp/.", disk.size),
        ("tmp_free", "What is free in the file system of tmp/.", disk.free),
        ("event_log", "Size of all files of events.", disk.event_logs),
        ("results", "Size of all results that are kept.", disk.results),
    ):
        yield GaugeMetricFamily(f"qmp_supervisor_{name}_bytes", about, size)


def _of_vms(usages: Mapping[str, Usage]) -> Iterable[Metric]:
    """Of running VMs alone: a series for each VM that ever was would be without end."""
    cpu = CounterMetricFamily(
        "qmp_supervisor_vm_cpu_seconds", "CPU time of a running VM's QEMU.", labels=["vm"]
    )
    memory = GaugeMetricFamily(
        "qmp_supervisor_vm_memory_bytes",
        "Resident memory of a running VM's QEMU, with what it shares.",
        labels=["vm"],
    )
    read = CounterMetricFamily(
        "qmp_supervisor_vm_disk_read_bytes", "What its QEMU has read from disks.", labels=["vm"]
    )
    written = CounterMetricFamily(
        "qmp_supervisor_vm_disk_written_bytes", "What its QEMU has written to disks.", labels=["vm"]
    )
    for vm_id, usage in usages.items():
        cpu.add_metric([vm_id], usage.cpu_s)
        memory.add_metric([vm_id], usage.memory_bytes)
        if usage.disk_read_bytes is not None:
            read.add_metric([vm_id], usage.disk_read_bytes)
        if usage.disk_written_bytes is not None:
            written.add_metric([vm_id], usage.disk_written_bytes)
    return cpu, memory, read, written


def _by(
    label: str, name: str, help: str, values: Iterable[str], counts: Mapping[str, int]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=[label])
    for value in values:
        family.add_metric([value], counts.get(value, 0))
    return family
