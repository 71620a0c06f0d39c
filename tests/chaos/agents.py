"""The agents of guests that are not there: one gRPC server, on every port a VM may get."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc, clone_pb2, clone_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

#: QEMU's forwards are on another address of the loopback, so both may have the same port.
ADDRESS = "127.0.0.1"
_CALLS_AT_ONCE = 64
_LEAST_ENTROPY = 32


class Agents(agent_pb2_grpc.AgentServiceServicer, clone_pb2_grpc.CloneServiceServicer):
    """Answers ``Run`` with ``answer to <name>``.

    A computation is JSON: its ``name``, and with ``hold`` it is not answered before `release`.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        #: How often each computation was handed over.
        self.calls: Counter[str] = Counter()
        #: What was asked, in this order: ``renew <VM's id>``, ``run <name>``.
        self.asked: list[str] = []
        #: Whether ``hold`` is heeded.
        self.holding = True
        #: Whether a guest that is renewed says nothing, or says no.
        self.mute = False
        self.unwilling = False
        self._held: set[threading.Event] = set()
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS_AT_ONCE), options=(("grpc.so_reuseport", 0),)
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        clone_pb2_grpc.add_CloneServiceServicer_to_server(self, self._server)
        for port in ports:
            self._server.add_insecure_port(f"{ADDRESS}:{port}")
        self._server.start()

    def Run(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        computation = json.loads(request.computation)
        self.calls[computation["name"]] += 1
        self.asked.append(f"run {computation['name']}")
        if self.holding and computation.get("hold"):
            self._hold(context)
        return agent_pb2.RunResponse(Computation=f"answer to {computation['name']}")

    def Prepare(self, _: Any, __: grpc.ServicerContext) -> Any:  # noqa: N802
        return clone_pb2.PrepareResponse()

    def Renew(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if self.mute:
            self._hold(context)
        if self.unwilling:
            context.abort(grpc.StatusCode.INTERNAL, "it cannot be renewed")
        if len(request.entropy) < _LEAST_ENTROPY:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is not enough entropy")
        self.asked.append(f"renew {request.vm_id}")
        return clone_pb2.RenewResponse()

    def release(self) -> None:
        """Let every call that is held be answered."""
        for held in tuple(self._held):
            held.set()

    def close(self) -> None:
        self.release()
        self._server.stop(0).wait()

    def _hold(self, context: grpc.ServicerContext) -> None:
        """Until `release`, or until the caller has gone."""
        released = threading.Event()
        self._held.add(released)
        context.add_callback(released.set)
        released.wait()
        self._held.discard(released)
