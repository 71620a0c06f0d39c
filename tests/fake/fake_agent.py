"""Agents for the stand-in for QEMU: the reference one, and others that fail on purpose."""

from __future__ import annotations

import hashlib
import threading
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fake.scenario import Scenario

_LIMIT = 40 * 1024 * 1024


class _Agent(agent_pb2_grpc.AgentServiceServicer):
    """Answers Run as its kind says, and tells the test of each call."""

    def __init__(self, kind: str, plan: Scenario, directory: Path, tell: Callable[..., None]):
        self._kind = kind
        self._plan = plan
        self._directory = directory
        self._tell = tell

    def Run(self, request: agent_pb2.RunRequest, context: Any) -> agent_pb2.RunResponse:  # noqa: N802
        digest = hashlib.sha256(request.computation).hexdigest()
        (self._directory / f"received-{digest}").write_bytes(request.computation)
        self._tell("Run", digest=digest)
        if self._kind == "silent":
            threading.Event().wait()
        if self._kind == "status":
            self._fail(context)
        return agent_pb2.RunResponse(Computation=digest)

    def _fail(self, context: Any) -> NoReturn:
        code, text = self._plan.status
        context.abort(grpc.StatusCode[code], text)
        raise AssertionError


def start(kind: str, plan: Scenario, port: int, directory: Path, tell: Callable[..., None]) -> Any:
    """An agent of this kind on this port of the loopback, for as long as the process lives."""
    if kind == "reference":
        from supervisor.guest.agent import service as reference

        agent = reference.Agent(algorithm_timeout_s=10)
        return reference.serve_grpc(agent, "127.0.0.1", port)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=2),
        options=(("grpc.max_receive_message_length", _LIMIT), ("grpc.so_reuseport", 0)),
    )
    servicer = _Agent(kind, plan, directory, tell)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{port}"
    if plan.agent_tls:
        server.add_secure_port(address, _credentials(Path(plan.agent_tls), plan.agent_mutual))
    else:
        server.add_insecure_port(address)
    server.start()
    return server


def _credentials(tls: Path, mutual: bool) -> grpc.ServerCredentials:
    key, cert, ca = ((tls / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem"))
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=ca if mutual else None, require_client_auth=mutual
    )
