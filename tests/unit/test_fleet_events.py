"""One reader of all hosts' events: where it is, and what is left of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio.testing

from supervisor.api.event_stream import message
from supervisor.api.fleet.events import Reading
from supervisor.caller import ANYBODY
from supervisor.fleet.positions import Place, Position
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def test_who_leaves_leaves_nothing_here() -> None:
    made, closed = list[int](), list[bool]()

    async def own() -> AsyncGenerator[bytes]:
        try:
            while True:
                made.append(len(made) + 1)
                place = Position(0.0, {"a": Place("5f0c21d9", made[-1])})
                yield message(place, {"event": "state", "sequence": made[-1]})
        finally:
            closed.append(True)

    async def wait_known(_: str) -> None:
        await trio.sleep_forever()

    members = SimpleNamespace(hosts={"a": None}, changed=Signal(), wait_known=wait_known)
    others: Any = SimpleNamespace(fleet=SimpleNamespace(name="a", members=members))
    reading = Reading(others, ANYBODY, 60, "", Position(7.0, {"b": Place("0d9e77aa", 5)}))
    told = []
    async with reading.told(own()) as found:
        async for one in found:
            assert one
            told.append(one)
            if len(told) > 10:
                break
        # One event waits until the reader takes it, and none is made beyond.
        await trio.testing.wait_all_tasks_blocked()
        assert len(made) <= 11
        assert not closed
    assert closed
    events = [one.event for one in told if one.event]
    assert ("b", "unreached") in [(one["host"], one.get("state")) for one in events]
    last = max(one["sequence"] for one in events if one["host"] == "a")
    assert str(told[-1].position) == f"@7.000,a:5f0c21d9:{last},b:0d9e77aa:5"
