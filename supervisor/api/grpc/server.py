"""The gRPC server: port and credentials, the two services, health and reflection."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import trio
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async, reflection, reflection_pb2_grpc

from supervisor.agent.channel import MAX_MESSAGE, read_pem
from supervisor.api.callers import right_of
from supervisor.api.grpc.anywhere import Calls
from supervisor.api.grpc.callers import Callers
from supervisor.api.grpc.connections import Connections
from supervisor.api.grpc.services import ManagerServicer, VmServicer
from supervisor.api.sockets import bind_tcp
from supervisor.bridge import aio_as_trio
from supervisor.pb import manager_pb2, vm_pb2, vm_pb2_grpc

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator
    from pathlib import Path

    from supervisor.api.auth.door import Door
    from supervisor.api.auth.files import Watched
    from supervisor.api.fleet.member import Member
    from supervisor.api.gate import Gate
    from supervisor.config import GrpcConfig
    from supervisor.runs.service import Service

    Tls = Watched[grpc.ServerCertificateConfiguration]

_STOP_GRACE_S = 3.0
#: Calls at once. Each may follow events; the messages of the others are bounded by a budget.
_MOST_CALLS = 512


@attrs.frozen
class Inner:
    """Where grpc listens: sockets in tmp/, which other users cannot enter.

    :param of_tcp: for what comes to the port. grpc does TLS there, if there is TLS
    """

    plain: Path
    of_tcp: Path

    @classmethod
    def in_directory(cls, tmp: Path, tls: Tls | None) -> Inner:
        plain = tmp / "grpc-inner.sock"
        return cls(plain, plain if tls is None else tmp / "grpc-inner-tls.sock")


@attrs.frozen
class BoundServer:
    """A gRPC server that has its port and answers nobody yet."""

    server: grpc.aio.Server
    connections: Connections
    _listener: socket.socket
    _inner: Inner

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @asynccontextmanager
    async def serve(
        self, service: Service, gate: Gate, local: socket.socket, member: Member | None
    ) -> AsyncIterator[Calls]:
        """Answer calls. Stopped on leaving.

        :param local: the unix socket
        :param member: of a fleet; None: this host is alone
        :return: what answers those that other members pass on
        """
        calls = await aio_as_trio(_start)(self.server, service, gate, member)
        async with trio.open_nursery() as connections, trio.open_nursery() as accepting:
            for listener, inner in (
                (local, self._inner.plain),
                (self._listener, self._inner.of_tcp),
            ):
                accepting.start_soon(self.connections.serve, listener, inner, connections)
            try:
                yield calls
            finally:
                accepting.cancel_scope.cancel()
                with trio.move_on_after(2 * _STOP_GRACE_S, shield=True):
                    await aio_as_trio(self.server.stop)(_STOP_GRACE_S)
                connections.cancel_scope.cancel()


@asynccontextmanager
async def bind(
    config: GrpcConfig, door: Door, gate: Gate, tls: Tls | None, tmp: Path
) -> AsyncIterator[BoundServer]:
    """A gRPC server, to be served once there is a service. Its port is free again on leaving.

    :param tls: None: no TLS
    :param tmp: where only the supervisor's user can enter
    :raises HostError: if the port is taken or a certificate cannot be read
    """
    inner, per_address = Inner.in_directory(tmp, tls), gate.connections()
    with bind_tcp("gRPC", config.host, config.port, "MANAGER_GRPC") as listener:
        connections = Connections(per_address)
        server = await aio_as_trio(_bind)(config, door, gate, tls, inner, connections)
        try:
            yield BoundServer(server, connections, listener, inner)
        finally:
            with trio.move_on_after(_STOP_GRACE_S, shield=True):
                await aio_as_trio(server.stop)(None)


async def _bind(
    config: GrpcConfig,
    door: Door,
    gate: Gate,
    tls: Tls | None,
    inner: Inner,
    connections: Connections,
) -> grpc.aio.Server:
    """asyncio-flavoured.

    :raises HostError: if a certificate cannot be read
    """
    server = grpc.aio.server(
        interceptors=(Callers(door, connections.origins, gate),),
        maximum_concurrent_rpcs=_MOST_CALLS,
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            # An agent's reply, and the VM's id beside it.
            ("grpc.max_send_message_length", 2 * MAX_MESSAGE + 1024),
        ),
    )
    server.add_insecure_port(f"unix:{inner.plain}")
    if tls is not None:
        server.add_secure_port(f"unix:{inner.of_tcp}", _credentials(config, tls))
    return server


async def _start(
    server: grpc.aio.Server, service: Service, gate: Gate, member: Member | None
) -> Calls:
    """asyncio-flavoured."""
    manager = ManagerServicer(service, gate.budget, member)
    vms = VmServicer(service, gate.readers, member)
    _add_manager(manager, server)
    vm_pb2_grpc.add_VmServiceServicer_to_server(vms, server)
    ours = {
        manager_pb2.DESCRIPTOR.services_by_name["ManagerService"]: manager,
        vm_pb2.DESCRIPTOR.services_by_name["VmService"]: vms,
    }
    for described, servicer in ours.items():
        for method in described.methods:
            right_of(getattr(servicer, method.name))
    names = [described.full_name for described in ours]
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in ("", *names):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    served = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(served), server)
    await server.start()
    return Calls(ours)


def _add_manager(manager: ManagerServicer, server: grpc.aio.Server) -> None:
    """Run reads its message itself, for it is large: for the server it is a stream of one."""
    described = manager_pb2.DESCRIPTOR.services_by_name["ManagerService"]
    handlers = {}
    for method in described.methods:
        make = grpc.unary_unary_rpc_method_handler
        if method.name == "Run":
            make = grpc.stream_unary_rpc_method_handler
        handlers[method.name] = make(
            getattr(manager, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    generic = grpc.method_handlers_generic_handler(described.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


class _Reflection(_async.ReflectionServicer):
    """The stock servicer, but a Python generator reads its requests.

    grpc.aio's own is written in Cython and lacks what trio's hooks for generators look at.
    """

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        async def requests() -> AsyncIterator[Any]:
            while (request := await context.read()) is not grpc.aio.EOF:
                yield request

        stock: Any = super().ServerReflectionInfo(requests(), context)
        async for response in stock:
            await context.write(response)


def _credentials(config: GrpcConfig, tls: Tls) -> grpc.ServerCredentials:
    """Each connection has the certificates of its time."""
    known = tls.get()

    def present() -> Any:
        """Called at each handshake, by a thread of grpc's. None: as before."""
        nonlocal known
        before, known = known, tls.get()
        return None if known is before else known

    asks = config.client_ca_certs is not None
    return grpc.dynamic_ssl_server_credentials(known, present, require_client_authentication=asks)


def certificates(config: GrpcConfig) -> grpc.ServerCertificateConfiguration:
    """What a connection of now has. Blocking.

    :raises HostError: if a file cannot be read
    """
    key, cert = read_pem(config.server_key), read_pem(config.server_cert)
    assert key is not None
    assert cert is not None  # the settings go together
    return grpc.ssl_server_certificate_configuration(
        [(key, cert)], root_certificates=read_pem(config.client_ca_certs)
    )
