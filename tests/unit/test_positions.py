"""Where a reader of all hosts' events is, as an event's id; and what another member may send."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as some

from supervisor.api.event_stream import message, messages, only_id
from supervisor.errors import InvalidRequest
from supervisor.fleet.positions import Place, Position
from supervisor.state.journal_id import journal_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

HERE = Position(1764499200.125, {"b": Place("0d9e77aa", 5), "a": Place("5f0c21d9", 17)})
TEXT = "@1764499200.125,a:5f0c21d9:17,b:0d9e77aa:5"


def test_a_position_is_an_id() -> None:
    assert str(HERE) == TEXT
    assert Position.parse(TEXT) == HERE
    assert Position.parse("0") == Position(0.0)
    assert str(HERE.at("b", Place("0d9e77aa", 6)).of("b")) == "@1764499200.125,b:0d9e77aa:6"
    assert str(HERE.of("c")) == "@1764499200.125"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "17",
        "a:5f0c21d9:17",
        "@1764499200,a:5f0c21d9:17",
        "@1764499200.125,",
        "@1764499200.125,a:5f0c21d9",
        "@1764499200.125,a:5f0c21d9:-1",
        "@1764499200.125,a:5f0c21d9:٣",
        "@1764499200.125,a:5F0C21D9:1",
        "@1764499200.125,a:5f0c21d9:1,a:5f0c21d9:2",
        "@1764499200.125,a\n:5f0c21d9:1",
        "@nan",
        ",".join(["@1764499200.125", *(f"h{number}:5f0c21d9:1" for number in range(257))]),
    ],
)
def test_what_is_no_position(given: str) -> None:
    with pytest.raises(InvalidRequest):
        Position.parse(given)


def test_a_journal_has_one_id(tmp_path: Path) -> None:
    found = journal_id(tmp_path)
    assert journal_id(tmp_path) == found
    (tmp_path / "journal").write_bytes(b"\xff")  # as after a disk's fault
    again = journal_id(tmp_path)
    assert again != found
    assert journal_id(tmp_path) == again


async def in_pieces(content: bytes, size: int) -> AsyncGenerator[bytes]:
    for begin in range(0, len(content), size):
        yield content[begin : begin + size]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_messages(size: int) -> None:
    event = {"event": "state", "reason": "a\n\nb: c"}
    content = b": events\n\n" + only_id(HERE) + message(HERE, event) + b"id: unfin"
    found = [one async for one in messages(in_pieces(content, size))]
    assert found == [("", None), (TEXT, None), (TEXT, event)]


@given(some.binary(max_size=200))
def test_any_bytes_of_another_member(content: bytes) -> None:
    async def read() -> None:
        async with aclosing(in_pieces(content + b"\n\n", 50)) as pieces:
            with suppress(ValueError):
                async for _ in messages(pieces):
                    pass

    trio.run(read)


async def test_a_message_without_an_end_is_not_kept() -> None:
    taken = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(65536)

    async with aclosing(endless()) as pieces:
        with pytest.raises(ValueError, match="no end"):
            await anext(messages(pieces))
    assert taken <= 17
