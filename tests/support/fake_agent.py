"""Agents for the stand-in for QEMU: the reference one, and others that fail on purpose."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from uuid import UUID

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.pb import (
    agent_pb2,
    agent_pb2_grpc,
    clone_pb2,
    clone_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
)
from tests.support.line import FIRST, REHEARSAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.scenario import Scenario

_LIMIT = 40 * 1024 * 1024
_PIECE = 1000
#: What an agent that is ``held`` waits for.
RELEASED = threading.Event()


class Twin(Protocol):
    """A guest that may be copied; ``prepared`` from Prepare on until Renew, also in a copy.

    ``renewed_as`` is the id of the VM that it was renewed for. ``instance`` is of its agent, and
    ``last_end`` says how the agent before that ended.
    """

    argv: list[str]
    vm_id: str
    renewal: bytes
    prepared: bool
    renewed_as: str
    instance: str
    last_end: str


class _Agent(agent_pb2_grpc.AgentServiceServicer):
    """Answers Run as its kind says, and tells the test of each call."""

    def __init__(
        self, kind: str, plan: Scenario, directory: Path, tell: Callable[..., None], guest: Twin
    ) -> None:
        self._kind = kind
        self._plan = plan
        self._directory = directory
        self._tell = tell
        self._guest = guest

    def Run(self, request: agent_pb2.RunRequest, context: Any) -> agent_pb2.RunResponse:  # noqa: N802
        metadata = dict(context.invocation_metadata())
        clock = metadata.get(FIRST, "")
        if self._guest.prepared and self._plan.renews_itself and clock and any(self._guest.renewal):
            self._tell("renewed", item=self._guest.renewal.hex(), unix_time_ns=int(clock))
            machine_id = self._guest.renewal[64:96].decode()
            self._guest.prepared, self._guest.renewed_as = False, str(UUID(machine_id))
        if self._guest.prepared:
            self._tell("refused")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this guest is to be copied")
        if REHEARSAL in metadata and not self._plan.rehearses:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this guest waits for its time")
        if REHEARSAL in metadata:
            return agent_pb2.RunResponse()
        digest = hashlib.sha256(request.computation).hexdigest()
        (self._directory / f"received-{digest}").write_bytes(request.computation)
        with (self._directory / "received").open("a") as record:
            record.write(f"{self._guest.vm_id} {digest}\n")
        self._tell("Run", digest=digest)
        if self._kind == "held":
            RELEASED.wait()
        if self._kind == "silent":
            threading.Event().wait()
        if self._kind == "status":
            self._fail(context)
        return agent_pb2.RunResponse(Computation=digest.ljust(self._plan.reply_bytes, "="))

    def Attestation(  # noqa: N802
        self, request: agent_pb2.AttestationRequest, context: Any
    ) -> agent_pb2.AttestationResponse:
        self._tell("Attestation", type=request.type, metadata=dict(context.invocation_metadata()))
        try:
            found = (Path(self._plan.evidence) / request.report_data.hex()).read_bytes()
        except OSError:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this guest has no report")
        return agent_pb2.AttestationResponse(file=found)

    def attestation_in_pieces(
        self, request: agent_pb2.AttestationRequest, context: Any
    ) -> Iterator[agent_pb2.AttestationResponse]:
        found = self.Attestation(request, context).file
        for start in range(0, len(found), _PIECE):
            yield agent_pb2.AttestationResponse(file=found[start : start + _PIECE])

    def _fail(self, context: Any) -> NoReturn:
        code, text = self._plan.status
        context.abort(grpc.StatusCode[code], text)
        raise AssertionError


class _Clones(clone_pb2_grpc.CloneServiceServicer):
    """Prepare and Renew as the plan says; the test is told of each call."""

    def __init__(self, plan: Scenario, tell: Callable[..., None], guest: Twin) -> None:
        self._plan = plan
        self._tell = tell
        self._guest = guest

    def Prepare(  # noqa: N802
        self, request: clone_pb2.PrepareRequest, context: Any
    ) -> clone_pb2.PrepareResponse:
        self._tell("Prepare")
        self._behave(self._plan.prepare, context)
        self._guest.prepared = True
        return clone_pb2.PrepareResponse()

    def Renew(  # noqa: N802
        self, request: clone_pb2.RenewRequest, context: Any
    ) -> clone_pb2.RenewResponse:
        self._tell(
            "Renew",
            vm=request.vm_id,
            hostname=request.hostname,
            entropy=request.entropy.hex(),
            unix_time_ns=request.unix_time_ns,
        )
        self._behave(self._plan.renew, context)
        if not self._guest.prepared and request.vm_id != self._guest.renewed_as:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this guest is no copy")
        if len(request.entropy) < 32 or not _is_uuid(request.vm_id):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "32 bytes and a UUID are needed")
        first = self._guest.prepared
        self._guest.prepared, self._guest.renewed_as = False, request.vm_id
        if first and self._plan.renew == "lost":
            threading.Event().wait()
        return clone_pb2.RenewResponse()

    def _behave(self, how: str, context: Any) -> None:
        if how == "silence":
            threading.Event().wait()
        if how == "refuse":
            context.abort(grpc.StatusCode.INTERNAL, "it cannot be done")


class _Guest(guest_pb2_grpc.GuestServiceServicer):
    """Status and SetClock; the test is told of each call."""

    def __init__(self, plan: Scenario, tell: Callable[..., None], guest: Twin) -> None:
        self._plan = plan
        self._tell = tell
        self._guest = guest

    def Status(  # noqa: N802
        self, request: guest_pb2.StatusRequest, context: Any
    ) -> guest_pb2.StatusResponse:
        if self._plan.tells_life:
            self._tell("Status")
        if self._plan.life == "refuse":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "who asks?")
        instance = self._guest.instance * (100_000 if self._plan.life == "huge" else 1)
        return guest_pb2.StatusResponse(instance_id=instance, last_end=self._guest.last_end)

    def SetClock(  # noqa: N802
        self, request: guest_pb2.SetClockRequest, context: Any
    ) -> guest_pb2.SetClockResponse:
        if self._guest.prepared:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this guest is to be renewed")
        self._tell("SetClock", unix_time_ns=request.unix_time_ns)
        return guest_pb2.SetClockResponse(moved_ns=1)


class _Health(health_pb2_grpc.HealthServicer):
    """Tells the test of the call, and answers it unless the plan says otherwise."""

    def __init__(self, plan: Scenario, tell: Callable[..., None]) -> None:
        self._plan = plan
        self._tell = tell

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        self._tell("Check")
        if self._plan.health == "silence":
            threading.Event().wait()
        return health_pb2.HealthCheckResponse(status=1)


def credential_hash(argv: Sequence[str]) -> str:
    """What QEMU's command line tells the agent of its callers."""
    words = (word for word in argv if "credential-sha256" in word)
    return next(words).partition("string=")[2]


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


class _Deaf:
    """Takes connections, like QEMU's user network, and never says a word."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))

    def stop(self, _grace: float | None) -> _Deaf:
        self._listener.close()
        return self

    def wait(self) -> None:
        """All is done."""


class _Reference:
    """The reference agent's server, ended as grpc's are."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def stop(self, _grace: float | None) -> _Reference:
        self._server.stop()
        return self

    def wait(self) -> None:
        """All is done."""


def start(
    kind: str, plan: Scenario, port: int, directory: Path, tell: Callable[..., None], guest: Twin
) -> Any:
    """An agent of this kind on this port of the loopback, until it is stopped."""
    if kind == "deaf":
        return _Deaf(port)
    if kind == "reference":
        from supervisor.agent.reference import access, compute, rpc, service

        agent = service.Agent(algorithm_timeout_s=10)
        given = directory / f"hash-{port}"
        given.write_text(credential_hash(guest.argv))
        hash_file = os.open(given, os.O_RDONLY)
        opened = directory / f"open-{port}-{os.getpid()}"
        # A guest that boots has an empty /run.
        asks = access.Access(hash_file, os.open(opened, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        methods = service.methods(agent) | compute.methods(agent)
        return _Reference(rpc.Server(methods, asks, "127.0.0.1", port))
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=2),
        options=(("grpc.max_receive_message_length", _LIMIT), ("grpc.so_reuseport", 0)),
    )
    servicer = _Agent(kind, plan, directory, tell, guest)
    if plan.evidence_in_pieces:
        server.add_generic_rpc_handlers((_successor(servicer),))
    else:
        agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)
    clone_pb2_grpc.add_CloneServiceServicer_to_server(_Clones(plan, tell, guest), server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(plan, tell), server)
    if kind != "original":
        guest_pb2_grpc.add_GuestServiceServicer_to_server(_Guest(plan, tell, guest), server)
    address = f"127.0.0.1:{port}"
    if plan.agent_tls:
        server.add_secure_port(address, _credentials(Path(plan.agent_tls), plan.agent_mutual))
    else:
        server.add_insecure_port(address)
    server.start()
    return server


def _successor(servicer: _Agent) -> grpc.GenericRpcHandler:
    """Run as before, and Attestation as a stream."""
    return grpc.method_handlers_generic_handler(
        "agent.AgentService",
        {
            "Run": grpc.unary_unary_rpc_method_handler(
                servicer.Run,
                agent_pb2.RunRequest.FromString,
                agent_pb2.RunResponse.SerializeToString,
            ),
            "Attestation": grpc.unary_stream_rpc_method_handler(
                servicer.attestation_in_pieces,
                agent_pb2.AttestationRequest.FromString,
                agent_pb2.AttestationResponse.SerializeToString,
            ),
        },
    )


def _credentials(tls: Path, mutual: bool) -> grpc.ServerCredentials:
    key, cert, ca = ((tls / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem"))
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=ca if mutual else None, require_client_auth=mutual
    )
