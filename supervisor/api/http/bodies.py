"""From a JSON body to a value: every member known, each of its type, errors by member."""

from __future__ import annotations

import base64
import binascii
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs
import cattrs
import trio
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from quart import request

from supervisor.config import RestartPolicy, TemplateUse
from supervisor.config.settings import parse_seconds
from supervisor.errors import InvalidRequest, UnsupportedMedia, nearest
from supervisor.state.record import EndMode, RunOptions, request_hash

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

    from supervisor.config import Config

T = TypeVar("T")
#: Seconds; written as a duration, Go's or ISO 8601's.
Ttl = NewType("Ttl", float)

#: What is shown of a name that is not a member's.
_LONGEST_NAME = 64

#: Arrays and objects in a body. One array is all that is needed; millions take gigabytes.
_MAX_CONTAINERS = 64
#: The largest bodies take memory by the hundred megabytes and hold the interpreter's lock.
_parsers = trio.CapacityLimiter(2)


@attrs.frozen
class RunRequest:
    """``POST /run``. The bytes come as an array of 0..255 or as a base64 string."""

    computation: bytes
    ttl: Ttl | None = None
    restart: RestartPolicy | None = None
    keep_disk: bool | None = None
    template: TemplateUse | None = None

    def options(self, config: Config, idempotency_key: str | None) -> RunOptions:
        """What is asked for, with the supervisor's defaults for what is not."""
        keep = self.keep_disk
        return RunOptions(
            ttl_s=config.life.ttl_s if self.ttl is None else self.ttl,
            restart=self.restart or config.life.restart,
            keep_disk=config.retention.disks if keep is None else keep,
            template=self.template or config.start.templates,
            idempotency_key=idempotency_key,
            request_hash=request_hash(
                self.computation, self.ttl, self.restart, keep, template=self.template
            )
            if idempotency_key
            else "",
        )


@attrs.frozen
class ShutdownRequest:
    """``POST /vms/<id>/shutdown``."""

    mode: EndMode = EndMode.GRACEFUL


async def read(cls: type[T]) -> T:
    """The present request's body as a ``cls``.

    :raises InvalidRequest: by the member that is wrong; UnsupportedMedia if it is not JSON
    """
    if request.mimetype != "application/json":
        given = request.content_type or "none"
        raise UnsupportedMedia(f"the content type must be application/json, it is {given}")
    body: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]
    # Megabytes of numbers take their time; the loop has VMs to listen to.
    return await trio.to_thread.run_sync(partial(_parse, cls, body), limiter=_parsers)


async def read_optional(cls: type[T]) -> T:
    """The same, but all defaults for a request without a body."""
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
    # What is too much explains what is missing: a misspelt name is both.
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
                # Wrapped lines are well-formed to Go's decoder, so to the original.
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
    # Whether each is a number is asked of the whole first: there can be sixteen million.
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


def _one_of(cls: type[enum.StrEnum], member: str) -> Callable[[object, Any], Any]:
    words = [one.value for one in cls]

    def parse(value: object, _: Any) -> enum.StrEnum:
        if value not in words:
            raise InvalidRequest(f"{member} must be one of {', '.join(words)}", member=member)
        return cls(value)

    return parse


def _ttl(value: object, _: Any) -> float:
    try:
        return parse_seconds(value if isinstance(value, str) else "")
    except ValueError as error:
        raise InvalidRequest(f"ttl {error}", member="ttl") from None


def _keep_disk(value: object, _: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest("keep_disk must be true or false", member="keep_disk")
    return value


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(bytes, _computation)
_converter.register_structure_hook(EndMode, _one_of(EndMode, "mode"))
_converter.register_structure_hook(RestartPolicy | None, _one_of(RestartPolicy, "restart"))
_converter.register_structure_hook(TemplateUse | None, _one_of(TemplateUse, "template"))
_converter.register_structure_hook(Ttl | None, _ttl)
_converter.register_structure_hook(bool | None, _keep_disk)
