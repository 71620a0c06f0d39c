"""The computation, and how a caller sends it over HTTP.

Callers of the original agent, a Go program, get their computation back as Go's encoding/json
writes it, so this follows Go where it differs from Python's json.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# It takes all ways through `remarshal`, and so loads what they load.
SPECIMEN = b'{"id": "1", "start_time": "2024-01-01T00:00:00.5Z", "metadata": {"a": [1e30]}}'
ZERO_TIME = "0001-01-01T00:00:00Z"
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d+))?"
    r"(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
# Go escapes what HTML or JavaScript would trip over.
_GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def remarshal(computation: bytes) -> str:
    """*computation* as Go marshals it: known fields in order, empty ones left out, compact.

    Times are structs to Go, hence never empty: an absent one is the year 1. ValueError names the
    field at fault.
    """
    try:
        value = json.loads(computation.decode(), parse_constant=_no_constant)
        members = {} if value is None else value
        if not isinstance(members, dict):
            raise ValueError("the computation is not a JSON object")
        # Go matches member names regardless of case.
        folded = {name.lower(): member for name, member in members.items() if member is not None}
        fields = {name: convert(name, folded.get(name)) for name, convert in _FIELDS.items()}
        text = _encode({name: field for name, field in fields.items() if field})
    except RecursionError:
        raise ValueError("the computation is nested too deeply") from None
    # JSON can spell half a surrogate pair, UTF-8 cannot: Go puts U+FFFD there.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.translate(_GO_ESCAPES)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _string(name: str, value: object) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"{name} is not a string")
    return value or ""


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list | None):
        raise ValueError(f"{name} is not an array of strings")
    return [_string(f"{name}[{index}]", item) for index, item in enumerate(value or ())]


def _int32(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError(f"{name} is not a 32-bit integer")
    return value


def _time(name: str, value: object) -> str:
    if value is None:
        return ZERO_TIME
    match = _RFC3339.fullmatch(_string(name, value))
    if not match:
        raise ValueError(f"{name} is not an RFC 3339 time")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    leap = int(year) % 4 == 0 and (int(year) % 100 != 0 or int(year) % 400 == 0)
    days = (31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= days[int(month) - 1]):
        raise ValueError(f"{name} is not a day of the calendar")
    nanoseconds = (fraction or "")[:9].rstrip("0")
    return (
        f"{year}-{month}-{day}T{hour}:{minute}:{second}"
        + (f".{nanoseconds}" if nanoseconds else "")
        + ("Z" if zone[1:] == "00:00" else zone)
    )


def _metadata(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is not an object")
    return {key: _free(name, member) for key, member in sorted((value or {}).items())}


def _free(name: str, value: Any) -> object:
    """*value* as Go holds what has no type: objects sorted, every number a float64."""
    if isinstance(value, dict):
        return {key: _free(name, member) for key, member in sorted(value.items())}
    if isinstance(value, list):
        return [_free(name, item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            raise ValueError(f"{name} holds a number that is too large")
        return number
    return value


def _encode(value: Any) -> str:
    """*value* as compact JSON. Python's own encoder leaves no say in how a float is written."""
    if isinstance(value, dict):
        members = (f"{_encode(name)}:{_encode(member)}" for name, member in value.items())
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_encode, value)) + "]"
    return _go_float(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _go_float(number: float) -> str:
    """The shortest digits that tell *number*, with an exponent where Go has one."""
    from decimal import Decimal

    if number == 0 or 1e-6 <= abs(number) < 1e21:
        return format(Decimal(repr(number)), "f").removesuffix(".0")
    mantissa, exponent = repr(number).split("e")
    sign = "-" if exponent.startswith("-") else "+"
    return f"{mantissa.removesuffix('.0')}e{sign}{exponent.lstrip('+-0')}"


_FIELDS: dict[str, Callable[[str, object], object]] = {
    "id": _string,
    "name": _string,
    "description": _string,
    "status": _string,
    "owner": _string,
    "start_time": _time,
    "end_time": _time,
    "datasets": _strings,
    "algorithms": _strings,
    "dataset_providers": _strings,
    "algorithm_providers": _strings,
    "result_consumers": _strings,
    "ttl": _int32,
    "metadata": _metadata,
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
        # Go's decoder passes over line ends.
        return base64.b64decode(re.sub("[\r\n]", "", computation), validate=True)
    if not isinstance(computation, list) or any(type(byte) is not int for byte in computation):
        raise ValueError("computation must be an array of integers or a base64 string")
    return bytes(computation)
