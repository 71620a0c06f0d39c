"""From a JSON body to one of `supervisor.api.requests`: errors name the member.

An unknown member is an error. The bytes of a computation are an array of numbers or base64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import cattrs
import trio
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from quart import request

from supervisor.api.http import streamed_json
from supervisor.api.http.bodies import Incoming  # noqa: TC001
from supervisor.api.requests import Then
from supervisor.api.words import (
    Attest,
    Base64,
    Count,
    HostRequest,
    Labels,
    Limit,
    Memory,
    Nonce,
    Pem,
    attest,
    base64_text,
    count,
    host,
    labels,
    memory_limit,
    nonce,
    one_of,
    parties,
    pem,
    tee_policy,
    time_limit,
    ttl,
)
from supervisor.config import Forwards, Policy, RestartPolicy, Tee, TemplateUse
from supervisor.errors import InvalidRequest, UnsupportedMedia, nearest
from supervisor.parties import Parties
from supervisor.state.record import EndMode

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Handler = TypeVar("Handler", bound="Callable[..., object]")

#: The one content type beside JSON.
FORM = "multipart/form-data"

#: Characters of an unknown member's name that an error shows.
_LONGEST_NAME = 64
#: Bodies are decoded one piece at a time, in turn, so that the loop has time for its VMs.
_turn = trio.Lock()


def takes_forms(handler: Handler) -> Handler:
    """Declare that a handler takes `FORM` as well. A page can send one: `check_origin` sees it."""
    handler.takes_forms = True  # type: ignore[attr-defined]
    return handler


def parse(cls: type[T], text: bytes, **others: object) -> T:
    """A part of a form that is JSON, as a ``cls``.

    :param others: members that have parts of their own
    :raises InvalidRequest: names the wrong member
    """
    body = streamed_json.Body()
    for at in range(0, len(text), streamed_json.PIECE):
        body.feed(text[at : at + streamed_json.PIECE])
    return _structure(cls, others | body.finish())


async def read(cls: type[T]) -> T:
    """The present request's body as a ``cls``.

    :raises InvalidRequest: names the wrong member; UnsupportedMedia if the body is not JSON
    """
    _check_type()
    if encoding := request.content_encoding:
        raise UnsupportedMedia(
            f"the body is encoded as {encoding}", advice="send it without Content-Encoding"
        )
    body, arrived = streamed_json.Body(), bytearray()
    async for part in incoming():
        arrived += part
        # Whole pieces alone: a body may come a byte at a time, and each takes a look at all of it.
        while len(arrived) >= streamed_json.PIECE:
            async with _turn:
                body.feed(bytes(arrived[: streamed_json.PIECE]))
            del arrived[: streamed_json.PIECE]
    async with _turn:
        body.feed(bytes(arrived))
    return _structure(cls, body.finish())


async def read_optional(cls: type[T]) -> T:
    """The same; a request without a body gets the defaults."""
    return cls() if await incoming().is_empty() else await read(cls)


async def check_type(handler: Callable[..., object]) -> None:
    """For each request, also if its handler reads no body: browsers send others than JSON unasked.

    :raises UnsupportedMedia: if the body is not JSON, and the handler does not take others
    """
    if getattr(handler, "takes_bytes", False):
        return
    if getattr(handler, "takes_forms", False) and request.mimetype == FORM:
        return
    if not await incoming().is_empty():
        _check_type()


def takes_bytes(handler: Handler) -> Handler:
    """Declare that a handler takes a body of any type as it is. No browser sends a PUT unasked."""
    handler.takes_bytes = True  # type: ignore[attr-defined]
    return handler


def _check_type() -> None:
    if request.mimetype != "application/json":
        given = (request.content_type or "none")[:_LONGEST_NAME]
        raise UnsupportedMedia(
            f"the content type must be application/json, it is {given}",
            advice="send the header 'Content-Type: application/json'",
        )


def incoming() -> Incoming:
    """The present request's body."""
    body: Incoming = request.body  # type: ignore[assignment]
    return body


def _structure(cls: type[T], members: dict[str, Any]) -> T:
    try:
        return _converter.structure(members, cls)
    except ClassValidationError as group:
        raise _first_problem(cls, group) from None


def _first_problem(cls: type, group: ClassValidationError) -> InvalidRequest:
    # A misspelt name is an unknown member and a missing one: the unknown one explains both.
    problem = min(group.exceptions, key=lambda one: not isinstance(one, ForbiddenExtraKeysError))
    known = [field.name for field in attrs.fields(cls)]
    if isinstance(problem, InvalidRequest):
        return problem
    if isinstance(problem, ForbiddenExtraKeysError):
        name = min(problem.extra_fields)
        name = name[:_LONGEST_NAME]
        missing = {one.args[0] for one in group.exceptions if isinstance(one, KeyError)}
        # Whoever sends a computation of JSON as the body has the one for the other.
        advice = "the computation itself goes into the member computation; 'qmp-supervisor run'"
        return InvalidRequest(
            f"{name!r} is not a member{nearest(name, known)}",
            member=name,
            advice=f"{advice} takes its file as it is" if "computation" in missing else "",
        )
    if isinstance(problem, KeyError):
        return InvalidRequest(
            f"{problem.args[0]!r} is missing",
            member=problem.args[0],
            advice=f"the members are {', '.join(known)}",
        )
    return InvalidRequest(str(problem))


def _computation(value: object, _: type) -> bytes:
    match value:
        case bytes():
            return value
        case str() | list():
            return streamed_json.decoded(value)
    raise InvalidRequest(
        "computation must be an array of numbers from 0 to 255, or a base64 string",
        member="computation",
    )


def _keep_disk(value: object, _: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest("keep_disk must be true or false", member="keep_disk")
    return value


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(bytes, _computation)
_converter.register_structure_hook(Then, lambda given, _: one_of(Then, "then", given))
_converter.register_structure_hook(Count | None, lambda given, _: count(given))
_converter.register_structure_hook(Limit | None, lambda given, _: time_limit(given))
_converter.register_structure_hook(Memory | None, lambda given, _: memory_limit(given))
_converter.register_structure_hook(EndMode, lambda given, _: one_of(EndMode, "mode", given))
_converter.register_structure_hook(
    RestartPolicy | None, lambda given, _: one_of(RestartPolicy, "restart", given)
)
_converter.register_structure_hook(
    TemplateUse | None, lambda given, _: one_of(TemplateUse, "template", given)
)
_converter.register_structure_hook(
    Forwards | None, lambda given, _: one_of(Forwards, "forwards", given)
)
_converter.register_structure_hook(Tee | None, lambda given, _: one_of(Tee, "tee", given))
_converter.register_structure_hook(Policy | None, lambda given, _: tee_policy(given))
_converter.register_structure_hook(Attest | None, lambda given, _: attest(given))
_converter.register_structure_hook(Base64, lambda given, _: base64_text(given))
_converter.register_structure_hook(Base64 | None, lambda given, _: base64_text(given))
_converter.register_structure_hook(Labels | None, lambda given, _: labels(given))
_converter.register_structure_hook(HostRequest | None, lambda given, _: host(given))
_converter.register_structure_hook(Parties | None, lambda given, _: parties(given))
_converter.register_structure_hook(Nonce, lambda given, _: nonce(given))
_converter.register_structure_hook(Pem | None, lambda given, _: pem(given))
_converter.register_structure_hook(float | None, lambda given, _: ttl(given))
_converter.register_structure_hook(bool | None, _keep_disk)
