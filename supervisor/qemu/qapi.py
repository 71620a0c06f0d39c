"""What QEMU says over QMP, as values that can be kept and shown. Pure.

A guest that has taken over its QEMU speaks in its place. So all that QEMU says passes through here
before a record, an event, the log, an error or a caller gets it. What does not follow QAPI is an
error that does not repeat it.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.guest_text import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Words of QAPI are shorter, and so is a launch measurement in base64.
_WORD_BYTES = 100
#: QEMU's errors name files and reasons.
_SENTENCE_BYTES = 500
#: Stands for a word that has nothing to read.
_UNKNOWN = "unknown"


def word(value: object) -> str:
    """A name, or another short text, on one line.

    :raises TypeError: if it is no string
    """
    return clean(_text(value), _WORD_BYTES) or _UNKNOWN


def sentence(value: object) -> str:
    """The text of an error, on one line.

    :raises TypeError: if it is no string
    """
    return clean(_text(value), _SENTENCE_BYTES)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a string but {type(value).__name__}")
    return value


def number(value: object, bits: int) -> int:
    """An unsigned number, as QAPI's ``uint8`` and so on.

    :raises TypeError: if it is no integer
    :raises ValueError: if it has more bits
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"not an integer but {type(value).__name__}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"not a number of {bits} bits")
    return value


def flag(value: object) -> bool:
    """:raises TypeError: if it is neither true nor false"""
    if not isinstance(value, bool):
        raise TypeError(f"not a bool but {type(value).__name__}")
    return value


@attrs.frozen
class QmpEvent:
    """A QMP event: its name, such as ``SHUTDOWN``, and its data.

    :param data: has those of `_MEMBERS` that QEMU sent, if they follow QAPI
    """

    name: str
    data: Mapping[str, Any]


@attrs.frozen
class RunStatus:
    """``query-status``: QEMU's RunState, raw, and whether virtual CPUs run."""

    status: str
    running: bool


@attrs.frozen
class SevStatus:
    """``query-sev``'s answer. All members are None if ``enabled`` is false.

    :param policy: SEV's policy of 32 bits; SNP's of 64 bits if ``sev_type`` is ``sev-snp``
    """

    enabled: bool
    state: str | None = None
    sev_type: str | None = None
    api_major: int | None = None
    api_minor: int | None = None
    build_id: int | None = None
    policy: int | None = None
    handle: int | None = None


@attrs.frozen
class SevMeasurement:
    """:param data: the measurement and its nonce, in base64"""

    data: str
    status: SevStatus


def parse_sev(answer: Mapping[str, object]) -> SevStatus:
    """Read ``query-sev``'s answer: a plain struct (QEMU 2.12) or a union on ``sev-type`` (9.1).

    :raises KeyError, TypeError, ValueError: if it does not follow QAPI
    """
    if not flag(answer["enabled"]):
        return SevStatus(enabled=False)

    def word_of(name: str) -> str | None:
        return word(answer[name]) if name in answer else None

    def number_of(name: str, bits: int) -> int | None:
        return number(answer[name], bits) if name in answer else None

    return SevStatus(
        enabled=True,
        state=word_of("state"),
        sev_type=word_of("sev-type") or "sev",
        api_major=number_of("api-major", 8),
        api_minor=number_of("api-minor", 8),
        build_id=number_of("build-id", 8),
        policy=number_of("snp-policy", 64) if "snp-policy" in answer else number_of("policy", 32),
        handle=number_of("handle", 32),
    )


#: The events that `qmp.Monitor` yields. A guest can make QEMU send some of the others, such as
#: GUEST_CRASHLOADED, as fast as it can write to a port.
RELEVANT_EVENTS = frozenset(
    (
        *("RESUME", "STOP", "SUSPEND", "WAKEUP", "SHUTDOWN", "RESET"),
        *("GUEST_PANICKED", "WATCHDOG", "BLOCK_IO_ERROR"),
        "VSERPORT_CHANGE",  # which QEMU sends once a second at most
    )
)


#: Members of events that somebody reads, with what each is.
_MEMBERS: Mapping[str, Callable[[object], str | bool]] = {
    "reason": word,
    "action": word,
    "operation": word,
    "nospace": flag,
    "open": flag,
}


def read_event(message: Mapping[str, object]) -> QmpEvent | None:
    """An event that is relevant, else None. What is in it and does not follow QAPI is left out."""
    name, sent = message["event"], message.get("data")
    if not isinstance(name, str) or name not in RELEVANT_EVENTS:
        return None
    given = sent if isinstance(sent, dict) else {}
    data = {}
    for member in _MEMBERS.keys() & given.keys():
        with contextlib.suppress(TypeError):
            data[member] = _MEMBERS[member](given[member])
    return QmpEvent(name, data)
