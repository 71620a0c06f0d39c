"""What an earlier supervisor left in tmp/, and which processes belong to it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor import machine, process
from supervisor.config import RestartPolicy
from supervisor.limits import Need
from supervisor.record import ProcessId, Purpose, Record, RelayState, Wishes
from supervisor.rundir import Rundir
from supervisor.runstate import Status, VmState

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config
    from supervisor.journal import Journal
    from supervisor.record import Event
    from supervisor.store import Store

log = structlog.stdlib.get_logger()


@attrs.frozen
class Inheritance:
    """Records, and by VM id the processes of those that live, each with a pidfd.

    :param replies: the agents' answers, by VM id
    :param rebuilt: ids of VMs whose record had to be rebuilt, and where a damaged one is now
    :param gone: ids of VMs whose removal was cut short
    """

    records: list[Record]
    processes: dict[str, tuple[ProcessId, int]]
    replies: dict[str, str]
    sequence: int
    rebuilt: dict[str, Path | None]
    gone: list[str]


async def look(config: Config, store: Store) -> Inheritance:
    """Read all records and find their processes. Changes nothing but what a crash left torn."""
    return await trio.to_thread.run_sync(_look, config, store)


def _look(config: Config, store: Store) -> Inheritance:
    found = store.load()
    running = process.running_below(config.qemu.tmp)
    known = {record.id for record in found.records}
    lost = [vm_id for vm_id in running if vm_id not in known and _is_ours(running[vm_id])]
    rebuilt = [
        _rebuild(vm_id, running.get(vm_id, []), config, store)
        for vm_id in dict.fromkeys([*found.damaged, *lost])
    ]
    records = [*found.records, *rebuilt]
    processes = {}
    for index, record in enumerate(records):
        if record.ended_at is None:
            alive = process.find(record.id, record.process, running)
            if alive:
                processes[record.id] = alive
                if alive[0] != record.process:
                    # Its supervisor was killed before it could write what it had started.
                    words = process.command_line(alive[0].pid)
                    rundir = Rundir(config.qemu.tmp / record.id)
                    records[index] = _as_seen(record, words, rundir)
        else:
            _finish(record, Rundir(config.qemu.tmp / record.id))
    records.sort(key=lambda record: record.created_at)
    sequence = max([found.sequence, *(record.sequence for record in records)])
    aside = {record.id: found.damaged.get(record.id) for record in rebuilt}
    replies = {
        record.id: reply
        for record in records
        if record.relay is RelayState.ANSWERED
        and (reply := Rundir(config.qemu.tmp / record.id).read_reply()) is not None
    }
    return Inheritance(records, processes, replies, sequence, aside, found.gone)


def _is_ours(pids: list[int]) -> bool:
    """Whether a supervisor started it, and not a person who pasted the command line."""
    return any(f",{machine.QMP_BY_DESCRIPTOR}," in word for word in process.command_line(pids[0]))


def _rebuild(vm_id: str, pids: list[int], config: Config, store: Store) -> Record:
    """A record in the place of one that is damaged or lost, from what else can be seen."""
    log.error("record rebuilt", vm=vm_id, pids=pids)
    need = Need.of(config.qemu)
    rundir = Rundir(config.qemu.tmp / vm_id)
    rundir.path.mkdir(mode=0o700, exist_ok=True)
    words = process.command_line(pids[0]) if pids else []
    events = [event for event in store.events_after(0, [vm_id]) if event.vm_id == vm_id]
    purpose = _purpose(events)
    record = Record(
        id=vm_id,
        created_at=events[0].at if events else datetime.now(UTC),
        wishes=_wishes(events, config),
        memory_bytes=need.memory_bytes,
        vcpus=need.vcpus,
        sequence=events[-1].sequence if events else 0,
        relay=_relay(events, rundir),
        purpose=purpose,
        renewed=any(event.kind == "renewed" for event in events),
        template=_template(events),
        error="its record was damaged or lost; this is what could still be seen",
    )
    return _as_told(_as_seen(record, words, rundir), events, alive=bool(pids))


def _wishes(events: list[Event], config: Config) -> Wishes:
    # What a run asked for that got a VM of the pool was told when it got it.
    taken = [event for event in events if event.kind == "taken"]
    told = (taken or events)[0].data if events else {}
    try:
        restart = RestartPolicy(told.get("restart", config.life.restart))
    except ValueError:
        restart = config.life.restart
    ttl_s, keep = told.get("ttl_s", config.life.ttl_s), told.get("keep_disk", True)
    return Wishes(
        ttl_s=ttl_s if isinstance(ttl_s, int | float) else None,
        restart=restart,
        keep_disk=keep is not False,
    )


def _purpose(events: list[Event]) -> Purpose:
    if not events or any(event.kind == "taken" for event in events):
        return Purpose.RUN
    told = events[0].data.get("purpose")
    return Purpose(told) if told in list(Purpose) else Purpose.RUN


def _template(events: list[Event]) -> str | None:
    """What its disk lies on: told at each launch, and taken back where it was booted from cold."""
    told = [event for event in events if event.kind in ("launched", "fallback")]
    if not told or told[-1].kind == "fallback":
        return None
    digest = told[-1].data.get("template")
    return digest if isinstance(digest, str) else None


def _relay(events: list[Event], rundir: Rundir) -> RelayState:
    states = [event.data.get("state") for event in events if event.kind == "relay"]
    if not states and rundir.computation.exists():
        return RelayState.WAITING
    if not states and _purpose(events) is not Purpose.RUN:
        return RelayState.IDLE
    if "answered" in states and rundir.reply.exists():
        return RelayState.ANSWERED
    return RelayState.INTERRUPTED


def _as_told(record: Record, events: list[Event], *, alive: bool) -> Record:
    """A record completed by its events."""
    states = [event for event in events if event.kind == "state"]
    if not states:
        return record
    last = states[-1]
    status = Status(VmState(last.data["state"]), last.data["reason"])
    ran = [event.at for event in states if event.data["state"] == VmState.RUNNING]
    # By the wall clock, for want of a better one.
    first_ran_s = (
        process.boottime_s() - (datetime.now(UTC) - ran[0]).total_seconds() if ran else None
    )
    return attrs.evolve(
        record,
        status=status,
        first_ran_s=first_ran_s,
        running_since_s=first_ran_s,
        ended_at=last.at if status.state.ended and not alive else None,
    )


def _as_seen(record: Record, words: list[str], rundir: Rundir) -> Record:
    """A record completed by the command line of the VM's process."""
    return attrs.evolve(
        record,
        command=tuple(machine.by_hand(words, rundir.qmp_socket)),
        forwards=tuple(machine.forwards_in(words)),
        template=machine.template_in(words) or record.template,
        agent_address=None,
    )


def _finish(record: Record, rundir: Rundir) -> None:
    """A supervisor that was killed may have left the last step of a VM's end undone."""
    rundir.clear(disks=not record.wishes.keep_disk)


async def announce(inheritance: Inheritance, journal: Journal) -> None:
    """Put on record, and in the log, what was found."""
    for vm_id in inheritance.gone:
        await journal.finish_removal(vm_id)
    for index, record in enumerate(inheritance.records):
        if record.id in inheritance.rebuilt:
            aside = inheritance.rebuilt[record.id]
            news = ("damaged", {"file": aside.name if aside else None})
            inheritance.records[index] = await journal.commit(record, news)
    living = [one.id for one in inheritance.records if one.id in inheritance.processes]
    ended = [
        one.id
        for one in inheritance.records
        if one.ended_at is None and one.id not in inheritance.processes
    ]
    if living or ended:
        log.info("taking up VMs", running=living, ended_meanwhile=ended)
        await journal.note("adopted", None, running=living, ended_meanwhile=ended)
