"""What Prometheus may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from supervisor.runstate import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Seconds. A restored VM answers in a tenth, an emulated cloud image in minutes.
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


@attrs.frozen
class Gauges:
    """What can be counted at any moment.

    :param waiting: runs in the queue for room
    :param lost: VMs whose QEMU does not answer
    """

    by_state: Mapping[str, int]
    waiting: int
    lost: int


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
        for outcome in ("answered", "failed", "abandoned"):
            self._runs.labels(outcome)

    def count_run(self, outcome: str, seconds: float) -> None:
        """One run that is over: ``answered``, ``failed``, or ``abandoned`` by its caller."""
        self._runs.labels(outcome).inc()
        if outcome == "answered":
            self._seconds.observe(seconds)


class _Now(Collector):
    def __init__(self, gauges: Callable[[], Gauges]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        now = self._gauges()
        family = GaugeMetricFamily(
            "qmp_supervisor_vms", "VMs by state, those on record that have ended among them.",
            labels=["state"],
        )  # fmt: skip
        for state in VmState:
            family.add_metric([state], now.by_state.get(state, 0))
        yield family
        yield GaugeMetricFamily(
            "qmp_supervisor_runs_waiting", "Runs that wait for room.", now.waiting
        )
        yield GaugeMetricFamily(
            "qmp_supervisor_monitors_lost", "VMs whose QEMU does not answer.", now.lost
        )
