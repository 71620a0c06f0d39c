"""The computation: which fields it has, and how a caller sends it over HTTP."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A computation that has `reply_to` load all that it loads for any.
SPECIMEN = b'{"id": "1", "start_time": "2024-01-01T00:00:00.5Z", "metadata": {"a": [1e30]}}'
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII
)


def reply_to(computation: bytes) -> bytes:
    """The agent's reply to *computation*: its known fields in order, as compact JSON.

    Empty fields and null are left out. ValueError names the field at fault.
    """
    try:
        members = json.loads(computation.decode())
        if not isinstance(members, dict):
            raise ValueError("the computation is not a JSON object")
        fields = {name: members[name] for name in _FIELDS if members.get(name) is not None}
        for name, value in fields.items():
            fits, kind = _FIELDS[name]
            if not fits(value):
                raise ValueError(f"{name} is not {kind}")
        reply = json.dumps(
            {name: value for name, value in fields.items() if value},
            allow_nan=False,
            ensure_ascii=False,
            separators=(",", ":"),
        )
    except RecursionError:
        raise ValueError("the computation is nested too deeply") from None
    return reply.encode(errors="replace")  # JSON can spell half a surrogate pair, UTF-8 cannot


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_int32(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_time(value: object) -> bool:
    # Imported here because it takes long and the agent should answer before.
    from datetime import datetime

    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:  # no such day, or no such minute
        return False
    return True


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_STRING = (_is_string, "a string")
_STRINGS = (_is_strings, "an array of strings")
_TIME = (_is_time, "an RFC 3339 time")
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "id": _STRING,
    "name": _STRING,
    "description": _STRING,
    "status": _STRING,
    "owner": _STRING,
    "start_time": _TIME,
    "end_time": _TIME,
    "datasets": _STRINGS,
    "algorithms": _STRINGS,
    "dataset_providers": _STRINGS,
    "algorithm_providers": _STRINGS,
    "result_consumers": _STRINGS,
    "ttl": (_is_int32, "a 32-bit integer"),
    "metadata": (_is_object, "an object"),
}


def parse_request(body: bytes) -> bytes:
    """The computation in the JSON *body*: an array of 0..255 or a base64 string. ValueError."""
    import base64

    try:
        request = json.loads(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    if not isinstance(request, dict) or set(request) != {"computation"}:
        raise ValueError("the body must be an object whose one member is computation")
    computation = request["computation"]
    if isinstance(computation, str):
        # base64(1) wraps what it writes.
        return base64.b64decode(re.sub("[\r\n]", "", computation), validate=True)
    if not isinstance(computation, list) or any(type(byte) is not int for byte in computation):
        raise ValueError("computation must be an array of integers or a base64 string")
    return bytes(computation)
