"""The gRPC API: servicers over the same service as ``web``.

grpc.aio is asyncio's; the servicers' methods are asyncio-flavoured and step over to trio with
``trio_as_aio``, so a caller that goes away cancels what it waits for.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import grpc
import structlog
import trio
from google.protobuf import empty_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async, reflection, reflection_pb2_grpc
from trio_asyncio import aio_as_trio, trio_as_aio

from supervisor import errors
from supervisor.agent.client import MAX_MESSAGE, read_pem
from supervisor.api.sockets import bind_tcp
from supervisor.config import TemplateUse
from supervisor.errors import HostError
from supervisor.pb import manager_pb2, manager_pb2_grpc, vm_pb2, vm_pb2_grpc
from supervisor.qemu.cmdline import shell_line
from supervisor.state.record import EndMode, RunOptions, request_hash
from supervisor.state.status import Status, VmState
from supervisor.vm import control

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from supervisor.config import GrpcConfig
    from supervisor.runs.service import Service
    from supervisor.state.record import Event
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

_STOP_GRACE_S = 3.0

#: The first class that fits decides; the root at the end fits all.
_CODE: dict[type[errors.SupervisorError], grpc.StatusCode] = {
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.VmNotFound: grpc.StatusCode.NOT_FOUND,
    errors.Busy: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TemplateError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AtCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.AgentTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.AgentError: grpc.StatusCode.UNAVAILABLE,
    errors.VmEnded: grpc.StatusCode.UNAVAILABLE,
    errors.RunFailed: grpc.StatusCode.UNAVAILABLE,
    errors.CloneFailed: grpc.StatusCode.UNAVAILABLE,
    errors.Stopping: grpc.StatusCode.UNAVAILABLE,
    errors.PortsTaken: grpc.StatusCode.UNAVAILABLE,
    errors.MonitorError: grpc.StatusCode.UNAVAILABLE,
    errors.LaunchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SupervisorError: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.SupervisorError) -> grpc.StatusCode:
    """The status an error becomes; an agent's own error keeps the agent's code."""
    if isinstance(error, errors.AgentError) and error.code in grpc.StatusCode.__members__:
        return grpc.StatusCode[error.code]
    return next(code for kind, code in _CODE.items() if isinstance(error, kind))


def metadata_of(error: errors.SupervisorError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: ``retry-after``, in seconds, as HTTP's header of that name."""
    if isinstance(error, errors.AtCapacity) and error.retry_after_s is not None:
        return (("retry-after", str(error.retry_after_s)),)
    return ()


def _answering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of ours become statuses."""

    @wraps(method)
    async def answer(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except errors.SupervisorError as error:
            await context.abort(code_of(error), str(error), metadata_of(error))
        except grpc.aio.BaseError:
            raise  # what ``abort`` ends with, or what is said to a caller who has gone: grpc's own
        except Exception as error:
            log.error("bug in a gRPC handler", method=method.__name__, exc_info=error)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                "the supervisor failed in a way it does not know; its log has the particulars",
            )

    return answer


class ManagerServicer(manager_pb2_grpc.ManagerServiceServicer):
    """The original manager's service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @_answering
    async def Run(  # noqa: N802
        self,
        request: manager_pb2.RunRequest,
        context: grpc.aio.ServicerContext[manager_pb2.RunRequest, manager_pb2.RunResponse],
    ) -> manager_pb2.RunResponse:
        config = self._service.config
        template = _template(context)
        options = RunOptions(
            ttl_s=config.life.ttl_s,
            restart=config.life.restart,
            keep_disk=config.retention.disks,
            template=template or config.start.templates,
            idempotency_key=_metadata(context, "idempotency-key"),
            request_hash=request_hash(request.computation, None, None, None, template=template),
        )
        vm = await trio_as_aio(self._service.run)(request.computation, options)
        return manager_pb2.RunResponse(ID=vm.id, computation=vm.reply)


class VmServicer(vm_pb2_grpc.VmServiceServicer):
    """What HTTP's ``/vms`` offers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @_answering
    async def List(self, request: object, context: object) -> vm_pb2.ListResponse:  # noqa: N802
        return vm_pb2.ListResponse(vms=[_vm(vm) for vm in self._service.vms])

    @_answering
    async def Get(self, request: vm_pb2.GetRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return _vm(self._service.vms.get(request.id))

    @_answering
    async def Shutdown(  # noqa: N802
        self, request: vm_pb2.ShutdownRequest, context: object
    ) -> vm_pb2.Vm:
        vm = self._service.vms.get(request.id)
        if request.mode not in vm_pb2.ShutdownRequest.Mode.values():
            raise errors.InvalidRequest(f"{request.mode} is not a mode", member="mode")
        force = request.mode == vm_pb2.ShutdownRequest.MODE_FORCE
        await trio_as_aio(self._service.end)(vm, EndMode.FORCE if force else EndMode.GRACEFUL)
        return _vm(vm)

    @_answering
    async def Delete(  # noqa: N802
        self, request: vm_pb2.DeleteRequest, context: object
    ) -> empty_pb2.Empty:
        await trio_as_aio(self._service.vms.delete)(self._service.vms.get(request.id))
        return empty_pb2.Empty()

    @_answering
    async def Pause(self, request: vm_pb2.PauseRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.pause, request.id)

    @_answering
    async def Resume(self, request: vm_pb2.ResumeRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.resume, request.id)

    @_answering
    async def Reset(self, request: vm_pb2.ResetRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.reset, request.id)

    async def _control(self, act: Callable[[Vm], Awaitable[None]], vm_id: str) -> vm_pb2.Vm:
        vm = self._service.vms.get(vm_id)
        await trio_as_aio(act)(vm)
        return _vm(vm)

    @_answering
    async def Watch(  # noqa: N802
        self,
        request: vm_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[vm_pb2.WatchRequest, vm_pb2.Event],
    ) -> None:
        vm_id = self._service.vms.get(request.id).id if request.id else None
        after = request.after if request.HasField("after") else None
        await trio_as_aio(self._tell)(after, vm_id, aio_as_trio(context.write))
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the reader fell behind, or the supervisor stops; go on after the last sequence",
        )

    async def _tell(
        self, after: int | None, vm_id: str | None, write: Callable[[vm_pb2.Event], Awaitable[None]]
    ) -> None:
        """Tell a reader of events until there are no more. trio-flavoured.

        All in one task: stepped into and out of by ``trio_as_aio``, the context would be left open
        by a reader who leaves at the wrong moment, for then the step is not taken.
        """
        async with self._service.follow(after, vm_id) as (old, news):
            if after is None:
                vms = [self._service.vms.get(vm_id)] if vm_id else self._service.vms
                for message in [_present(vm) for vm in vms]:
                    await write(message)
            for event in old:
                if vm_id in (None, event.vm_id):
                    await write(_event(event))
            async for event in news:
                if vm_id in (None, event.vm_id):
                    await write(_event(event))


class _Reflection(_async.ReflectionServicer):
    """The stock servicer, whose requests are read by a generator of Python's own.

    grpc.aio's is Cython's, which lacks what trio's hooks for generators look at.
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


def _template(context: grpc.aio.ServicerContext[Any, Any]) -> TemplateUse | None:
    given = _metadata(context, "template")
    if given is not None and given not in list(TemplateUse):
        known = ", ".join(TemplateUse)
        raise errors.InvalidRequest(f"template must be one of {known}", member="template")
    return TemplateUse(given) if given else None


def _metadata(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return None


def _state(status: Status) -> vm_pb2.VmState:
    return cast("vm_pb2.VmState", vm_pb2.VmState.Value(f"VM_STATE_{status.state.name}"))


def _event(event: Event) -> vm_pb2.Event:
    data = dict(event.data)
    message = vm_pb2.Event(id=event.vm_id or "", sequence=event.sequence, kind=event.kind)
    if event.kind == "state":
        status = Status(VmState(data.pop("state")), data.pop("reason"))
        message.state, message.reason = _state(status), status.reason
    message.data.update(data)
    message.at.FromDatetime(event.at)
    return message


def _present(vm: Vm) -> vm_pb2.Event:
    """What a VM's state is now, to a reader who did not see it come about."""
    message = vm_pb2.Event(
        id=vm.id,
        state=_state(vm.status),
        reason=vm.status.reason,
        sequence=vm.record.sequence,
        kind="state",
    )
    message.at.GetCurrentTime()
    return message


def _vm(vm: Vm) -> vm_pb2.Vm:
    message = vm_pb2.Vm(
        id=vm.id,
        state=_state(vm.status),
        reason=vm.status.reason,
        command=shell_line(vm.record.command),
        agent_ready=vm.agent_ready,
        exit_code=vm.record.exit_code,
        error=vm.record.error or "",
        forwards=[
            vm_pb2.Forward(
                guest_port=forward.guest_port,
                host_address=forward.host_address,
                host_port=forward.host_port,
            )
            for forward in vm.record.forwards
        ],
    )
    message.created_at.FromDatetime(vm.record.created_at)
    if vm.record.ended_at:
        message.ended_at.FromDatetime(vm.record.ended_at)
    return message


@asynccontextmanager
async def open_server(service: Service, config: GrpcConfig) -> AsyncIterator[int]:
    """A gRPC server, and the port it listens on. Stopped on leaving.

    :raises HostError: if the port is taken or a certificate cannot be read
    """
    server = await aio_as_trio(_start)(service, config)
    try:
        yield server.bound_port
    finally:
        with trio.move_on_after(2 * _STOP_GRACE_S, shield=True):
            await aio_as_trio(server.stop)()


class _Server:
    def __init__(self, server: grpc.aio.Server, bound_port: int) -> None:
        self._server = server
        self.bound_port = bound_port

    async def stop(self) -> None:
        """asyncio-flavoured."""
        await self._server.stop(_STOP_GRACE_S)


async def _start(service: Service, config: GrpcConfig) -> _Server:
    """asyncio-flavoured."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            # The reply of an agent, and the id beside it.
            ("grpc.max_send_message_length", 2 * MAX_MESSAGE + 1024),
            # Else a second supervisor would quietly share the port.
            ("grpc.so_reuseport", 0),
        )
    )
    manager_pb2_grpc.add_ManagerServiceServicer_to_server(ManagerServicer(service), server)
    vm_pb2_grpc.add_VmServiceServicer_to_server(VmServicer(service), server)
    names = [
        manager_pb2.DESCRIPTOR.services_by_name["ManagerService"].full_name,
        vm_pb2.DESCRIPTOR.services_by_name["VmService"].full_name,
    ]
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in ("", *names):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    served = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(served), server)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    # grpc tells no reason; the system does.
    bind_tcp("gRPC", config.host, config.port, "MANAGER_GRPC").close()
    try:
        if config.server_cert is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(config))
    except RuntimeError as error:
        raise HostError(f"gRPC cannot listen on {address}: {error}") from error
    await server.start()
    return _Server(server, port)


def _credentials(config: GrpcConfig) -> grpc.ServerCredentials:
    key, cert = read_pem(config.server_key), read_pem(config.server_cert)
    if key is None or cert is None:
        raise HostError("gRPC needs both MANAGER_GRPC_SERVER_CERT and MANAGER_GRPC_SERVER_KEY")
    roots = read_pem(config.client_ca_certs)
    return grpc.ssl_server_credentials(
        [(key, cert)], root_certificates=roots, require_client_auth=roots is not None
    )
