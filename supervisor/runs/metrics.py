"""What Prometheus may ask."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor.runs.admission import Refusal
from supervisor.state.status import VmState
from supervisor.templates.registry import TemplateState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Seconds. A restored VM answers in a tenth, an emulated cloud image in minutes.
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


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
    :param pool: its VMs, by whether they are ``ready`` or ``coming``
    :param clones: VMs started from a template so far, by outcome
    """

    by_state: Mapping[str, int]
    waiting: int
    refused: Mapping[Refusal, int]
    lost: int
    templates: Mapping[str, int]
    pool: Mapping[str, int]
    clones: Mapping[str, int]


class Metrics:
    """One supervisor's registry.

    :param gauges: asked at each scrape
    """

    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self.registry = CollectorRegistry()
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
        for outcome in Outcome:
            self._runs.labels(outcome)

    def count_run(self, outcome: Outcome, seconds: float) -> None:
        """Count a run that is over."""
        self._runs.labels(outcome).inc()
        if outcome is Outcome.ANSWERED:
            self._seconds.observe(seconds)


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
        yield GaugeMetricFamily(
            "qmp_supervisor_runs_waiting", "Runs that wait for room.", now.waiting
        )
        yield GaugeMetricFamily(
            "qmp_supervisor_monitors_lost", "VMs whose QEMU does not answer.", now.lost
        )


def _by(
    label: str, name: str, help: str, values: Iterable[str], counts: Mapping[str, int]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=[label])
    for value in values:
        family.add_metric([value], counts.get(value, 0))
    return family
