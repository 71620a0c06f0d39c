"""What QEMU says over QMP, as values that can be kept and shown. Pure.

A guest that has taken over its QEMU speaks in its place. So all that QEMU says passes through here
before a record, an event, the log, an error or a caller gets it. What does not follow QAPI is an
error that does not repeat it.
"""

from __future__ import annotations

from supervisor.guest_text import clean

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
