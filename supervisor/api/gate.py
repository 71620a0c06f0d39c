"""What every request passes, on either wire: its trace, its caller's limits, the audit log."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from prometheus_client import Counter

from supervisor import spans
from supervisor.api.audit import Audit, Outcome
from supervisor.api.budget import Budget
from supervisor.api.callers import who
from supervisor.api.rates import AtOnce, Rates
from supervisor.api.trace import Trace, tracing
from supervisor.errors import HostError, TooOften

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.config import CallersConfig

#: Of one caller: refusals in the audit log at first, and later in each second.
_REFUSALS, _REFUSALS_PER_S = 100, 0.1


class Gate:
    """:param tmp: the directory of the audit log, if no setting names its file"""

    def __init__(self, limits: CallersConfig, tmp: Path) -> None:
        self.limits = limits
        self.budget = Budget(limits.body_bytes, limits.body_wait_s)
        #: Readers of events.
        self.readers = AtOnce(limits.readers, "readers of events", "MANAGER_CALLER_READERS")
        self.requests = Counter(
            "qmp_supervisor_requests",
            "Requests that were answered or refused, or whose caller left.",
            ["wire", "status"],
            registry=None,
        )
        self._running = AtOnce(limits.requests, "requests", "MANAGER_CALLER_REQUESTS")
        self._rates = Rates(limits.rate, 2 * limits.rate, trio.current_time)
        self._audit = Audit(
            limits.audit_log or tmp / "audit.jsonl",
            limits.audit_bytes,
            Rates(_REFUSALS_PER_S, _REFUSALS, trio.current_time),
        )

    def connections(self) -> AtOnce:
        """Of one address at a time, on one wire."""
        return AtOnce(self.limits.connections, "connections", "MANAGER_HTTP_CONNECTIONS")

    @contextmanager
    def open(self) -> Iterator[Gate]:
        """:raises HostError: if the audit log cannot be opened"""
        try:
            self._audit.open()
        except OSError as error:
            raise HostError(
                f"the audit log {self._audit.file} cannot be opened: {error.strerror}",
                advice="see MANAGER_AUDIT_LOG",
            ) from error
        try:
            yield self
        finally:
            self._audit.close()

    @contextmanager
    def watching(self, trace: Trace, outcome: Outcome) -> Iterator[None]:
        """Serve a request that has this trace; its outcome is audited."""
        with (
            spans.serving(trace.parent) as span,
            tracing(trace),
            self._audit.watching(trace, outcome),
        ):
            try:
                yield
            finally:
                self.requests.labels(trace.wire, outcome.status or "caller-left").inc()
                name, known = outcome.what.removeprefix("/"), _attributes(trace, outcome)
                span.end(name, known, failed=outcome.failed)

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Serve the present request within its caller's limits.

        :raises TooOften:
        """
        caller = who()
        if not self._rates.take(caller):
            raise TooOften(
                f"a caller has {self.limits.rate} requests a second on average",
                advice="ask less often, or raise MANAGER_CALLER_RATE",
                retry_after_s=self._rates.wait_s(caller),
            )
        with self._running.one_more(caller):
            yield


def _attributes(trace: Trace, outcome: Outcome) -> dict[str, str | int]:
    """Of its span: names of the semantic conventions, and the id that is in log and audit."""
    known: dict[str, str | int] = {"client.address": trace.peer, "request.id": trace.id}
    if trace.vm_id:
        known["vm.id"] = trace.vm_id
    if trace.wire == "grpc":
        known |= {"rpc.system.name": "grpc", "rpc.method": outcome.what.removeprefix("/")}
        status = "rpc.response.status_code"
    else:
        method, _, route = outcome.what.partition(" ")
        known |= {"http.request.method": method, "http.route": route}
        known |= {"url.path": trace.path, "url.scheme": trace.scheme}
        status = "http.response.status_code"
    if outcome.status is not None:
        known[status] = outcome.status
    return known
