"""What Prometheus may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from supervisor.runstate import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Seconds. A restored VM answers in a tenth, an emulated cloud image in minutes.
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    """One supervisor's registry.

    :param count_by_state: how many VMs are in each state, asked at each scrape
    """

    def __init__(self, count_by_state: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_VmsByState(count_by_state))
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


class _VmsByState(Collector):
    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("qmp_supervisor_vms", "VMs by state.", labels=["state"])
        counted = self._count()
        for state in VmState:
            family.add_metric([state], counted.get(state, 0))
        yield family
