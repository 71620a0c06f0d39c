"""What Prometheus may ask a member of a fleet."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Seconds. A host that has room takes a run in hundredths; one may wait for room for an hour.
_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 3600)


class Where(enum.StrEnum):
    """What became of an attempt to have a run done."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    #: Its host has given it back.
    HANDED_BACK = "handed-back"
    #: The connection to its host broke.
    BROKEN = "broken"
    #: Its host is lost, and the run with it.
    LOST = "lost"


class PlacedRuns(Collector):
    """Runs that were posted to this host."""

    def __init__(self) -> None:
        self._attempts = Counter(
            "qmp_supervisor_fleet_runs",
            "Runs posted to this host, by what became of each attempt to have them done.",
            ["where"],
            registry=None,
        )
        self._seconds = Histogram(
            "qmp_supervisor_fleet_place_seconds",
            "From the post of a run, or its return to the queue, until a host has it.",
            buckets=_BUCKETS,
            registry=None,
        )
        for where in Where:
            self._attempts.labels(where)

    def count(self, where: Where) -> None:
        self._attempts.labels(where).inc()

    def placed(self, seconds: float) -> None:
        """:param seconds: that it waited for a host"""
        self._seconds.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        yield from self._attempts.collect()
        yield from self._seconds.collect()


class Now(Collector):
    """What can be counted at any moment.

    :param gauges: asked at each scrape: values by the ends of the metrics' names
    """

    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        values = self._gauges()
        for name, meaning in _MEANINGS.items():
            yield GaugeMetricFamily(f"qmp_supervisor_fleet_{name}", meaning, values[name])


_MEANINGS = {
    "connected": "Whether a server of NATS is reached.",
    "lease": "Whether this host holds its lease, without which it sends no computation.",
    "hosts": "Members that this host knows of, itself among them.",
    "draining": "Whether this host takes no runs.",
    "waiting": "Runs posted to this host that no host has yet.",
}
