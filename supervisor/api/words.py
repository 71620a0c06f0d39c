"""From a wire's word to a value. A wrong word gets its sentence here, so that it gets the same one
over both wires. Pure.
"""

from __future__ import annotations

import base64
import enum
import json
import re
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NewType, TypeVar

import attrs

from supervisor.agent.computing import MOST_DATASETS
from supervisor.config import Policy
from supervisor.config.settings import parse_seconds
from supervisor.errors import InvalidRequest
from supervisor.parties import Parties
from supervisor.tee import binding, certificate
from supervisor.tee.evidence import BadEvidence, from_hex

E = TypeVar("E", bound=enum.StrEnum)

#: Members that need types of their own, so that a mistake can be named.
Attest = NewType("Attest", bool)
Labels = NewType("Labels", dict[str, str])
Limit = NewType("Limit", int)
Memory = NewType("Memory", int)
Count = NewType("Count", int)
Base64 = NewType("Base64", str)
Nonce = NewType("Nonce", bytes)
Pem = NewType("Pem", str)

#: Of a certificate, a session or a secret's packet; a page of the processor's, in base64.
_LONGEST_BASE64 = 32768
#: The most events of a page.
MAX_PAGE = 1000
#: As an event's is. Python turns no more than some thousand digits into a number.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_LABEL_VALUE = re.compile(r"[^=\x00-\x1f\x7f-\x9f]{0,63}")
_MOST_LABELS = 16
_PARTIES = ("algorithm", "data", "result")
AGREED = "algorithm_sha256"
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_LONGEST_CALLER = 255
_MEMORY = re.compile(r"([1-9][0-9]{0,6})([MGmg])")
_NUMBER = re.compile(r"[0-9]{1,18}")


@attrs.frozen
class HostRequest:
    """What a run asks of the host that takes it, in a fleet.

    :param image: the SHA-256 of the guest image, in hexadecimal digits
    :param memory_mib: what the VM is to have at least
    :param moves: whether another host may have the run if its host is lost
    """

    image: str = ""
    memory_mib: int = 0
    labels: dict[str, str] = attrs.field(factory=dict)
    moves: bool = True


def one_of(words: type[E], member: str, given: object) -> E:
    """:raises InvalidRequest: with the words that there are"""
    known = [word.value for word in words]
    if given not in known:
        raise InvalidRequest(f"{member} must be one of {', '.join(known)}", member=member)
    return words(given)


def ttl(given: object) -> float:
    """Seconds, from a duration as Go or ISO 8601 writes it.

    :raises InvalidRequest:
    """
    try:
        return parse_seconds(given if isinstance(given, str) else "")
    except ValueError as error:
        raise InvalidRequest(f"ttl {error}", member="ttl") from None


def time_limit(given: object) -> Limit:
    """Whole seconds, at least one, from a duration as `ttl` has it.

    :raises InvalidRequest:
    """
    try:
        return Limit(max(1, round(parse_seconds(given if isinstance(given, str) else ""))))
    except ValueError as error:
        raise InvalidRequest(f"time_limit {error}", member="time_limit") from None


def memory_limit(given: object) -> Memory:
    """MiB, from a size as QEMU writes it.

    :raises InvalidRequest:
    """
    found = _MEMORY.fullmatch(given if isinstance(given, str) else "")
    if not found:
        raise InvalidRequest("memory_limit must be a size such as 256M", member="memory_limit")
    return Memory(int(found[1]) * {"M": 1, "G": 1024}[found[2].upper()])


def count(given: object) -> Count:
    """Of data sets.

    :raises InvalidRequest:
    """
    if isinstance(given, float) and given.is_integer():
        given = int(given)  # JSON has one kind of numbers: 3.0 is the integer 3
    if type(given) is not int or not 1 <= given <= MOST_DATASETS:
        raise InvalidRequest(f"datasets is a number from 1 to {MOST_DATASETS}", member="datasets")
    return Count(given)


def part_number(given: str) -> int:
    """Of a data set, in a path.

    :raises InvalidRequest:
    """
    if not _NUMBER.fullmatch(given) or int(given) >= MOST_DATASETS:
        raise InvalidRequest(f"a data set has a number from 0 to {MOST_DATASETS - 1}")
    return int(given)


def tee_policy(given: object) -> Policy:
    """:raises InvalidRequest:"""
    try:
        return Policy.read(given if isinstance(given, str) else "?")
    except ValueError as error:
        raise InvalidRequest(f"tee_policy: {error}", member="tee_policy") from None


def labels(given: object, member: str = "labels") -> Labels:
    """:raises InvalidRequest:"""
    found = given if isinstance(given, dict) else {"": ""}
    good = all(
        _LABEL.fullmatch(name) and isinstance(value, str) and _LABEL_VALUE.fullmatch(value)
        for name, value in found.items()
    )
    if not good or len(found) > _MOST_LABELS:
        raise InvalidRequest(
            f"{member} is an object of at most {_MOST_LABELS} strings; names have letters, digits,"
            " '.', '_', '/' and '-', values no '=' and no control characters, each 63 at most",
            member=member,
        )
    return Labels(found)


def label(given: str) -> tuple[str, str]:
    """One that is looked for: ``name=value``, or ``name`` for any value, which is empty then.

    :raises InvalidRequest:
    """
    name, _, value = given.partition("=")
    if not _LABEL.fullmatch(name):
        raise InvalidRequest("label must be NAME=VALUE or NAME", member="label")
    return name, value


def parties(given: object) -> Parties:
    """:raises InvalidRequest:"""
    members = given if isinstance(given, dict) else {}
    algorithm, data, result = (members.get(name) for name in _PARTIES)
    agreed = members.get(AGREED, "0" * 64)
    lists = [one if isinstance(one, list) else [] for one in (data, result)]
    names = [algorithm, *lists[0], *lists[1]]
    good = all(isinstance(one, str) and 0 < len(one) <= _LONGEST_CALLER for one in names)
    good = good and isinstance(agreed, str) and bool(_SHA256.fullmatch(agreed))
    known = set(members) - {AGREED} == set(_PARTIES)
    if not known or not all(lists) or not good or len(lists[0]) > MOST_DATASETS:
        raise InvalidRequest(
            "parties has the members algorithm, a caller's name, and data and result, arrays of"
            " such names; and may have algorithm_sha256, 64 hexadecimal digits",
            member="parties",
        )
    return Parties(
        algorithm=str(algorithm),
        data=tuple(lists[0]),
        result=tuple(lists[1]),
        algorithm_sha256=members.get(AGREED, "").lower(),
    )


def host_of_json(given: str) -> HostRequest:
    """:raises InvalidRequest:"""
    try:
        return host(json.loads(given))
    except (ValueError, RecursionError):
        raise InvalidRequest("host is no JSON", member="host") from None


def host(given: object) -> HostRequest:
    """:raises InvalidRequest:"""
    members = given if isinstance(given, dict) else {"": ""}
    if unknown := set(members) - {"image", "memory", "labels", "replace"}:
        raise InvalidRequest(
            f"host has no member {min(unknown)[:64]!r}; it may have image, memory, labels and"
            " replace",
            member="host",
        )
    image = members.get("image", "")
    digits = image.removeprefix("sha256:") if isinstance(image, str) else "?"
    if image and not _SHA256.fullmatch(digits):
        raise InvalidRequest(
            "host.image is the SHA-256 of a guest image, 64 hexadecimal digits", member="host.image"
        )
    memory = members.get("memory")
    found = _MEMORY.fullmatch(memory if isinstance(memory, str) else "")
    if memory is not None and not found:
        raise InvalidRequest("host.memory must be a size such as 4G", member="host.memory")
    replace = members.get("replace", "auto")
    if replace not in ("auto", "never"):
        raise InvalidRequest("host.replace must be auto or never", member="host.replace")
    return HostRequest(
        image=digits.lower(),
        memory_mib=int(found[1]) * {"M": 1, "G": 1024}[found[2].upper()] if found else 0,
        labels=dict(labels(members.get("labels", {}), "host.labels")),
        moves=replace == "auto",
    )


def attest(given: object) -> Attest:
    """:raises InvalidRequest:"""
    if not isinstance(given, bool):
        raise InvalidRequest("attest must be true or false", member="attest")
    return Attest(given)


def base64_text(given: object) -> Base64:
    """:raises InvalidRequest:"""
    text = given if isinstance(given, str) else ""
    try:
        if not 0 < len(text) <= _LONGEST_BASE64 or not base64.b64decode(text, validate=True):
            raise ValueError
    except ValueError:
        raise InvalidRequest(
            f"dh_cert, session, header and secret are base64, of {_LONGEST_BASE64} characters at"
            " most"
        ) from None
    return Base64(text)


def nonce(given: object) -> Nonce:
    """:raises InvalidRequest:"""
    try:
        if not isinstance(given, str):
            raise BadEvidence("it is no string")
        return Nonce(from_hex(given, binding.NONCE_BYTES, fill=True))
    except BadEvidence as error:
        why = f"nonce is 2 to {2 * binding.NONCE_BYTES} hexadecimal digits: {error.detail}"
        raise InvalidRequest(why, member="nonce") from None


def pem(given: object) -> Pem:
    """:raises InvalidRequest:"""
    try:
        if not isinstance(given, str) or len(given) > _LONGEST_BASE64:
            raise BadEvidence("it is no string, or too long")
        certificate.load(given.encode())
    except BadEvidence as error:
        raise InvalidRequest(f"leaf: {error.detail}", member="leaf") from None
    return Pem(given)


def page_size(given: str) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(given) or not 1 <= int(given) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be a number from 1 to {MAX_PAGE}", member="limit")
    return int(given)


def line_count(given: str) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(given):
        raise InvalidRequest("tail must be a number of lines", member="tail")
    return int(given)


def point_in_time(member: str, given: str, now: datetime) -> datetime:
    """So long ago, or a time as RFC 3339 has it.

    :raises InvalidRequest: also if the time has no offset
    """
    try:
        return now - timedelta(seconds=parse_seconds(given))
    except ValueError:
        with suppress(ValueError):
            # A plus sign that was not escaped in a query is a space there.
            found = datetime.fromisoformat(given.replace(" ", "+"))
            if found.tzinfo:
                return found
        text = f"{member} must be a duration such as 10m, or a time such as 2026-01-31T13:05:00Z"
        raise InvalidRequest(text, member=member) from None


def event_number(given: str | int) -> int:
    """:raises InvalidRequest:"""
    if not _NUMBER.fullmatch(str(given)):
        raise InvalidRequest("Last-Event-ID, or after, must be an event's number")
    return int(given)
