"""What the agent does, and its gRPC server."""

from __future__ import annotations

import hashlib
import threading
from concurrent import futures
from typing import TYPE_CHECKING

import grpc

from .algorithm import MAX_ARGUMENT_BYTES, run_algorithm
from .attestation import REPORT_DATA_BYTES, snp_report
from .computation import SPECIMEN, remarshal
from .refusal import Refusal
from .wire import MAX_MESSAGE_BYTES, decode_message, encode_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .algorithm import OnEnd
    from .clone import Clones

    # A message and its call's context to a message. Raises Refusal.
    Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]

SERVICE = "agent.AgentService"

# grpc.health.v1.HealthCheckResponse with its status.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A reply may be longer than its computation: Go's way of writing JSON escapes more.
    ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    # The way is short, and each of these costs an emulated guest that has just been started from a
    # template some milliseconds: measuring the network, compressing replies, statistics.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),  # what measuring would come to
    ("grpc.per_message_compression", 0),
    ("grpc.enable_channelz", 0),
)


class Agent:
    """What the guest holds: a computation, an algorithm, a dataset; the last one sent counts.

    Methods may be called from many threads at once. All but metrics and release raise
    :class:`Refusal`.
    """

    def __init__(self, algorithm_timeout_s: float) -> None:
        self._algorithm_timeout_s = algorithm_timeout_s
        self._lock = threading.Lock()
        self._algorithm = b""
        self._dataset = b""
        self._calls: dict[tuple[str, str], int] = {}
        self._under_way = 0
        self._held: str | None = None
        self.computation = ""
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
        """Answers *method*, and counts how that went."""
        code = grpc.StatusCode.INTERNAL
        with self._lock:
            self._under_way += 1
            held = self._held
        try:
            if held:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, held)
            answer = self._methods[method](payload, on_end)
            code = grpc.StatusCode.OK
        except Refusal as refusal:
            code = refusal.code
            raise
        finally:
            with self._lock:
                self._under_way -= 1
                key = (method, code.name)
                self._calls[key] = self._calls.get(key, 0) + 1
        return answer

    def hold(self, why: str) -> None:
        """From now on refuses every call, for the reason *why*.

        Refusal: it holds, or is about to hold, what one caller sent and no other may get.
        """
        with self._lock:
            if self._under_way or self.computation or self._algorithm or self._dataset:
                used = "this agent is in use already"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, used)
            self._held = why

    @property
    def is_held(self) -> bool:
        return self._held is not None

    def release(self) -> None:
        """Answers calls again."""
        with self._lock:
            self._held = None

    def metrics(self) -> str:
        """The counters as Prometheus text."""
        with self._lock:
            calls = sorted(self._calls.items())
        lines = [f'agent_calls_total{{method="{m}",code="{c}"}} {count}' for (m, c), count in calls]
        head = "# HELP agent_calls_total Calls answered.\n# TYPE agent_calls_total counter\n"
        return head + "".join(f"{line}\n" for line in lines)

    def _run(self, computation: bytes, _: OnEnd) -> bytes:
        try:
            self.computation = remarshal(computation)
        except ValueError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"no computation: {error}") from error
        return self.computation.encode()

    def _algo(self, algorithm: bytes, _: OnEnd) -> bytes:
        self._algorithm = _argument("algorithm", algorithm)
        return _identity(algorithm)

    def _data(self, dataset: bytes, _: OnEnd) -> bytes:
        self._dataset = _argument("dataset", dataset)
        return _identity(dataset)

    def _result(self, _: bytes, on_end: OnEnd) -> bytes:
        for name, value in (("algorithm", self._algorithm), ("dataset", self._dataset)):
            if not value:
                why = f"there is no {name} yet"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why)
        return run_algorithm(self._algorithm, self._dataset, self._algorithm_timeout_s, on_end)

    def _attestation(self, report_data: bytes, _: OnEnd) -> bytes:
        if len(report_data) > REPORT_DATA_BYTES:
            why = f"{len(report_data)} bytes of report data, at most {REPORT_DATA_BYTES} fit"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why)
        return snp_report(report_data.ljust(REPORT_DATA_BYTES, b"\0"))


def _argument(name: str, value: bytes) -> bytes:
    """*value* if it can be a process's argument."""
    if not value:
        why = f"the {name} is empty"
    elif len(value) > MAX_ARGUMENT_BYTES:
        why = f"{len(value)} bytes of {name}, a process's argument holds {MAX_ARGUMENT_BYTES}"
    elif b"\0" in value:
        why = f"the {name} is not text: it holds a zero byte"
    else:
        return value
    raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why)


def _identity(value: bytes) -> bytes:
    """The id of an algorithm or a dataset: its SHA-256 in hex, the same in every guest."""
    return hashlib.sha256(value).hexdigest().encode()


def serve_grpc(
    agent: Agent, host: str, port: int, clones: Clones | None = None
) -> tuple[grpc.Server, int]:
    """A started server and its port. The caller stops it. RuntimeError: the port is not free.

    With *clones* it serves CloneService too.
    """
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=OPTIONS)
    services = {
        SERVICE: {name: _method(agent, name) for name in agent.methods},
        "grpc.health.v1.Health": {"Check": _health(agent)},
    }
    if clones:
        methods = {"Prepare": _bare(clones.prepare), "Renew": _bare(clones.renew)}
        services["clone.CloneService"] = methods
    for name, behaviours in services.items():
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            method: grpc.unary_unary_rpc_method_handler(_told(behaviour))
            for method, behaviour in behaviours.items()
        }
        service = grpc.method_handlers_generic_handler(name, handlers)
        server.add_generic_rpc_handlers((service,))
    bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    server.start()
    return server, bound


def _method(agent: Agent, method: str) -> Behaviour:
    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        return encode_message(agent.call(method, _payload(message), context.add_callback))

    return answer


def _health(agent: Agent) -> Behaviour:
    """gRPC's health checking protocol, of which this is all that needs no stream."""

    def answer(message: bytes, _: grpc.ServicerContext) -> bytes:
        service = _payload(message)
        if service not in (b"", SERVICE.encode()):
            raise Refusal(grpc.StatusCode.NOT_FOUND, "there is no such service")
        if agent.is_held:
            return NOT_SERVING
        remarshal(SPECIMEN)  # what Run does; an emulated guest's first time is its slowest
        return SERVING

    return answer


def _payload(message: bytes) -> bytes:
    try:
        return decode_message(message)
    except ValueError as error:
        why = f"no protobuf message: {error}"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why) from error


def _bare(act: Callable[[bytes], None]) -> Behaviour:
    """*act*, which takes a message and answers with an empty one."""

    def answer(message: bytes, _: grpc.ServicerContext) -> bytes:
        act(message)
        return b""

    return answer


def _told(behaviour: Behaviour) -> Behaviour:
    """*behaviour*, whose refusals the caller is told."""

    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return behaviour(message, context)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.detail)

    return answer
