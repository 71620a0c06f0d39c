"""The agents of guests that are not there: one gRPC server, on every port a VM may get."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

#: QEMU's forwards are on another address of the loopback, so both may have the same port.
ADDRESS = "127.0.0.1"
_CALLS_AT_ONCE = 64


class Agents(agent_pb2_grpc.AgentServiceServicer):
    """Answers ``Run`` with ``answer to <name>``.

    A computation is JSON: its ``name``, and with ``hold`` it is not answered before `release`.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        #: How often each computation was handed over.
        self.calls: Counter[str] = Counter()
        #: Whether ``hold`` is heeded.
        self.holding = True
        self._held: set[threading.Event] = set()
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS_AT_ONCE), options=(("grpc.so_reuseport", 0),)
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        for port in ports:
            self._server.add_insecure_port(f"{ADDRESS}:{port}")
        self._server.start()

    def Run(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        computation = json.loads(request.computation)
        self.calls[computation["name"]] += 1
        if self.holding and computation.get("hold"):
            released = threading.Event()
            self._held.add(released)
            context.add_callback(released.set)
            released.wait()
            self._held.discard(released)
        return agent_pb2.RunResponse(Computation=f"answer to {computation['name']}")

    def release(self) -> None:
        """Let every call that is held be answered."""
        for held in tuple(self._held):
            held.set()

    def close(self) -> None:
        self.release()
        self._server.stop(0).wait()
