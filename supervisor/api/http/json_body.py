"""From a JSON body to one of `supervisor.api.requests`: errors name the member.

An unknown member is an error. The bytes of a computation are an array of numbers or base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from functools import partial
from typing import Any, TypeVar

import attrs
import cattrs
import trio
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from quart import request

from supervisor.api.requests import one_of, ttl
from supervisor.config import RestartPolicy, TemplateUse
from supervisor.errors import InvalidRequest, UnsupportedMedia, nearest
from supervisor.state.record import EndMode

T = TypeVar("T")

#: Characters of an unknown member's name that an error shows.
_LONGEST_NAME = 64

#: Arrays and objects in a body. A request needs one array; millions take gigabytes.
_MAX_CONTAINERS = 64
#: The largest bodies take memory by the hundred megabytes and hold the interpreter's lock.
_parsers = trio.CapacityLimiter(2)


async def read(cls: type[T]) -> T:
    """The present request's body as a ``cls``.

    :raises InvalidRequest: names the wrong member; UnsupportedMedia if the body is not JSON
    """
    if request.mimetype != "application/json":
        given = request.content_type or "none"
        raise UnsupportedMedia(f"the content type must be application/json, it is {given}")
    if encoding := request.content_encoding:
        raise UnsupportedMedia(
            f"the body is encoded as {encoding}", advice="send it without Content-Encoding"
        )
    body: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]
    # Megabytes of numbers take long to parse, and the loop has VMs to listen to.
    return await trio.to_thread.run_sync(partial(_parse, cls, body), limiter=_parsers)


async def read_optional(cls: type[T]) -> T:
    """The same; a request without a body gets the defaults."""
    return await read(cls) if await request.get_data() else cls()


def _parse(cls: type[T], body: bytes) -> T:
    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS:
        raise InvalidRequest("the body is nested deeper or holds more than any request does")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return _converter.structure(value, cls)
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
        return InvalidRequest(f"{name!r} is not a member{nearest(name, known)}", member=name)
    if isinstance(problem, KeyError):
        return InvalidRequest(f"{problem.args[0]!r} is missing", member=problem.args[0])
    return InvalidRequest(str(problem))


def _computation(value: object, _: type) -> bytes:
    match value:
        case str():
            try:
                # Go's decoder, and so the original, accepts base64 in lines.
                return base64.b64decode(re.sub("[\r\n]", "", value), validate=True)
            except (binascii.Error, ValueError) as error:
                raise InvalidRequest(
                    f"computation is not base64: {error}", member="computation"
                ) from None
        case list():
            return _from_numbers(value)
    raise InvalidRequest(
        "computation must be an array of numbers from 0 to 255, or a base64 string",
        member="computation",
    )


def _from_numbers(numbers: list[object]) -> bytes:
    # There can be sixteen million numbers, so the common case needs no loop of Python's.
    if set(map(type, numbers)) <= {int}:
        try:
            return bytes(numbers)  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            pass
    for index, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number <= 255:
            member = f"computation[{index}]"
            break
    shown = json.dumps(number)[:40]
    raise InvalidRequest(f"{member} is {shown}, not a number from 0 to 255", member=member)


def _keep_disk(value: object, _: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest("keep_disk must be true or false", member="keep_disk")
    return value


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(bytes, _computation)
_converter.register_structure_hook(EndMode, lambda given, _: one_of(EndMode, "mode", given))
_converter.register_structure_hook(
    RestartPolicy | None, lambda given, _: one_of(RestartPolicy, "restart", given)
)
_converter.register_structure_hook(
    TemplateUse | None, lambda given, _: one_of(TemplateUse, "template", given)
)
_converter.register_structure_hook(float | None, lambda given, _: ttl(given))
_converter.register_structure_hook(bool | None, _keep_disk)
