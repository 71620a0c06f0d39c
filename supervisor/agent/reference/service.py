"""What the agent does, and its gRPC methods."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

from .algorithm import Limits
from .attestation import REPORT_DATA_BYTES, evidence
from .call import Method
from .computation import SPECIMEN, reply_to
from .process import NoIsolation
from .refusal import Refusal, StatusCode
from .runner import Runner
from .store import ALGORITHM, DATASET
from .wire import MAX_PAYLOAD_BYTES, encode_message, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .algorithm import OnEnd
    from .call import Behaviour
    from .process import Isolation
    from .store import Arriving

Value = TypeVar("Value")

SERVICE = "agent.AgentService"

# grpc.health.v1.HealthCheckResponse with its status.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"

# Calls of these may take minutes.
SLOW = ("Result", "Attestation")


class Agent:
    """What the guest holds: a computation, an algorithm, a dataset; the last one sent counts.

    Methods may be called from many threads at once. All but metrics and release raise
    :class:`Refusal`. Close it at the end.

    :ivar instance_id: of this start of the agent; copies of one guest have the same
    """

    def __init__(
        self,
        algorithm_timeout_s: float,
        algorithm_memory_mib: int = 0,
        isolation: Isolation | None = None,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        """*settle* returns when the devices that algorithms and reports may need are there.

        :param algorithm_memory_mib: 0 for as much as the isolation gives
        """
        self._algorithm_timeout_s = algorithm_timeout_s
        self._algorithm_memory_mib = algorithm_memory_mib
        self._settle = settle
        self._lock = threading.Lock()
        self.instance_id = os.urandom(8).hex()
        self.runner = Runner(isolation or NoIsolation(), settle)
        self._calls: dict[tuple[str, str], int] = {}
        self._under_way = 0
        self._why_held: Callable[[], str] | None = None
        self.computation = b""
        self._bound: Callable[[bytes], bytes] | None = None
        self._methods: dict[str, Callable[[bytes, OnEnd], bytes]] = {
            "Run": self._run,
            "Algo": self._algo,
            "Data": self._data,
            "Result": self._result,
            "Attestation": self._attestation,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self._methods)

    def call(self, method: str, payload: bytes, on_end: OnEnd) -> bytes:
        """The answer of *method* to *payload*."""
        return self.counted(method, lambda: self._methods[method](payload, on_end))

    def counted(self, method: str, act: Callable[[], Value]) -> Value:
        """What *act* returns, unless the agent is held. Counts calls by method and code."""
        code = StatusCode.INTERNAL
        with self._lock:
            self._under_way += 1
            why_held = self._why_held
        try:
            if why_held and (why := why_held()):
                raise Refusal(StatusCode.FAILED_PRECONDITION, why)
            answer = act()
            code = StatusCode.OK
        except Refusal as refusal:
            code = refusal.code
            raise
        finally:
            with self._lock:
                self._under_way -= 1
                key = (method, code.name)
                self._calls[key] = self._calls.get(key, 0) + 1
        return answer

    def begin_upload(self, kind: str, size: int) -> Arriving:
        """As `Store.begin`, unless the agent is held."""
        with self._lock:
            why_held = self._why_held
            if not why_held:
                return self.runner.store.begin(kind, size)
        if why := why_held():
            raise Refusal(StatusCode.FAILED_PRECONDITION, why)
        return self.begin_upload(kind, size)

    def limits(self, result_bytes: int, time_s: float = 0, memory_mib: int = 0) -> Limits:
        """The limits of a run; 0 stands for the default."""
        return Limits(
            time_s or self._algorithm_timeout_s,
            memory_mib or self._algorithm_memory_mib,
            result_bytes,
            is_memory_default=not memory_mib,
        )

    def bind_reports_to(self, bound: Callable[[bytes], bytes]) -> None:
        """From now on reports say what *bound* makes of their caller's nonce, and nothing else.

        If the agent had anything signed, one who sits between it and a caller could have his own
        key signed.
        """
        self._bound = bound

    def close(self) -> None:
        """Forgets all that it was sent. No call may be under way."""
        self.runner.store.close()

    def hold(self, why: Callable[[], str]) -> None:
        """From now on refuses every call for which *why* gives a reason. It may call `release`.

        Refusal: the agent holds, or is about to hold, what a caller sent: no other may get that.
        """
        with self._lock:
            if self._under_way or self.computation or not self.runner.store.is_empty:
                used = "this agent is in use already"
                raise Refusal(StatusCode.FAILED_PRECONDITION, used)
            self._why_held = why

    @property
    def is_held(self) -> bool:
        return self._why_held is not None

    def release(self) -> None:
        """Answers calls again."""
        with self._lock:
            self._why_held = None

    def metrics(self) -> str:
        """The counters as Prometheus text."""
        with self._lock:
            calls = sorted(self._calls.items())
        lines = [f'agent_calls_total{{method="{m}",code="{c}"}} {count}' for (m, c), count in calls]
        head = "# HELP agent_calls_total Calls answered.\n# TYPE agent_calls_total counter\n"
        return head + "".join(f"{line}\n" for line in lines)

    def _run(self, computation: bytes, _: OnEnd) -> bytes:
        try:
            self.computation = reply_to(computation)
        except ValueError as error:
            raise Refusal(StatusCode.INVALID_ARGUMENT, f"no computation: {error}") from error
        return self.computation

    def _algo(self, algorithm: bytes, _: OnEnd) -> bytes:
        return self.runner.store.put(ALGORITHM, algorithm).id.encode()

    def _data(self, dataset: bytes, _: OnEnd) -> bytes:
        return self.runner.store.put(DATASET, dataset).id.encode()

    def _result(self, _: bytes, on_end: OnEnd) -> bytes:
        outcome, result = self.runner.run(self.limits(MAX_PAYLOAD_BYTES), on_end)
        with result:
            if outcome.error:
                raise outcome.refusal()
            return result.read()

    def _attestation(self, report_data: bytes, _: OnEnd) -> bytes:
        if len(report_data) > REPORT_DATA_BYTES:
            why = f"{len(report_data)} bytes of report data, at most {REPORT_DATA_BYTES} fit"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why)
        self._settle()
        nonce = report_data.ljust(REPORT_DATA_BYTES, b"\0")
        return evidence(self._bound(nonce) if self._bound else nonce)


def methods(agent: Agent) -> dict[str, Method]:
    """What *agent* serves over gRPC: methods by their paths."""
    served = {
        f"/{SERVICE}/{name}": Method(_method(agent, name), slow=name in SLOW)
        for name in agent.methods
    }
    served["/grpc.health.v1.Health/Check"] = Method(_health(agent), public=True)
    return served


def _method(agent: Agent, method: str) -> Behaviour:
    def answer(message: bytes, on_end: OnEnd) -> bytes:
        return encode_message(agent.call(method, _payload(message), on_end))

    return answer


def _health(agent: Agent) -> Behaviour:
    """Check of gRPC's health checking protocol. Watch is left out: it is a stream."""

    def answer(message: bytes, _: OnEnd) -> bytes:
        service = _payload(message)
        if service not in (b"", SERVICE.encode()):
            raise Refusal(StatusCode.NOT_FOUND, "there is no such service")
        if agent.is_held:
            return NOT_SERVING
        reply_to(SPECIMEN)  # as Run does: an emulated guest is slowest at its first time
        return SERVING

    return answer


def _payload(message: bytes) -> bytes:
    return fields_of(message).payloads.get(1, b"")
