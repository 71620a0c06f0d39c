"""From protocol buffers and metadata to requests; from VMs and events to protocol buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from supervisor.api.requests import (
    EventsRequest,
    RunRequest,
    ShutdownRequest,
    event_number,
    host_of_json,
    one_of,
    tee_policy,
)
from supervisor.config import Forwards, Tee, TemplateUse
from supervisor.pb import vm_pb2
from supervisor.qemu.cmdline import shell_line
from supervisor.state.record import EndMode, EventKind
from supervisor.state.status import Status, VmState
from supervisor.vm import claims

if TYPE_CHECKING:
    import grpc

    from supervisor.pb import manager_pb2
    from supervisor.state.record import Event
    from supervisor.vm.vm import Vm

    Context = grpc.aio.ServicerContext[Any, Any]

_MODE = {
    vm_pb2.ShutdownRequest.MODE_GRACEFUL: EndMode.GRACEFUL,
    vm_pb2.ShutdownRequest.MODE_FORCE: EndMode.FORCE,
}


def run_request(message: manager_pb2.RunRequest, context: Context) -> RunRequest:
    """:raises InvalidRequest:"""
    template, forwards = metadata(context, "template"), metadata(context, "forwards")
    wanted = metadata(context, "host")
    tee, policy = metadata(context, "tee"), metadata(context, "tee-policy")
    return RunRequest(
        message.computation,
        template=None if template is None else one_of(TemplateUse, "template", template),
        forwards=None if forwards is None else one_of(Forwards, "forwards", forwards),
        tee=None if tee is None else one_of(Tee, "tee", tee),
        tee_policy=None if policy is None else tee_policy(policy),
        host=None if wanted is None else host_of_json(wanted),
    )


def shutdown_request(message: vm_pb2.ShutdownRequest) -> ShutdownRequest:
    """:raises InvalidRequest: for a number that is not one of the modes"""
    return ShutdownRequest(one_of(EndMode, "mode", _MODE.get(message.mode)))


def events_request(message: vm_pb2.WatchRequest) -> EventsRequest:
    """:raises InvalidRequest:"""
    after = event_number(message.after) if message.HasField("after") else None
    return EventsRequest(message.id or None, after)


def metadata(context: Context, name: str) -> str | None:
    """The first value of this name in the caller's metadata."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return None


def vm(one: Vm, host: str) -> vm_pb2.Vm:
    """:param host: the member of the fleet that has it; empty without a fleet"""
    message = vm_pb2.Vm(
        id=one.id,
        host=host,
        state=_state(one.status),
        reason=one.status.reason,
        command=shell_line(one.record.command),
        agent_ready=one.agent_ready,
        agent_problem=one.agent_problem,
        agent_protected=one.agent_protected,
        exit_code=one.record.exit_code,
        error=one.record.error or "",
        owner=one.record.owner,
        tee=one.record.options.tee,
        tee_policy=claims.tee_policy(one) or "",
        insecure=claims.insecure(one),
        forwards=[
            vm_pb2.Forward(
                guest_port=forward.guest_port,
                host_address=forward.host_address,
                host_port=forward.host_port,
            )
            for forward in one.record.forwards
        ],
    )
    message.created_at.FromDatetime(one.record.created_at)
    if one.record.ended_at:
        message.ended_at.FromDatetime(one.record.ended_at)
    return message


def event(one: Event) -> vm_pb2.Event:
    data = dict(one.data)
    message = vm_pb2.Event(id=one.vm_id or "", sequence=one.sequence, kind=one.kind)
    if one.kind is EventKind.STATE:
        status = Status(VmState(data.pop("state")), data.pop("reason"))
        message.state, message.reason = _state(status), status.reason
    message.data.update(data)
    message.at.FromDatetime(one.at)
    return message


def present_state(one: Vm) -> vm_pb2.Event:
    """A VM's state as it is now, for a reader who did not see the change that led to it."""
    message = vm_pb2.Event(
        id=one.id,
        state=_state(one.status),
        reason=one.status.reason,
        sequence=one.record.sequence,
        kind=EventKind.STATE,
    )
    message.at.GetCurrentTime()
    return message


def _state(status: Status) -> vm_pb2.VmState:
    return cast("vm_pb2.VmState", vm_pb2.VmState.Value(f"VM_STATE_{status.state.name}"))
