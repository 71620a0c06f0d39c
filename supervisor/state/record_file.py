"""How records and events stand on disk: ``vm.json``, and the lines of ``events.jsonl``. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from supervisor.config import Tee
from supervisor.qemu import confidential
from supervisor.state.record import Event, EventKind, Record, RelayState
from supervisor.state.status import VmState
from supervisor.tee import policy

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The version of ``vm.json``, and of all that is in tmp/: `state.format`. It grows with each change
#: of what is written, also with a new member or value: an earlier one would set the record aside.
#: Versions 1 to 4 are read, too; a file of any other version is set aside.
VERSION = 5

#: What JSON's parser raises for garbage, and what values of unexpected types raise later.
_UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)


class Damaged(Exception):
    """A record or an event that cannot be read."""


def event_line(event: Event) -> bytes:
    """One line of events.jsonl, with its newline."""
    return json.dumps(_on_disk(event)).encode() + b"\n"


def _on_disk(event: Event) -> dict[str, Any]:
    return event.to_dict() | ({"owner": event.owner} if event.owner else {})


def parse_event(line: bytes) -> Event:
    """The event of one line of events.jsonl.

    :raises Damaged: if the line is no event
    """
    try:
        data = json.loads(line)
        at = _moment(data.pop("at"))
        kind = EventKind(data.pop("event"))
        vm_id, owner = data.pop("vm"), data.pop("owner", "")
        event = Event(int(data.pop("sequence")), at, vm_id, kind, data, owner)
        texts: list[object] = [event.vm_id or "", owner]
        if kind is EventKind.STATE:
            texts += [VmState(data["state"]), data["reason"]]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(texts)
    except (*_UNREADABLE, KeyError) as error:
        raise Damaged(f"the line is no event: {error!r}") from error
    return event


def _moment(text: str, _: object = None) -> datetime:
    """A time with its zone, even if the text has none: only times with zones can be compared."""
    return datetime.fromisoformat(text).astimezone(UTC)


def dump(record: Record, events: Iterable[Event]) -> bytes:
    """The content of vm.json: the record, and the events that changed it last.

    The events are in both files, so that events.jsonl can be completed after a crash between the
    two writes.
    """
    content = {
        "version": VERSION,
        "vm": _converter.unstructure(record),
        "events": [_on_disk(event) for event in events],
    }
    return json.dumps(content).encode() + b"\n"


def parse(content: bytes) -> tuple[Record, list[Event]]:
    """The record and the events in the content of vm.json.

    :raises Damaged: with what is wrong
    """
    try:
        value = json.loads(content)
        version = value["version"]
        if version == 1:
            _rename_members_of_version_1(value["vm"])
        elif version not in (2, 3, 4, VERSION):  # they differ in members with defaults, and values
            raise Damaged(f"the record has version {version}, not {VERSION}")
        record = confidential_by_command(_converter.structure(value["vm"], Record))
        events = [parse_event(json.dumps(event).encode()) for event in value["events"]]
        last = events[-1].sequence
    except (*_UNREADABLE, LookupError, cattrs.BaseValidationError) as error:
        raise Damaged(f"the record cannot be read: {_describe(error)}") from error
    if last != record.sequence:
        raise Damaged(f"the last event has number {last}, the record's {record.sequence}")
    return record, events


def confidential_by_command(record: Record) -> Record:
    """The record with what its command says of a confidential guest, if it does not say so itself.

    As that of an earlier version, or one that was rebuilt: the guest's next boot must not be plain.
    """
    if record.options.tee is not Tee.NONE:
        return record
    found = confidential.found_in(record.command)
    if found is None:
        return record
    words = policy.spelled(found.technology, found.policy)
    options = attrs.evolve(record.options, tee=Tee(found.technology), tee_policy=words)
    return attrs.evolve(record, options=options, bound_to=found.bound_to)


def _rename_members_of_version_1(vm: dict[str, Any]) -> None:
    """So that a supervisor, after an upgrade, can adopt VMs that the old version started."""
    # The first records of that version lack the members that came later, with a default.
    options = vm["options"] = vm.pop("wishes")
    options["request_hash"] = options.pop("fingerprint", "")
    vm["fingerprint"] = vm.pop("recipe", "")
    vm["answered"] = vm.get("relay") == RelayState.ANSWERED


def _describe(error: Exception) -> str:
    if isinstance(error, cattrs.BaseValidationError):
        return "; ".join(cattrs.transform_error(error))
    return f"{type(error).__name__}: {error}"


_converter = make_converter(forbid_extra_keys=True)
_converter.register_structure_hook(datetime, _moment)
