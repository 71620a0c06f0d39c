"""Calls about VMs that other members of the fleet have: passed on, as the messages that they are.

A member answers them on the port for members, over HTTP, in the name of their callers.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from supervisor.api import trace
from supervisor.api.callers import check, current, right_of
from supervisor.api.fleet.asked import Asked
from supervisor.bridge import aio_as_trio, trio_as_aio
from supervisor.errors import (
    FleetError,
    InvalidRequest,
    MemberBroke,
    RefusedElsewhere,
    VmNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from google.protobuf.descriptor import ServiceDescriptor

    from supervisor.api.fleet.member import Member

Method = TypeVar("Method", bound="Callable[..., Any]")
Answer = TypeVar("Answer", bound=Message)

#: The longest time that a list waits for a member.
_LIST_S = 5.0


def anywhere(described: ServiceDescriptor) -> Callable[[Method], Method]:
    """A servicer's method for VMs on any host. The servicer has ``service`` and ``member``."""
    return lambda method: _anywhere(described, method)


def _anywhere(described: ServiceDescriptor, method: Any) -> Any:
    """asyncio-flavoured, as the method is."""
    name = f"{described.full_name}/{method.__name__}"
    answer = GetMessageClass(described.methods_by_name[method.__name__].output_type)

    @wraps(method)
    async def call(self: Any, request: Any, context: object) -> Any:
        vm_id = getattr(request, "id", "") or getattr(request, "cvm_id", "")
        if self.member is None:
            return await method(self, request, context)
        with denying_alike(self.member, vm_id):
            passed = None
            if vm_id not in self.service.vms:
                asked = self.member, vm_id, name, request.SerializeToString()
                passed = await trio_as_aio(_pass_on)(*asked, answer)
            return await method(self, request, context) if passed is None else passed

    call.is_anywhere = True  # type: ignore[attr-defined]
    return call


@contextmanager
def denying_alike(member: Member, vm_id: str) -> Iterator[None]:
    """Another caller's VM is denied as one that nobody has, whichever host has it.

    :raises HostLost: if one that is lost may have it
    """
    try:
        yield
    except (VmNotFound, RefusedElsewhere) as error:
        if not isinstance(error, RefusedElsewhere) or error.kind is VmNotFound:
            member.fleet.check_lost(vm_id)
        raise


def everywhere(described: ServiceDescriptor) -> Callable[[Method], Method]:
    """A servicer's method that lists VMs: those of all hosts, oldest first."""
    return lambda method: _everywhere(described, method)


def _everywhere(described: ServiceDescriptor, method: Any) -> Any:
    """asyncio-flavoured, as the method is."""
    name = f"{described.full_name}/{method.__name__}"

    @wraps(method)
    async def call(self: Any, request: Any, context: object) -> Any:
        response = await method(self, request, context)
        if self.member is not None:
            asked = self.member, name, request.SerializeToString(), type(response)
            answers, missing = await trio_as_aio(ask_all)(*asked)
            for answer in answers:
                response.MergeFrom(answer)
            # Not as a time: another member's may be none.
            response.vms.sort(key=lambda vm: (vm.created_at.seconds, vm.created_at.nanos))
            response.missing.extend(missing)
        return response

    call.is_anywhere = True  # type: ignore[attr-defined]
    return call


async def ask_all(
    member: Member, name: str, message: bytes, kind: type[Answer]
) -> tuple[list[Answer], list[str]]:
    """What each of the others answers, and who has not in time."""
    others = [host for host in member.fleet.members.hosts if host != member.fleet.name]
    answers: dict[str, Answer] = {}

    async def ask_one(host: str) -> None:
        with suppress(FleetError):
            answers[host] = await ask(member, host, name, message, kind)

    with trio.move_on_after(_LIST_S):
        async with trio.open_nursery() as nursery:
            for host in others:
                nursery.start_soon(ask_one, host)
    lost = member.fleet.members.lost
    return list(answers.values()), sorted({*others, *lost} - set(answers))


async def find(member: Member, vm_id: str) -> str | None:
    """Another member that has a VM; None if none says that it has it."""
    host = await member.fleet.find(vm_id)
    return None if host == member.fleet.name else host


async def _pass_on(
    member: Member, vm_id: str, name: str, message: bytes, kind: type[Message]
) -> Message | None:
    """What the member answers that has a VM; None if no other one says that it has it."""
    host = await find(member, vm_id)
    return None if host is None else await ask(member, host, name, message, kind)


async def ask(member: Member, host: str, name: str, message: bytes, kind: type[Answer]) -> Answer:
    """What a member answers to one call.

    :param name: of the method, with its service's
    :raises MemberBroke: also if it answers with something else
    :raises RefusedElsewhere:
    """
    id_ = trace.present().id
    asked = Asked(current(), "POST", f"/rpc/{name}", content=message, request_id=id_)
    content = await member.others.read(host, await member.others.ask(host, asked))
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise MemberBroke(f"the member {host} does not answer {name}: {error}") from error


class Calls:
    """Answers what other members pass on.

    :param servicers: by their services
    """

    def __init__(self, servicers: Mapping[ServiceDescriptor, object]) -> None:
        self._methods = {
            f"{described.full_name}/{method.name}": (
                servicer,
                getattr(servicer, method.name),
                GetMessageClass(method.input_type),
            )
            for described, servicer in servicers.items()
            for method in described.methods
            if hasattr(getattr(servicer, method.name), "is_anywhere")
        }

    async def __call__(self, name: str, message: bytes) -> bytes:
        """trio-flavoured.

        :raises InvalidRequest: if there is no such method, or it takes no such message
        :raises SupervisorError: as the method
        """
        if name not in self._methods:
            raise InvalidRequest(f"no other member is asked for {name[:64]!r}")
        servicer, method, kind = self._methods[name]
        check(right_of(method))
        try:
            request = kind.FromString(message)
        except DecodeError as error:
            raise InvalidRequest(f"no message for {name}: {error}") from None
        # The method itself, that asks no other member, and whose errors are answered over HTTP.
        answer = await aio_as_trio(inspect.unwrap(method.__func__))(servicer, request, None)
        return bytes(answer.SerializeToString())
