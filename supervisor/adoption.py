"""What an earlier supervisor left in tmp/, and which processes belong to it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor import process
from supervisor.limits import Need
from supervisor.machine import Forward
from supervisor.record import ProcessId, Record, RelayState, Wishes
from supervisor.rundir import Rundir

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config
    from supervisor.journal import Journal
    from supervisor.store import Found, Store

log = structlog.stdlib.get_logger()

_FORWARD = re.compile(r"hostfwd=tcp:([0-9.]*):(\d+)-:(\d+)")


@attrs.frozen
class Inheritance:
    """Records, and by VM id the processes of those that live, each with a pidfd."""

    records: list[Record]
    processes: dict[str, tuple[ProcessId, int]]
    sequence: int
    damaged: dict[str, Path]
    gone: list[str]


async def look(config: Config, store: Store) -> Inheritance:
    """Read all records and find their processes. Changes nothing but what a crash left torn."""
    return await trio.to_thread.run_sync(_look, config, store)


def _look(config: Config, store: Store) -> Inheritance:
    found = store.load()
    running = process.running_below(config.qemu.tmp)
    records = [*found.records, *_rebuilt(found, running, config)]
    processes = {}
    for record in records:
        if record.ended_at is None:
            alive = process.find(record.id, record.process, running)
            if alive:
                processes[record.id] = alive
        else:
            _finish(record, Rundir(config.qemu.tmp / record.id))
    for vm_id in running.keys() - {record.id for record in records}:
        log.warning("a QEMU runs here that no VM is on record for", vm=vm_id, pids=running[vm_id])
    records.sort(key=lambda record: record.created_at)
    return Inheritance(records, processes, found.sequence, found.damaged, found.gone)


def _rebuilt(found: Found, running: process.Running, config: Config) -> list[Record]:
    """Records of VMs whose own are damaged, from what can be seen of them."""
    need = Need.of(config.qemu)
    rebuilt = []
    for vm_id, aside in found.damaged.items():
        words = process.command_line(running[vm_id][0]) if vm_id in running else []
        forwards = [match for word in words for match in _FORWARD.findall(word)]
        made = datetime.fromtimestamp((config.qemu.tmp / vm_id).stat().st_ctime, UTC)
        rebuilt.append(
            Record(
                id=vm_id,
                created_at=made,
                wishes=Wishes(keep_disk=True),
                memory_bytes=need.memory_bytes,
                vcpus=need.vcpus,
                sequence=found.sequence,
                command=tuple(words),
                forwards=tuple(
                    Forward(int(guest), address, int(host)) for address, host, guest in forwards
                ),
                relay=RelayState.INTERRUPTED,
                error=f"its record was damaged and is set aside as {aside}",
            )
        )
    return rebuilt


def _finish(record: Record, rundir: Rundir) -> None:
    """A supervisor that was killed may have left the last step of a VM's end undone."""
    rundir.clear(disks=not record.wishes.keep_disk)


async def announce(inheritance: Inheritance, journal: Journal) -> None:
    """Put on record, and in the log, what was found."""
    for vm_id in inheritance.gone:
        await journal.finish_removal(vm_id)
    for vm_id, aside in inheritance.damaged.items():
        await journal.note("damaged", vm_id, file=aside.name)
    living = [one.id for one in inheritance.records if one.id in inheritance.processes]
    ended = [
        one.id
        for one in inheritance.records
        if one.ended_at is None and one.id not in inheritance.processes
    ]
    if living or ended:
        log.info("taking up VMs", running=living, ended_meanwhile=ended)
        await journal.note("adopted", None, running=living, ended_meanwhile=ended)
