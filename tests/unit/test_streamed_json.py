"""A computation that is decoded while it arrives: the same however it is cut into pieces."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc

import pytest

from supervisor.api.http.streamed_json import PIECE, Body, _members
from supervisor.config import MAX_COMPUTATION
from supervisor.errors import InvalidRequest, TooLarge

EVERY_BYTE = bytes(range(256))


def read(body: bytes, size: int = PIECE) -> object:
    """The computation of a body that arrives in parts of this size."""
    reading = Body()
    for start in range(0, len(body), size):
        reading.feed(body[start : start + size])
    return reading.finish()["computation"]


BODIES = [
    json.dumps({"computation": list(EVERY_BYTE)}).encode(),
    json.dumps({"ttl": "1s", "computation": list(EVERY_BYTE), "keep_disk": True}).encode(),
    json.dumps({"computation": list(EVERY_BYTE)}, indent=3).encode(),
    json.dumps({"computation": list(EVERY_BYTE)}, separators=(",", ":")).encode(),
    json.dumps({"computation": base64.b64encode(EVERY_BYTE).decode(), "ttl": "1s"}).encode(),
    json.dumps({"computation": base64.encodebytes(EVERY_BYTE).decode()}).encode(),
    # As some write a slash and an equals sign.
    json.dumps({"computation": base64.b64encode(EVERY_BYTE).decode()})
    .replace("/", "\\/")
    .replace("=", "\\u003d")
    .encode(),
    b'{"comput\\u0061tion": %b}' % json.dumps(list(EVERY_BYTE)).encode(),
    b'{"comput\\u0061tion": "%b"}' % base64.b64encode(EVERY_BYTE),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, PIECE])
@pytest.mark.parametrize("body", BODIES)
def test_pieces_of_any_size(body: bytes, size: int) -> None:
    computation = read(body, size)
    if isinstance(computation, str | list):  # decoded with the other members
        computation = json.loads(body)["computation"]
        computation = (
            bytes(computation) if isinstance(computation, list) else base64.b64decode(computation)
        )
    assert computation == EVERY_BYTE


@pytest.mark.parametrize(
    "body",
    [
        b'{"computation": [1',
        b'{"computation": [1,]}',
        b'{"computation": [,1]}',
        b'{"computation": [1,,2]}',
        b'{"computation": [,]}',
        b'{"computation": [1 2]}',
        b'{"computation": [01]}',
        b'{"computation": [1]',
        b'{"computation": [1]]}',
        b'{"computation": [1], }',
        b'{"computation": "AA==',
        b'{"computation": "AA==\n"}',
        b'{"computation": "\\x"}',
        b'["computation": [1]]',
    ],
)
@pytest.mark.parametrize("size", [1, 5, PIECE])
def test_what_is_not_json(body: bytes, size: int) -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        read(body, size)


@pytest.mark.parametrize("size", [1, 5, PIECE])
@pytest.mark.parametrize("text", ["A", "AA=A", "AA==AA==", "A" * 40_001, "A-_A", "é"])
def test_what_is_not_base64(text: str, size: int) -> None:
    with pytest.raises(InvalidRequest, match="not base64") as caught:
        read(json.dumps({"computation": text}).encode(), size)
    assert caught.value.member == "computation"


@pytest.mark.parametrize(
    ("numbers", "index", "shown"),
    [
        ("1, 256", 1, "256"),
        ("1, 2, -1", 2, "-1"),
        ("1, 1.0", 1, "1.0"),
        ('1, "a, ]", 2', 1, '"a, ]"'),
        ("1e1", 0, "10.0"),
        ("1, " * 30_000 + "256", 30_000, "256"),
        ("9" * 300, 0, "9" * 40),
    ],
)
def test_place_of_what_is_no_byte(numbers: str, index: int, shown: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(b'{"computation": [%b]}' % numbers.encode())
    assert caught.value.member == f"computation[{index}]"
    assert f"is {shown}, not a number" in str(caught.value)


@pytest.mark.parametrize("body", ['{"ttl": "1s", "ttl": "1h"}', '{"computation": [1], %s}'])
def test_member_that_is_there_twice(body: str) -> None:
    """Two readers would understand two things."""
    with pytest.raises(InvalidRequest, match="twice"):
        read((body.replace("%s", '"computation": "AA=="')).encode())


def test_looking_for_a_member_that_is_there_twice_is_one_pass() -> None:
    """The interpreter does nothing else meanwhile."""
    hashed = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal hashed
            hashed += 1
            return super().__hash__()

    names = [*map(str, range(1000)), "999"]
    with pytest.raises(InvalidRequest, match="'999' is there twice"):
        _members([(Name(name), 1) for name in names])
    assert hashed <= 3 * len(names)


@pytest.mark.parametrize(
    "body",
    [
        b'{"computation": [' + b"1," * MAX_COMPUTATION + b"1]}",
        b'{"computation": "' + b"AAAA" * (MAX_COMPUTATION // 3 + 1) + b'"}',
    ],
    ids=["array", "base64"],
)
def test_one_byte_more(body: bytes) -> None:
    with pytest.raises(TooLarge, match=str(MAX_COMPUTATION)):
        read(body)


def test_memory_is_that_of_the_computation() -> None:
    size = 2**20
    numbers = random.Random(1).randbytes(size)
    body = json.dumps({"computation": list(numbers)}).encode()
    tracemalloc.start()
    try:
        assert read(body) == numbers
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * size, "as much as the body, or more"


def test_white_space_is_not_kept() -> None:
    reading = Body()
    reading.feed(b'{"computation": [1')
    for _ in range(1000):
        reading.feed(b" " * PIECE)
    reading.feed(b"]}")
    assert reading.finish()["computation"] == b"\x01"
