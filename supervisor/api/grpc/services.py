"""The two services: each method makes a request, asks the service, and answers with a message.

grpc.aio is asyncio's, so the methods are asyncio-flavoured. They step over to trio with
``trio_as_aio``; a caller who goes away thus cancels the work that it waits for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import trio
from google.protobuf import empty_pb2

from supervisor.api import trace
from supervisor.api.callers import current, who
from supervisor.api.grpc import cvms, messages, watching
from supervisor.api.grpc.anywhere import anywhere, everywhere
from supervisor.api.grpc.callers import read_message
from supervisor.api.grpc.errors import answers
from supervisor.api.submit import submit
from supervisor.bridge import aio_as_trio, trio_as_aio
from supervisor.caller import Right
from supervisor.pb import manager_pb2, manager_pb2_grpc, vm_pb2, vm_pb2_grpc
from supervisor.state.record import EndMode
from supervisor.vm import claims, computation, control
from supervisor.vm.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.api.budget import Budget
    from supervisor.api.fleet.member import Member
    from supervisor.api.fleet.runs import Answered
    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Service
    from supervisor.state.record import RunOptions
    from supervisor.state.shares import Shares

    Context = grpc.aio.ServicerContext[Any, Any]

_MANAGER = manager_pb2.DESCRIPTOR.services_by_name["ManagerService"]
_VMS = vm_pb2.DESCRIPTOR.services_by_name["VmService"]


class ManagerServicer(manager_pb2_grpc.ManagerServiceServicer):
    """The original manager's service, and its successor's."""

    def __init__(self, service: Service, budget: Budget, member: Member | None) -> None:
        self.service = service
        self.member = member
        self._budget = budget

    @answers(Right.RUN)
    async def Run(self, _: object, context: Context) -> manager_pb2.RunResponse:  # noqa: N802
        """A stream for the server, so that the message is read once there is room for it."""
        response: manager_pb2.RunResponse = await trio_as_aio(self._run)(context)
        return response

    async def _run(self, context: Context) -> manager_pb2.RunResponse:
        """With the agent's reply. trio-flavoured."""
        found, options = await self._submit(context)
        if isinstance(found, Vm):
            await self.service.wait_answered(found, options)
            reply, credential = await found.read_reply(), found.credential or ""
            return manager_pb2.RunResponse(ID=found.id, computation=reply, credential=credential)
        assert self.member
        answer = json.loads(await self.member.others.read(found.host, found.response))
        return manager_pb2.RunResponse(
            ID=answer["id"],
            computation=answer["computation"],
            credential=answer["credential"] or "",
        )

    async def _submit(self, context: Context) -> tuple[Vm | Answered, RunOptions]:
        """Nothing of the computation stays in memory once its VM has it on disk."""
        async with self._budget.reserve(who(), None) as keep:
            body_timeout_s = self.service.config.callers.body_timeout_s
            # The message is not kept beside what is read from it.
            wanted = messages.run_request(await read_message(context, body_timeout_s), context)
            keep(len(wanted.computation))
            key = messages.metadata(context, "idempotency-key")
            options = wanted.options(self.service.config, key, trace.present().id)
            return await submit(self.service, self.member, wanted, options, waits=True), options

    @answers(Right.RUN)
    async def CreateVm(  # noqa: N802
        self, request: manager_pb2.CreateReq, context: object
    ) -> manager_pb2.CreateRes:
        shares = cvms.shares(request)
        options = cvms.options(request, self.service.config, trace.present().id)
        vm = await trio_as_aio(self._create)(shares, options)
        return cvms.created(vm)

    async def _create(self, shares: Shares, options: RunOptions) -> Vm:
        """trio-flavoured."""
        vm = await self.service.create(shares, options, current())
        trace.present().vm_id = vm.id
        await self.service.wait_ran(vm)
        return vm

    @answers(Right.USE)
    @anywhere(_MANAGER)
    async def RemoveVm(  # noqa: N802
        self, request: manager_pb2.RemoveReq, context: object
    ) -> empty_pb2.Empty:
        vm = self.service.vms.get(request.cvm_id, current())
        await trio_as_aio(self.service.vms.delete)(vm, EndMode.GRACEFUL)
        return empty_pb2.Empty()

    @answers(Right.SEE)
    @anywhere(_MANAGER)
    async def CVMInfo(  # noqa: N802
        self, request: manager_pb2.CVMInfoReq, context: object
    ) -> manager_pb2.CVMInfoRes:
        return cvms.info(self.service.vms.see(request.id, current()))

    @answers(Right.SEE)
    @anywhere(_MANAGER)
    async def AttestationPolicy(  # noqa: N802
        self, request: manager_pb2.AttestationPolicyReq, context: object
    ) -> manager_pb2.AttestationPolicyRes:
        vm, key = self.service.vms.get(request.id, current()), self.service.config.qemu.tee
        policy = await trio_as_aio(trio.to_thread.run_sync)(claims.as_corim, vm, key.signing_key)
        return manager_pb2.AttestationPolicyRes(info=policy, id=vm.id)


class VmServicer(vm_pb2_grpc.VmServiceServicer):
    """The same as HTTP's ``/vms`` and its events."""

    def __init__(self, service: Service, readers: AtOnce, member: Member | None) -> None:
        self.service = service
        self.member = member
        self._readers = readers

    @answers(Right.SEE)
    @everywhere(_VMS)
    async def List(  # noqa: N802
        self, request: vm_pb2.ListRequest, context: object
    ) -> vm_pb2.ListResponse:
        seen = self.service.vms.listed_for(current())
        return vm_pb2.ListResponse(vms=[self._told(vm) for vm in seen])

    def _told(self, vm: Vm) -> vm_pb2.Vm:
        return messages.vm(vm, self.member.fleet.name if self.member else "")

    @answers(Right.SEE)
    @anywhere(_VMS)
    async def Get(self, request: vm_pb2.GetRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return self._told(self.service.vms.see(request.id, current()))

    @answers(Right.USE)
    @anywhere(_VMS)
    async def Shutdown(  # noqa: N802
        self, request: vm_pb2.ShutdownRequest, context: object
    ) -> vm_pb2.Vm:
        vm = self.service.vms.get(request.id, current())
        wanted = messages.shutdown_request(request)
        await trio_as_aio(self.service.end)(vm, wanted.mode)
        return self._told(vm)

    @answers(Right.USE)
    @anywhere(_VMS)
    async def Delete(  # noqa: N802
        self, request: vm_pb2.DeleteRequest, context: object
    ) -> empty_pb2.Empty:
        await trio_as_aio(self.service.vms.delete)(self.service.vms.get(request.id, current()))
        return empty_pb2.Empty()

    @answers(Right.USE)
    @anywhere(_VMS)
    async def Pause(self, request: vm_pb2.PauseRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.pause, request.id)

    @answers(Right.USE)
    @anywhere(_VMS)
    async def Resume(self, request: vm_pb2.ResumeRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.resume, request.id)

    @answers(Right.USE)
    @anywhere(_VMS)
    async def Reset(self, request: vm_pb2.ResetRequest, context: object) -> vm_pb2.Vm:  # noqa: N802
        return await self._control(control.reset, request.id)

    async def _control(self, act: Callable[[Vm], Awaitable[None]], vm_id: str) -> vm_pb2.Vm:
        vm = self.service.vms.get(vm_id, current())
        await trio_as_aio(act)(vm)
        return self._told(vm)

    @answers(Right.SEE)
    @anywhere(_VMS)
    async def Computation(  # noqa: N802
        self, request: vm_pb2.ComputationRequest, context: object
    ) -> vm_pb2.ComputationState:
        vm = self.service.vms.get(request.id, current())
        dialled = self.service.vms.dialled
        return vm_pb2.ComputationState(state=await trio_as_aio(computation.state)(vm, dialled))

    @answers(Right.USE)
    @anywhere(_VMS)
    async def StopComputation(  # noqa: N802
        self, request: vm_pb2.StopComputationRequest, context: object
    ) -> vm_pb2.Vm:
        vm = self.service.vms.get(request.id, current())
        await trio_as_aio(computation.stop)(vm, self.service.vms.dialled)
        return self._told(vm)

    @answers(Right.SEE)
    async def Watch(self, request: vm_pb2.WatchRequest, context: Context) -> None:  # noqa: N802
        wanted, position = messages.events_request(request), messages.position(request, self.member)
        with self._readers.one_more(who()):
            asked = self.service, self.member, wanted, position
            await trio_as_aio(watching.tell)(*asked, aio_as_trio(context.write))
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the reader fell behind, or the supervisor stops; go on after the last sequence",
        )
