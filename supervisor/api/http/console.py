"""``GET /vms/<id>/console``: a WebSocket to the serial console of a VM.

Binary messages are what the guest prints, and what is typed. Messages of text are JSON, about who
writes. Source: RFC 6455.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, websocket

from supervisor.api import trace
from supervisor.api.callers import current, needs, standing, who
from supervisor.api.http.console_elsewhere import talk
from supervisor.api.http.console_protocol import AGAIN, END, POLICY, WRITE, accept, close
from supervisor.api.http.elsewhere import Elsewhere
from supervisor.caller import Right
from supervisor.errors import NotTheirs, Unauthenticated, UnknownCertificate
from supervisor.vm.console import reading, run, take
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.api.fleet.member import Member
    from supervisor.api.rates import AtOnce
    from supervisor.runs.service import Service
    from supervisor.vm.console_readers import Console, Reader
    from supervisor.vm.vm import Vm


def blueprint(service: Service, readers: AtOnce, member: Member | None) -> Blueprint:
    routes = Blueprint("console", __name__, url_prefix="/vms")
    elsewhere = Elsewhere(member.others) if member and member.asks else None

    @routes.websocket("/<vm_id>/console")
    @needs(Right.USE)
    async def console(vm_id: str) -> Response | None:
        if member and elsewhere and vm_id not in service.vms:
            name = await elsewhere.find(vm_id)
            if name is not None:
                with readers.one_more(who()):
                    silence_s = 3 * service.config.timing.sse_keep_alive_s
                    return await talk(member.others, name, vm_id, silence_s)
        vm = service.vms.get(vm_id, current())
        if vm.record.options.parties:
            # Who types there might get what is of its parties alone.
            raise NotTheirs(vm.id, "the console", "nobody, for it has parties")
        check_again = standing()
        with readers.one_more(who()), reading(vm, current().name) as reader:
            await accept()
            service.vms.spawn(run, vm)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_print, reader, check_again, nursery.cancel_scope)
                nursery.start_soon(_tell, vm.console, reader)
                await _listen(vm, reader, check_again)
        return None

    return routes


async def _print(reader: Reader, check_again: Callable[[], None], scope: trio.CancelScope) -> None:
    """Send what the guest prints; at its end, or the reader's, say why and end all."""
    code, why = END, "the VM has ended"
    try:
        async with move_on_when(reader.wait_lagged):
            while piece := await reader.take():
                check_again()
                await websocket.send(piece)
    except (Unauthenticated, UnknownCertificate):
        code, why = POLICY, "the caller may read no more"
    if reader.lagged:
        code, why = AGAIN, "what the guest printed came faster than it was read"
    await close(code, why)
    scope.cancel()


async def _tell(console: Console, reader: Reader) -> None:
    """Say who writes, now and whenever that changes."""
    while True:
        written, writer = reader.written.next(), console.writer
        state = {"writer": writer.name if writer else None, "you": writer is reader}
        await websocket.send(json.dumps(state))
        await written.wait()


async def _listen(vm: Vm, reader: Reader, check_again: Callable[[], None]) -> None:
    """Type what arrives. Who is not the writer is not heard, until he asks for it."""
    while True:
        message: Any = await websocket.receive()
        check_again()
        if isinstance(message, bytes):
            await vm.console.write(reader, message)
        elif message == WRITE:
            trace.present().changed = True
            await take(vm, reader)
