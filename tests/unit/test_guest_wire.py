"""The reference agent's own protobuf code."""

from __future__ import annotations

import pytest

from supervisor.agent.reference.refusal import Refusal, StatusCode
from supervisor.agent.reference.wire import decode_fields, encode_fields, encode_message, fields_of
from supervisor.pb import guest_pb2


def decode_message(message: bytes) -> bytes:
    return decode_fields(message).payloads.get(1, b"")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_what_is_encoded_is_decoded(size: int) -> None:
    assert decode_message(encode_message(b"x" * size)) == b"x" * size


def test_the_bytes_are_protobufs() -> None:
    assert encode_message(b"") == b""
    assert encode_message(b"ab") == b"\x0a\x02ab"
    assert encode_message(b"x" * 300)[:3] == b"\x0a\xac\x02"


@pytest.mark.parametrize(
    "unknown",
    [
        b"\x10\x96\x01",  # field 2, varint
        b"\x08\x01",  # field 1, but a varint
        b"\x11" + bytes(8),  # field 2, 64 bits
        b"\x15" + bytes(4),  # field 2, 32 bits
        b"\x12\x03abc",  # field 2, length-delimited
        b"\x13\x0a\x02no\x14",  # field 2, a group that holds a field 1
        b"\x13\x1b\x1c\x14",  # a group in a group
        b"\xf8\xff\xff\xff\x0f\x01",  # the highest field number
    ],
)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    known = encode_message(b"yes")
    assert decode_message(unknown + known) == b"yes"
    assert decode_message(known + unknown) == b"yes"


def test_the_last_field_counts() -> None:
    assert decode_message(encode_message(b"first") + encode_message(b"last")) == b"last"


def test_fields_are_told_by_number_and_kind() -> None:
    message = b"\x0a\x01a\x08\x07\x12\x00\x20\x96\x01\x1a\x02bc\x15" + bytes(4)
    fields = decode_fields(message)
    assert fields.payloads == {1: b"a", 2: b"", 3: b"bc"}
    assert fields.numbers == {1: 7, 4: 150}
    assert decode_fields(b"") == ({}, {})
    assert decode_fields(b"\x20\x01\x20\x02").numbers == {4: 2}
    assert decode_fields(b"\x20" + b"\xff" * 9 + b"\x01").numbers == {4: 2**64 - 1}  # -1
    assert decode_fields(b"\x13\x08\x07\x0a\x01a\x14") == ({}, {})  # all in a group


@pytest.mark.parametrize(
    "malformed",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # shorter than it says
        b"\x0a\x80",  # a length cut off
        b"\x0a" + b"\xff" * 10 + b"\x01",  # a length over ten bytes
        b"\x11" + bytes(7),  # 64 bits cut off
        b"\x15" + bytes(3),  # 32 bits cut off
        b"\x02\x00",  # field number 0
        b"\x0e",  # wire type 6
        b"\x14",  # the end of a group that did not begin
        b"\x13",  # a group that does not end
        b"\x13\x1c",  # … or ends as another
        b"{}",
    ],
)
def test_malformed_messages_are_refused(malformed: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_message(malformed)
    with pytest.raises(Refusal) as caught:
        fields_of(malformed)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT


def test_fields_of_every_kind_are_what_protobuf_reads() -> None:
    progress = encode_fields((1, b"dataset"), (2, 300), (3, 0))
    message = encode_fields((1, b"id"), (2, 2), (3, -1), (4, b""), (7, progress), (7, progress))
    upload = guest_pb2.UploadProgress(kind="dataset", received_bytes=300)
    assert guest_pb2.StatusResponse.FromString(message) == guest_pb2.StatusResponse(
        instance_id="id",
        state=guest_pb2.StatusResponse.STATE_RUNNING,
        running_since_unix_ns=-1,
        uploads=[upload, upload],
    )
