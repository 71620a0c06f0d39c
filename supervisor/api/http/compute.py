"""Algorithms and data sets to a VM's agent, and the results that it computes of them."""

from __future__ import annotations

import base64
import re
import sys
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request

from supervisor.agent.computing import Part
from supervisor.api.callers import current, needs
from supervisor.api.http import json_body
from supervisor.api.http.open_file import OpenFile
from supervisor.api.requests import ComputeRequest, Then
from supervisor.api.words import part_number
from supervisor.caller import Right
from supervisor.errors import InvalidRequest, TooLarge, UnsupportedMedia
from supervisor.parties import RESULT
from supervisor.vm import compute

if TYPE_CHECKING:
    from supervisor.runs.service import Service
    from supervisor.vm.vm import Vm

#: RFC 9530's words for a digest of the content. Without an encoding they mean the same.
_DIGESTS = ("Content-Digest", "Repr-Digest")
#: In them, by RFC 9651: a byte sequence by its name.
_SHA256 = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):(?=\s*(?:[,;]|$))")
#: Of a body: the guest's room bounds it.
ANY_LENGTH = sys.maxsize
#: The first is for who accepts all.
_FORMS = ("application/json", "application/octet-stream")


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("compute", __name__, url_prefix="/vms")

    @routes.put("/<vm_id>/algorithm")
    @needs(Right.USE)
    @json_body.takes_bytes
    async def put_algorithm(vm_id: str) -> Any:
        return await _put(vm_id, None)

    @routes.put("/<vm_id>/data/<number>")
    @needs(Right.USE)
    @json_body.takes_bytes
    async def put_data(vm_id: str, number: str) -> Any:
        return await _put(vm_id, number)

    async def _put(vm_id: str, number: str | None) -> Any:
        service.vms.see(vm_id, current())
        part = Part(None if number is None else part_number(number))
        vm = service.vms.get_for(str(part), vm_id, current())
        _check_headers()
        body = json_body.incoming()
        body.allow(ANY_LENGTH)
        if (body.announced or 0) > ANY_LENGTH:
            raise TooLarge(f"a body has {ANY_LENGTH} bytes at most")
        stored = await compute.send(vm, part, body, body.announced, _sha256())
        return {"vm": vm.id, "part": str(part), "size": stored.size, "sha256": stored.sha256}

    @routes.post("/<vm_id>/compute")
    @needs(Right.USE)
    async def run_algorithm(vm_id: str) -> Any:
        vm = service.vms.get_for(RESULT, vm_id, current())
        wanted = await json_body.read_optional(ComputeRequest)
        outcome = await compute.run(vm, wishes(wanted), then_end=wanted.then is Then.END)
        return {"vm": vm.id, **outcome}

    @routes.get("/<vm_id>/outcome")
    @needs(Right.USE)
    async def outcome(vm_id: str) -> Any:
        vm = service.vms.get_for(RESULT, vm_id, current())
        return {"vm": vm.id, **await compute.read_outcome(vm)}

    @routes.get("/<vm_id>/result")
    @needs(Right.USE)
    async def result(vm_id: str) -> Any:
        vm = service.vms.get_for(RESULT, vm_id, current())
        return await result_of(vm)

    return routes


def wishes(wanted: ComputeRequest) -> compute.Wishes:
    return compute.Wishes(wanted.time_limit or 0, wanted.memory_limit or 0, wanted.datasets or 0)


async def result_of(vm: Vm) -> Response:
    """The answer to the present request is the VM's result, or a part of it.

    :raises Busy: if there is none
    """
    file, outcome = await compute.open_result(vm)
    size = outcome["result_size"]
    digest = base64.b64encode(bytes.fromhex(outcome["result_sha256"])).decode()
    body = OpenFile(file, size)
    answer = Response(
        body,
        content_type="application/octet-stream",
        headers={
            "Content-Length": str(size),
            "Accept-Ranges": "bytes",
            "ETag": f'"{outcome["result_sha256"]}"',
            "Repr-Digest": f"sha-256=:{digest}:",
            # Else a browser might run what a guest wrote.
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": "attachment; filename=result",
        },
    )
    try:
        await answer.make_conditional(request, accept_ranges=True, complete_length=size)
    except BaseException:
        body.close()
        raise
    if answer.response is not body:  # the client has it already
        body.close()
    return answer


def wants_bytes() -> bool:
    """Whether the present request wants the result itself in its answer."""
    return request.accept_mimetypes.best_match(_FORMS) == _FORMS[1]


def _check_headers() -> None:
    """:raises InvalidRequest: if the body is not all of it; UnsupportedMedia if it is encoded"""
    if "Content-Range" in request.headers:
        raise InvalidRequest("a part cannot be sent in pieces: send all of it")
    if encoding := request.content_encoding:
        raise UnsupportedMedia(
            f"the body is encoded as {encoding}", advice="send it without Content-Encoding"
        )


def _sha256() -> str:
    """What the client says that the content's SHA-256 is, in hexadecimal digits; empty if nothing.

    :raises InvalidRequest: if it gives a digest that says no SHA-256, or two
    """
    given = [line for name in _DIGESTS for line in request.headers.getlist(name)]
    found = {base64.b64decode(one[1]).hex() for line in given for one in _SHA256.finditer(line)}
    if len(found) > 1 or (given and not found):
        raise InvalidRequest(f"{' and '.join(_DIGESTS)} must say one SHA-256, as sha-256=:BASE64:")
    return "".join(found)
