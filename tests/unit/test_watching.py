"""What another member tells of, as a message."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.api.grpc import messages, watching
from supervisor.fleet.positions import Place, Position
from supervisor.pb import vm_pb2

TOLD: dict[str, Any] = {
    "sequence": 7,
    "at": "2026-11-30T14:00:00.125Z",
    "vm": "one",
    "event": "state",
    "state": "running",
    "reason": "running",
    "host": "b",
}


async def written(told: Any) -> list[vm_pb2.Event]:
    found = []

    async def write(message: vm_pb2.Event) -> None:
        found.append(message)

    await watching._write(write, told, "b", Position(7.0, {"b": Place("0d9e77aa", 7)}))
    return found


async def test_an_event() -> None:
    (message,) = await written(TOLD)
    assert (message.id, message.sequence, message.host) == ("one", 7, "b")
    assert (message.kind, message.state) == ("state", vm_pb2.VM_STATE_RUNNING)
    assert message.at.ToJsonString() == TOLD["at"]
    assert message.position == "@7.000,b:0d9e77aa:7"
    assert not message.data


async def test_an_event_of_another_kind_has_its_data() -> None:
    told = {name: TOLD[name] for name in ("sequence", "at")} | {"vm": None, "event": "later"}
    message = messages.event({**told, "state": "x", "more": [1, {"a": None}]})
    assert (message.id, message.state) == ("", vm_pb2.VM_STATE_UNSPECIFIED)
    assert dict(message.data) == {"state": "x", "more": [1, {"a": None}]}


DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequence": -1},
        {"sequence": "seven"},
        {"at": "today"},
        {"at": 1},
        {"vm": 1},
        {"state": "flying"},
        {"state": []},
        {"reason": None},
        {"more": 10**400},
        {"more": DEEP},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_what_is_no_event_ends_nothing(wrong: dict[str, Any]) -> None:
    assert await written({**TOLD, **wrong}) == []


@pytest.mark.parametrize("told", [[1], "event", 7, {}])
async def test_what_is_no_object_is_no_event(told: Any) -> None:
    assert await written(told) == []
