"""What an owner holds in his hands: files in whatever form they were sent to him. Pure."""

from __future__ import annotations

import base64
import binascii
import re

from supervisor.errors import SupervisorError

#: Longer than any report, quote, certificate chain or revocation list.
MAX_BYTES = 1 << 18

_HEX = re.compile(rb"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")


class BadEvidence(SupervisorError):
    """A file or a value does not have the form that it should have."""


class Unsupported(SupervisorError):
    """The evidence is well formed, and of a kind or a version that is not known here."""


def decoded(content: bytes) -> bytes:
    """The bytes of a file that has them as they are, in hex or in base64, with white space or not.

    :raises BadEvidence: if the file is too long
    """
    if len(content) > MAX_BYTES:
        raise BadEvidence(f"{len(content)} bytes are more than any report or certificate has")
    text = b"".join(content.split())
    if found := _HEX.fullmatch(text):
        return bytes.fromhex(found[1].decode())
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return content


def from_hex(text: str, length: int, *, fill: bool = False) -> bytes:
    """A value that was given as text.

    :param length: in bytes
    :param fill: whether a shorter value is filled with zeros
    :raises BadEvidence: if it is no hex, or of another length
    """
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise BadEvidence(f"{text!r} is not hex") from error
    if fill and 0 < len(value) < length:
        value = value.ljust(length, b"\0")
    if len(value) != length:
        raise BadEvidence(f"{text!r} has {len(value)} bytes, not {length}")
    return value
