"""The protocol's messages as bytes.

Every message of ``agent.AgentService`` has at most one field: number 1, length-delimited. Some
fifty lines read and write these messages and those of the other services; the protobuf runtime
would be one more library that the guest loads before it answers.
"""

from __future__ import annotations

from typing import NamedTuple

from .refusal import Refusal, StatusCode

MAX_PAYLOAD_BYTES = 16 << 20
# Room for the field's tag and length, and for what JSON adds.
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + (1 << 16)


def encode_message(payload: bytes) -> bytes:
    """The message whose field 1 is *payload*; an empty field is left out, as in proto3."""
    return encode_fields((1, payload)) if payload else b""


def encode_fields(*fields: tuple[int, bytes | int]) -> bytes:
    """The message of *fields*: numbers and values. Empty ones and 0 are left out, as in proto3."""
    parts = []
    for number, value in fields:
        if isinstance(value, int) and value:
            parts += [_encode_varint(number << 3), _encode_varint(value % (1 << 64))]
        elif value:
            parts += [_encode_varint(number << 3 | 2), _encode_varint(len(value)), value]
    return b"".join(parts)


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes((value,))


class Fields(NamedTuple):
    """A message's fields by number, of a repeated one the last."""

    payloads: dict[int, bytes]  # length-delimited: strings and bytes
    numbers: dict[int, int]  # varints, unsigned: a negative int64 is 2**64 too large


def fields_of(message: bytes) -> Fields:
    """As `decode_fields`. Refusal: *message* is no protobuf message."""
    try:
        return decode_fields(message)
    except ValueError as error:
        why = f"no protobuf message: {error}"
        raise Refusal(StatusCode.INVALID_ARGUMENT, why) from error


def decode_fields(message: bytes) -> Fields:
    """All fields of *message*, but for groups and what has a fixed width: those are skipped.

    ValueError: *message* is no protobuf message.
    """
    fields, groups, at = Fields({}, {}), [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        start, value = at, 0
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(message, at)
            at = start + size
        elif kind == 3:
            groups.append(number)
        elif kind != 4 or not groups or groups.pop() != number:
            raise ValueError(f"wire type {kind} out of place at byte {start}")
        if not 0 < number < 1 << 29 or at > len(message):
            raise ValueError(f"field {number} does not fit at byte {start}")
        if kind == 0 and not groups:
            fields.numbers[number] = value
        elif kind == 2 and not groups:
            fields.payloads[number] = message[start:at]
    if groups:
        raise ValueError(f"group {groups[-1]} does not end")
    return fields


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at *at* and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number is cut off at byte {at}")
