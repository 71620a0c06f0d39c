"""A reader of server-sent events, as a browser is one."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.world import Supervisor


class Reader:
    """The events of one answer."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> dict[str, Any]:
        """The next event. :raises StopAsyncIteration: if the answer ends"""
        fields: dict[str, str] = {}
        while True:
            line = await anext(self._lines)
            if not line and "data" in fields:
                break
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
        event: dict[str, Any] = json.loads(fields["data"])
        assert fields["id"] == str(event["sequence"])
        assert fields["event"] == event["event"]
        return event

    async def until(self, kind: str, **data: str) -> list[dict[str, Any]]:
        """All events up to one of this kind."""
        events = [await self.next()]
        while events[-1]["event"] != kind or not data.items() <= events[-1].items():
            events.append(await self.next())
        return events


@asynccontextmanager
async def reading(
    supervisor: Supervisor, path: str = "/events", after: int | None = None
) -> AsyncIterator[Reader]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    async with supervisor.http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == ": events"
        yield Reader(lines)


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["sequence"] for event in events]
