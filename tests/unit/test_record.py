"""vm.json and the lines of events.jsonl: what is written is read again, and nothing else is."""

from __future__ import annotations

import enum
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs
import pytest

from supervisor.config import RestartPolicy
from supervisor.qemu.cmdline import Forward
from supervisor.qemu.process import ProcessId
from supervisor.state import record_file
from supervisor.state.record import (
    BaseImage,
    EndMode,
    Event,
    EventKind,
    Record,
    RelayState,
    RunOptions,
)
from supervisor.state.record_file import Damaged
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from collections.abc import Iterator

VM_ID = "7f0c5f3e-0000-4000-8000-000000000001"
AT = datetime(2026, 11, 23, 9, 0, 0, 123456, tzinfo=UTC)

BASE = BaseImage("/images/base.qcow2", 4711, 2**40, 1_790_000_000_123_456_789)
LEAST = Record(
    id=VM_ID, created_at=AT, options=RunOptions(), memory_bytes=2**31, vcpus=4, sequence=17
)
FULL = Record(
    id=VM_ID,
    created_at=AT,
    options=RunOptions(
        ttl_s=5400.5,
        restart=RestartPolicy.ON_FAILURE,
        keep_disk=True,
        idempotency_key="ключ \u2028 \ud800",
        request_hash="f" * 64,
    ),
    memory_bytes=2**63,
    vcpus=1,
    sequence=17,
    status=Status(VmState.CRASHED, "exit:-9"),
    ending=EndMode.FORCE,
    process=ProcessId(pid=4711, start_ticks=2**40, boot_id="b", sudo=True),
    forwards=(Forward(22, "127.0.0.1", 2222), Forward(7002, "::1", 65535)),
    command=("qemu", "-name", "a b\n"),
    agent_address="127.0.0.1:7020",
    relay=RelayState.ANSWERED,
    answered=True,
    restarts=3,
    first_ran_s=1.25,
    running_since_s=7.5,
    phases={"prepared": 0.1, "qemu": 0.2},
    exit_code=-9,
    error="line\nline",
    ended_at=AT,
)
STATE = Event(17, AT, VM_ID, EventKind.STATE, {"state": "running", "reason": "running"})


def content(**changes: Any) -> dict[str, Any]:
    """vm.json's value, with members of it put in another's place."""
    value: dict[str, Any] = json.loads(record_file.dump(LEAST, [STATE]))
    return value | changes


def parsed(value: object) -> tuple[Record, list[Event]]:
    return record_file.parse(json.dumps(value).encode())


# --- vm.json --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [LEAST, FULL], ids=["least", "full"])
def test_record_is_read_as_it_was_written(given: Record) -> None:
    events = [attrs.evolve(STATE, sequence=16), STATE]
    given = attrs.evolve(given, base=BASE)
    again, its_events = record_file.parse(record_file.dump(given, events))
    assert again == given
    assert [event.sequence for event in its_events] == [16, 17]
    assert [event.to_dict() for event in its_events] == [event.to_dict() for event in events]


def test_record_is_one_line_of_ascii() -> None:
    """It can be looked at, and searched, with a shell's tools."""
    written = record_file.dump(FULL, [STATE])
    assert written.count(b"\n") == 1
    assert written.endswith(b"\n")
    assert written.isascii()


@pytest.mark.parametrize("version", [0, 6, "1", None])
def test_other_version_is_not_guessed_at(version: object) -> None:
    with pytest.raises(Damaged, match=f"version {version}"):
        parsed(content(version=version))


def test_version_before_is_read() -> None:
    """The file was written by the last supervisor that had the names of version 1."""
    written = Path(__file__).with_name("vm-of-version-1.json").read_bytes()
    assert record_file.parse(written)[0] == FULL


@pytest.mark.parametrize("version", [2, 3, 4])
def test_later_version_is_read(version: int) -> None:
    """The file was written by the last supervisor of that version."""
    written = Path(__file__).with_name(f"vm-of-version-{version}.json").read_bytes()
    assert json.loads(written)["version"] == version
    record, events = record_file.parse(written)
    assert (record.options.ttl_s, record.options.labels) == (3600.0, {"team": "a"})
    assert str(record.status.state) == "running"
    assert [str(event.kind) for event in events] == ["relay"]
    assert json.loads(record_file.dump(record, events))["version"] == record_file.VERSION


def test_what_is_written_has_a_version() -> None:
    """An earlier version sets a record aside that has a member or a value more: `state.format`."""
    kinds = sorted(EventKind)
    members = sorted(_members(Record))
    written = hashlib.sha256(json.dumps([members, kinds]).encode()).hexdigest()
    assert (record_file.VERSION, written[:16]) == (5, "d893a2eb318ec79a"), (
        "what records or events have is another set now: raise VERSION, have parse read the one"
        " before, keep a file of it as a test, and put the new digest here"
    )


def _members(kind: Any, path: str = "") -> Iterator[str]:
    for one in attrs.fields(attrs.resolve_types(kind)):
        yield f"{path}{one.name}"
        for inner in (one.type, *get_args(one.type)):
            if isinstance(inner, type) and issubclass(inner, enum.Enum):
                yield from (f"{path}{one.name}={value.value}" for value in inner)
            if isinstance(inner, type) and attrs.has(inner):
                yield from _members(inner, f"{path}{one.name}.")


def test_version_before_without_the_members_that_came_later() -> None:
    written = json.loads(Path(__file__).with_name("vm-of-version-1.json").read_bytes())
    for name in ("purpose", "recipe", "template", "renewed", "phases"):
        del written["vm"][name]
    del written["vm"]["wishes"]["fingerprint"]
    read = parsed(written)[0]
    assert (read.fingerprint, read.options.request_hash, read.answered) == ("", "", True)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\n",
        b"null",
        b"3",
        b"[]",
        b'"vm"',
        b"{}",
        b"\xff\xfe",
        b"\x00" * 4096,
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2}',
    ],
)
def test_garbage_is_damaged(damaged: bytes) -> None:
    with pytest.raises(Damaged):
        record_file.parse(damaged)


@pytest.mark.parametrize(
    "changes",
    [
        {"vm": None},
        {"vm": 3},
        {"vm": []},
        {"vm": "text"},
        {"vm": {}},
        {"events": None},
        {"events": 3},
        {"events": []},
        {"events": {}},
        {"events": [3]},
        {"events": [{}]},
    ],
    ids=str,
)
def test_members_of_another_kind_are_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(Damaged):
        parsed(content(**changes))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("status", {"state": "asleep", "reason": "x"}),
        ("status", None),
        ("options", {"restart": "always"}),
        ("created_at", "yesterday"),
        ("created_at", 5),
        ("forwards", 3),
        ("phases", []),
        ("process", {"pid": 1}),
        ("sequence", "many"),
        ("of_another_version", 1),
    ],
)
def test_wrong_member_is_named(member: str, value: object) -> None:
    vm = content()["vm"] | {member: value}
    with pytest.raises(Damaged, match=member):
        parsed(content(vm=vm))


def test_time_without_a_zone_compares_with_others() -> None:
    vm = content()["vm"] | {"created_at": "2026-11-23T09:00:00"}
    found, _ = parsed(content(vm=vm))
    assert abs(found.created_at - AT).days <= 1
    line = record_file.event_line(STATE).replace(b"123Z", b"123")
    assert record_file.parse_event(line).at.tzinfo is not None


def test_events_that_are_not_the_records_own() -> None:
    with pytest.raises(Damaged, match="number 17, the record's 18"):
        parsed(content(vm=content()["vm"] | {"sequence": 18}))


def test_record_that_was_cut_off_anywhere() -> None:
    written = record_file.dump(FULL, [STATE])
    for length in range(len(written) - 1):  # the line's end is none of JSON's business
        with pytest.raises(Damaged):
            record_file.parse(written[:length])


def test_record_with_any_byte_changed_is_read_or_damaged() -> None:
    """Whatever a disk makes of it, a supervisor starts."""
    written = record_file.dump(FULL, [STATE])
    for place in range(len(written)):
        for bit in (1, 2, 16, 128):
            changed = bytearray(written)
            changed[place] ^= bit
            try:
                again, _ = record_file.parse(bytes(changed))
            except Damaged:
                continue
            assert isinstance(again, Record)


# --- events ---------------------------------------------------------------------------------


def test_line_of_an_event() -> None:
    assert json.loads(record_file.event_line(STATE)) == {
        "sequence": 17,
        "at": "2026-11-23T09:00:00.123Z",
        "vm": VM_ID,
        "event": "state",
        "state": "running",
        "reason": "running",
    }


@pytest.mark.parametrize(
    "event",
    [
        STATE,
        Event(2**60, AT, None, EventKind.ADOPTED, {"running": [VM_ID], "ended_meanwhile": []}),
        Event(1, AT, VM_ID, EventKind.DELETED, {}, "alice"),
        Event(1, AT, VM_ID, EventKind.ENDING, {"mode": "force", "why": "two\nlines \u2028\r"}),
    ],
    ids=lambda event: event.kind,
)
def test_event_is_read_as_it_was_written(event: Event) -> None:
    line = record_file.event_line(event)
    assert len(line.splitlines()) == 1
    again = record_file.parse_event(line)
    assert again.to_dict() == event.to_dict()
    assert again.owner == event.owner
    assert "owner" not in event.to_dict(), "no reader is told"
    assert again.at.tzinfo is not None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"3",
        b"[]",
        b"null",
        b"{}",
        b"\x00\x00",
        b"[" * 100_000,
        b'{"sequence": 1}',
        record_file.event_line(STATE)[:-10],
        record_file.event_line(STATE).replace(b"17", b'"x"'),
        record_file.event_line(STATE).replace(b"17", b"Infinity"),
        record_file.event_line(STATE).replace(b"17", b"NaN"),
        record_file.event_line(STATE).replace(b'"vm": "', b'"vm": 3, "x": "'),
        record_file.event_line(STATE).replace(b'"vm": "', b'"owner": 3, "vm": "'),
        record_file.event_line(STATE).replace(b'"event": "state"', b'"event": null'),
        record_file.event_line(STATE).replace(b"running", b"runnjng"),
        record_file.event_line(STATE).replace(b'"reason": "running"', b'"reason": 3'),
        record_file.event_line(STATE).replace(b"2026-11-23T", b"2026-11-99T"),
    ],
)
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(Damaged):
        record_file.parse_event(line)
