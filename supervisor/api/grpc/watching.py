"""``Watch``: what happens to VMs, as messages, whichever host has them. trio-flavoured."""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog
import trio

from supervisor.api import trace
from supervisor.api.callers import current, standing
from supervisor.api.fleet.asked import Asked
from supervisor.api.grpc import messages
from supervisor.api.grpc.anywhere import ask, ask_all, denying_alike, find
from supervisor.api.words import event_number
from supervisor.pb import vm_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.api.fleet.member import Member
    from supervisor.api.requests import EventsRequest
    from supervisor.fleet.positions import Position
    from supervisor.runs.service import Service

    Write = Callable[[vm_pb2.Event], Awaitable[None]]

log = structlog.stdlib.get_logger()

_SERVICE = vm_pb2.DESCRIPTOR.services_by_name["VmService"].full_name
#: What comes of another member's event that is none.
_NO_EVENT = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


async def tell(
    service: Service,
    member: Member | None,
    wanted: EventsRequest,
    position: Position | None,
    write: Write,
) -> None:
    """Tell a reader of events until there are no more.

    :param position: of a reader of all hosts' events; None: what happens from now on
    :raises Unauthenticated, UnknownCertificate: if the caller may read no more

    All in one task. If ``trio_as_aio`` stepped into ``follow`` and out of it separately, a reader
    who leaves at the wrong moment would cancel the step out, and ``follow`` would stay open.
    """
    if member and wanted.vm_id is None:
        return await _tell_all(service, member, position, write)
    if member is None or wanted.vm_id is None:
        return await _tell_here(service, wanted, write, "")
    with denying_alike(member, wanted.vm_id):
        host = None
        if wanted.vm_id not in service.vms:
            host = await find(member, wanted.vm_id)
        if host is not None:
            return await _tell_elsewhere(service, member, host, wanted, write)
        return await _tell_here(service, wanted, write, member.fleet.name)


async def _tell_here(service: Service, wanted: EventsRequest, write: Write, host: str) -> None:
    caller, check_again = current(), standing()
    quiet_s = service.config.timing.sse_keep_alive_s
    vms = service.vms
    seen = [vms.see(wanted.vm_id, caller)] if wanted.vm_id else vms.listed_for(caller)
    async with service.follow(caller, wanted.after, wanted.vm_id) as (old, news):
        if wanted.after is None:
            for one in [
                messages.present_state(messages.vm(vm, host), vm.record.sequence) for vm in seen
            ]:
                await write(one)
        async for event in old:
            check_again()
            await write(messages.event(event.to_dict()))
        while True:
            with trio.move_on_after(quiet_s) as quiet:
                try:
                    event = await news.receive()
                except trio.EndOfChannel:
                    return
            check_again()
            if not quiet.cancelled_caught:
                await write(messages.event(event.to_dict()))


async def _tell_all(
    service: Service, member: Member, position: Position | None, write: Write
) -> None:
    """Of all hosts."""
    check_again, caller = standing(), current()
    async with member.events.told(position) as told:
        async for one in told:
            check_again()
            if one is None:
                continue
            if one.event:
                await _write(write, one.event, one.event["host"], one.position)
            elif position is None:
                position = one.position
                asked = vm_pb2.ListRequest().SerializeToString()
                name = f"{_SERVICE}/List"
                answers, _ = await ask_all(member, name, asked, vm_pb2.ListResponse)
                seen = [messages.vm(vm, member.fleet.name) for vm in service.vms.listed_for(caller)]
                for answer in answers:
                    seen += answer.vms
                for vm in seen:
                    await write(messages.present_state(vm, 0, position))


async def _tell_elsewhere(
    service: Service, member: Member, host: str, wanted: EventsRequest, write: Write
) -> None:
    """Of a VM that another member has, as it tells it."""
    assert wanted.vm_id
    check_again, quiet_s = standing(), service.config.timing.sse_keep_alive_s
    query = "" if wanted.after is None else f"?after={wanted.after}"
    target = f"/vms/{quote(wanted.vm_id, safe='')}/events{query}"
    asked = Asked(current(), "GET", target, request_id=trace.present().id)
    answer = await member.others.begin(host, asked)
    if answer.status_code != HTTPStatus.OK:
        await member.others.read(host, answer)
    shown = wanted.after is not None
    async with aclosing(member.others.heard(host, answer, quiet_s)) as heard:
        async for number, event in heard:
            check_again()
            if event is not None:
                await _write(write, event, host)
            elif number.isdecimal() and not shown:
                shown = True
                sequence = event_number(number)
                message = vm_pb2.GetRequest(id=wanted.vm_id).SerializeToString()
                vm = await ask(member, host, f"{_SERVICE}/Get", message, vm_pb2.Vm)
                await write(messages.present_state(vm, sequence))


async def _write(write: Write, told: Any, host: str, position: Position | None = None) -> None:
    """:param told: an event, if the member is what it should be"""
    try:
        message = messages.event({**told, "host": host}, position)
    except _NO_EVENT as error:
        log.warning("what a host tells is no event", host=host, problem=repr(error))
        return
    await write(message)
