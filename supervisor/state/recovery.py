"""Finds the records that an earlier supervisor left in tmp/, and the processes of their VMs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from supervisor.config import Forwards, RestartPolicy, Tee
from supervisor.qemu import cmdline, process
from supervisor.state.record import (
    EventKind,
    Purpose,
    Record,
    RelayState,
    RunOptions,
)
from supervisor.state.record_file import confidential_by_command
from supervisor.state.secret import Secret
from supervisor.state.status import Status, VmState
from supervisor.state.vm_dir import VmDir
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config
    from supervisor.qemu.host import Clock
    from supervisor.qemu.process import ProcessId
    from supervisor.state.journal import Journal
    from supervisor.state.record import Event
    from supervisor.state.store import Store

log = structlog.stdlib.get_logger()


@attrs.frozen
class Recovered:
    """What `recover` found.

    :param processes: the process of each VM that still runs, with a pidfd, by VM id
    :param secrets: the secret of each VM that has not ended, by VM id; an earlier version's VM has
        none
    :param sequence: the greatest event number that may have been published
    :param rebuilt: ids of VMs whose record was rebuilt, with the path to which the damaged record
        was moved; None if there was no record
    :param gone: ids of VMs whose removal was interrupted, with their owners
    """

    records: list[Record]
    processes: dict[str, tuple[ProcessId, int]]
    secrets: dict[str, Secret]
    sequence: int
    rebuilt: dict[str, Path | None]
    gone: dict[str, str]


async def recover(config: Config, clock: Clock, store: Store) -> Recovered:
    """Read all records and find their processes. Changes on disk only what a crash left unfinished.

    :raises OSError: if tmp/ cannot be read, or no file descriptor is left
    """
    return await trio.to_thread.run_sync(_recover, config, clock, store)


def _recover(config: Config, clock: Clock, store: Store) -> Recovered:
    loaded = store.load()
    running = process.running_below(config.qemu.tmp)
    known = {record.id for record in loaded.records}
    lost = [vm_id for vm_id in running if vm_id not in known and _is_ours(running[vm_id])]
    rebuilt = [
        _rebuild(vm_id, running.get(vm_id, []), config, clock, store)
        for vm_id in dict.fromkeys([*loaded.damaged, *lost])
    ]
    records = [*loaded.records, *rebuilt]
    processes = {}
    for index, record in enumerate(records):
        if not record.ended:
            alive = process.find(config.qemu.tmp / record.id, record.process, running)
            if alive:
                processes[record.id] = alive
                if alive[0] != record.process:
                    # Its supervisor was killed after the start and before it recorded the process.
                    words = process.command_line(alive[0].pid)
                    vm_dir = VmDir(config.qemu.tmp / record.id)
                    records[index] = _completed_by_process(record, words, vm_dir)
        else:
            _clear_again(record, VmDir(config.qemu.tmp / record.id))
    records.sort(key=lambda record: record.created_at)
    sequence = max([loaded.sequence, *(record.sequence for record in records)])
    moved = {record.id: loaded.damaged.get(record.id) for record in rebuilt}
    records = [
        # Its answer is lost; a guest that was booted again may still give another one.
        attrs.evolve(record, answered=False)
        if record.answered
        and not record.ended
        and not VmDir(config.qemu.tmp / record.id).reply.exists()
        else record
        for record in records
    ]
    secrets = {
        record.id: secret
        for record in records
        if not record.ended and (secret := Secret.read(VmDir(config.qemu.tmp / record.id).secret))
    }
    return Recovered(records, processes, secrets, sequence, moved, loaded.gone)


def _is_ours(pids: list[int]) -> bool:
    """Whether a supervisor started the process, not a person who pasted the command line."""
    return any(f",{cmdline.QMP_BY_DESCRIPTOR}," in word for word in process.command_line(pids[0]))


def _rebuild(vm_id: str, pids: list[int], config: Config, clock: Clock, store: Store) -> Record:
    """A new record for a damaged or lost record, from the VM's events and its process."""
    log.error("record rebuilt", vm=vm_id, pids=pids)
    vm_dir = VmDir(config.qemu.tmp / vm_id)
    vm_dir.path.mkdir(mode=0o700, exist_ok=True)
    words = process.command_line(pids[0]) if pids else []
    events = store.events_of(vm_id)
    purpose, relay = _purpose(events), _relay(events, vm_dir)
    record = Record(
        id=vm_id,
        created_at=events[0].at if events else datetime.now(UTC),
        options=_options(events, config, vm_dir),
        memory_bytes=config.qemu.memory_bytes,
        vcpus=config.qemu.smp_count,
        owner=events[-1].owner if events else "",
        sequence=events[-1].sequence if events else 0,
        relay=relay,
        answered=relay is RelayState.ANSWERED,
        purpose=purpose,
        bound_to=str(events[0].data.get("bound_to", "")) if events else "",
        renewed=any(event.kind is EventKind.RENEWED for event in events),
        template=_template(events),
        error="the record was damaged or lost; it was rebuilt from the events and the process",
    )
    record = confidential_by_command(_completed_by_process(record, words, vm_dir))
    return _completed_by_events(record, events, clock, alive=bool(pids))


def _options(events: list[Event], config: Config, vm_dir: VmDir) -> RunOptions:
    # A run that took a VM of the pool has its options in the event of that moment.
    taken = [event for event in events if event.kind is EventKind.TAKEN]
    data = (taken or events)[0].data if events else {}
    try:
        restart = RestartPolicy(data.get("restart", config.life.restart))
    except ValueError:
        restart = config.life.restart
    ttl_s, keep_disk = data.get("ttl_s", config.life.ttl_s), data.get("keep_disk", True)
    first = events[0].data if events else {}
    without = first.get("forwards") == Forwards.NONE or vm_dir.agent_socket.exists()
    return RunOptions(
        ttl_s=ttl_s if isinstance(ttl_s, int | float) else None,
        restart=restart,
        keep_disk=keep_disk is not False,
        forwards=Forwards.NONE if without else Forwards.HOST,
        dials=first.get("dials") is True,
        tee=Tee(first["tee"]) if first.get("tee") in list(Technology) else Tee.NONE,
        tee_policy=str(first.get("tee_policy", "")),
    )


def _purpose(events: list[Event]) -> Purpose:
    if not events or any(event.kind is EventKind.TAKEN for event in events):
        return Purpose.RUN
    purpose = events[0].data.get("purpose")
    return Purpose(purpose) if purpose in list(Purpose) else Purpose.RUN


def _template(events: list[Event]) -> str | None:
    """The name of the template below the VM's disk. The last launch or fallback decides."""
    starts = [event for event in events if event.kind in (EventKind.LAUNCHED, EventKind.FALLBACK)]
    if not starts or starts[-1].kind is EventKind.FALLBACK:
        return None
    name = starts[-1].data.get("template")
    return name if isinstance(name, str) else None


def _relay(events: list[Event], vm_dir: VmDir) -> RelayState:
    states = [event.data.get("state") for event in events if event.kind is EventKind.RELAY]
    if not states and vm_dir.computation.exists():
        return RelayState.WAITING
    if not states and _purpose(events) is not Purpose.RUN:
        return RelayState.IDLE
    if "answered" in states and vm_dir.reply.exists():
        return RelayState.ANSWERED
    return RelayState.INTERRUPTED


def _completed_by_events(
    record: Record, events: list[Event], clock: Clock, *, alive: bool
) -> Record:
    states = [event for event in events if event.kind is EventKind.STATE]
    if not states:
        return record
    last = states[-1]
    status = Status(VmState(last.data["state"]), last.data["reason"])
    ran = [event.at for event in states if event.data["state"] == VmState.RUNNING]
    # Events have wall-clock times only: this is wrong if the clock was set since.
    first_ran_s = clock.boottime_s() - (datetime.now(UTC) - ran[0]).total_seconds() if ran else None
    return attrs.evolve(
        record,
        status=status,
        first_ran_s=first_ran_s,
        running_since_s=first_ran_s,
        ended_at=last.at if status.state.ended and not alive else None,
    )


def _completed_by_process(record: Record, words: list[str], vm_dir: VmDir) -> Record:
    """The record with what the process's command line says.

    :param words: the command line; empty if no process was found
    """
    # Those on the command line lead from QEMU's namespace into the VM.
    without = record.options.forwards is Forwards.NONE
    return attrs.evolve(
        record,
        command=tuple(cmdline.by_hand(words, vm_dir.qmp_socket)),
        forwards=() if without else tuple(cmdline.forwards_in(words)),
        template=cmdline.template_in(words) or record.template,
        agent_address=vm_dir.agent_address if without else None,
    )


def _clear_again(record: Record, vm_dir: VmDir) -> None:
    """Clear an ended VM's directory: its supervisor may have been killed before it did so."""
    vm_dir.clear(disks=not record.options.keep_disk)


async def announce(recovered: Recovered, journal: Journal) -> None:
    """Write to the journal and to the log what `recover` found."""
    for vm_id, owner in recovered.gone.items():
        await journal.finish_removal(vm_id, owner)
    for index, record in enumerate(recovered.records):
        if record.id in recovered.rebuilt:
            moved = recovered.rebuilt[record.id]
            news = (EventKind.DAMAGED, {"file": moved.name if moved else None})
            recovered.records[index] = await journal.commit(record, news)
    running = [record.id for record in recovered.records if record.id in recovered.processes]
    ended = [
        record.id
        for record in recovered.records
        if not record.ended and record.id not in recovered.processes
    ]
    if running or ended:
        log.info("adopting VMs", running=running, ended_meanwhile=ended)
        await journal.note(EventKind.ADOPTED, None, running=running, ended_meanwhile=ended)
