"""A store with one VM or two, and what is on its disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from supervisor.state.record import Event, EventKind, Record, RunOptions
from supervisor.state.secret import Secret
from supervisor.state.status import Status, VmState
from supervisor.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = (f"7f0c5f3e-0000-4000-8000-00000000000{digit}" for digit in (1, 2))
AT = datetime(2026, 11, 23, 9, 0, 0, tzinfo=UTC)
RUNNING = Status(VmState.RUNNING, "running")


def news(sequence: int, vm_id: str | None = ONE, kind: EventKind = EventKind.RESET) -> Event:
    return Event(sequence, AT, vm_id, kind, {"of": f"event {sequence}"})


def new(sequence: int = 1, vm_id: str = ONE) -> Record:
    return Record(
        id=vm_id, created_at=AT, options=RunOptions(), memory_bytes=1, vcpus=1, sequence=sequence
    )


def created(tmp: Path, vm_id: str = ONE, sequence: int = 1) -> Store:
    made = Store(tmp)
    made.create(new(sequence, vm_id), [news(sequence, vm_id)], b"computation", Secret.new())
    return made


def write(to: Store, *sequences: int, status: Status = RUNNING) -> Record:
    changed = attrs.evolve(new(sequences[-1]), status=status)
    to.write(changed, [news(number) for number in sequences])
    return changed


def on_disk(tmp: Path, vm_id: str = ONE) -> list[int]:
    lines = (tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["sequence"] for line in lines]


def listing(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}
