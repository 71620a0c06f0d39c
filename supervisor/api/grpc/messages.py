"""From protocol buffers and metadata to requests; from VMs and events to protocol buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from supervisor.api.requests import EventsRequest, RunRequest, ShutdownRequest
from supervisor.api.words import event_number, host_of_json, one_of, tee_policy
from supervisor.config import Forwards, Tee, TemplateUse
from supervisor.errors import InvalidRequest
from supervisor.fleet.positions import Position
from supervisor.pb import vm_pb2
from supervisor.qemu.cmdline import shell_line
from supervisor.state.record import EndMode, EventKind
from supervisor.state.status import Status, VmState
from supervisor.vm import claims

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from supervisor.pb import manager_pb2
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


def position(message: vm_pb2.WatchRequest, member: object) -> Position | None:
    """Where a reader of all hosts' events goes on.

    :param member: None without a fleet
    :raises InvalidRequest:
    """
    if member is None or message.id:
        if message.HasField("position"):
            raise InvalidRequest("position needs a fleet, and no id", member="position")
        return None
    if message.HasField("position"):
        return Position.parse(message.position)
    if message.after:
        problem = "each host of a fleet has numbers of its own: without an id, say position"
        raise InvalidRequest(problem, member="after")
    return Position(0.0) if message.HasField("after") else None


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


def event(told: Mapping[str, Any], at: Position | None = None) -> vm_pb2.Event:
    """One as `Event.to_dict` has it, or another member of the fleet.

    :param at: the reader's position after it
    :raises Exception: if a member's is none
    """
    data = dict(told)
    message = vm_pb2.Event(
        id=data.pop("vm") or "",
        sequence=data.pop("sequence"),
        kind=data.pop("event"),
        host=data.pop("host", ""),
        position=str(at or ""),
    )
    message.at.FromJsonString(data.pop("at"))
    if message.kind == EventKind.STATE:
        status = Status(VmState(data.pop("state")), data.pop("reason"))
        message.state, message.reason = _state(status), status.reason
    message.data.update(data)
    return message


def present_state(one: vm_pb2.Vm, sequence: int, at: Position | None = None) -> vm_pb2.Event:
    """A VM's state as it is now, for a reader who did not see the change that led to it.

    :param at: the reader's position
    """
    message = vm_pb2.Event(
        id=one.id,
        state=one.state,
        reason=one.reason,
        sequence=sequence,
        kind=EventKind.STATE,
        host=one.host,
        position=str(at or ""),
    )
    message.at.GetCurrentTime()
    return message


def _state(status: Status) -> vm_pb2.VmState:
    return cast("vm_pb2.VmState", vm_pb2.VmState.Value(f"VM_STATE_{status.state.name}"))
