"""tmp/ on disk: the VMs' directories, their records and events, and the lock of the supervisor.

Everything here blocks; `Journal` calls it in worker threads. A record is replaced as a whole: the
new file is written, synced and renamed, and its directory is synced. After a crash of the
supervisor or of the host there is the old record or the new record.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import re
import shutil
import threading
import time
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING

import attrs
import structlog

from supervisor.errors import HostError
from supervisor.state import format, record_file
from supervisor.state.files import sync
from supervisor.state.record import Event, EventKind, Record
from supervisor.state.record_file import Damaged, event_line
from supervisor.state.tmp_dir import LOCK
from supervisor.state.vm_dir import VmDir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from supervisor.state.secret import Secret
    from supervisor.state.shares import Shares

log = structlog.stdlib.get_logger()

_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Suffixes of a directory that is being made, and of a directory that is being removed.
_NEW, _GONE = ".new", ".gone"

#: The beginning of a line of events.jsonl.
_NUMBER = re.compile(rb'\{"sequence": (\d{1,18}),')

#: How many event numbers are reserved at a time.
_RESERVED = 10_000

#: How many events of the supervisor and of deleted VMs are kept at a start.
_KEPT_EVENTS = 1000

#: How many of a VM's first events are kept for good: a damaged record is rebuilt from them.
_FIRST_EVENTS = 32


_OTHER_TMP = "stop it first, or set MANAGER_QEMU_TMP_FILE_LOC to another directory"


@contextmanager
def locked(tmp: Path, advice: str = _OTHER_TMP) -> Iterator[None]:
    """Hold the lock of tmp/. The kernel releases it, however the supervisor ends.

    :param advice: what to do if another supervisor has it
    :raises HostError: if another supervisor has the lock; names its pid. Or if a later version was
        here
    """
    descriptor = os.open(tmp / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise HostError(
                f"{tmp} belongs to another supervisor (pid {holder})",
                advice=advice,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        format.check(tmp)
        yield
    finally:
        os.close(descriptor)


@attrs.frozen
class Found:
    """What was in tmp/ at the start.

    :param sequence: no event was ever published with a greater number
    :param damaged: ids of VMs whose record is damaged, with the path to which it was moved
    :param gone: ids of VMs whose removal was interrupted, with their owners; `finish_removal`
        completes it
    """

    records: list[Record]
    sequence: int
    damaged: dict[str, Path]
    gone: dict[str, str]


class Store:
    """The records and events below one tmp/.

    :param events_bytes: the size of a VM's events file beyond which old events are dropped
    """

    def __init__(self, tmp: Path, events_bytes: int = 4 << 20) -> None:
        self._events_bytes = events_bytes
        self.tmp = tmp
        self._own_events = tmp / "events.jsonl"
        self._ceiling = tmp / "sequence"
        #: Lines that are not written yet, by file. A failed write leaves its lines here.
        self._owed: dict[Path, list[bytes]] = {}
        #: Several threads write the supervisor's own events; a VM's events come one at a time.
        self._noting = threading.Lock()

    def create(
        self,
        new: Record,
        events: Sequence[Event],
        computation: bytes | None,
        secret: Secret,
        shares: Shares | None = None,
    ) -> None:
        """Make a VM's directory. After a crash it is complete, or `load` removes the draft.

        :raises OSError: if it cannot be written; nothing of it is left then
        """
        path = self.tmp / new.id
        draft = VmDir(path.with_name(new.id + _NEW))
        try:
            draft.path.mkdir(mode=0o700)
            _replace(draft.record, record_file.dump(new, events))
            _append(draft.events, map(event_line, events))
            secret.write(draft.secret)
            if computation is not None:
                draft.have_computation(computation, new.options.restart)
            if shares is not None:
                shares.write(*draft.shares, new.id)
            draft.path.rename(path)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        try:
            sync(self.tmp)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def write(self, changed: Record, events: Sequence[Event]) -> None:
        """Write a changed record and its events.

        :raises OSError: if that fails; the next call writes these events, too
        """
        vm_dir = VmDir(self.tmp / changed.id)
        owed = self._owe(vm_dir.events, events)
        _replace(vm_dir.record, record_file.dump(changed, events))
        size = _append(vm_dir.events, owed)
        del self._owed[vm_dir.events]
        if size > self._events_bytes:
            _drop_events(vm_dir.events, self._events_bytes // 2)

    def note(self, event: Event) -> None:
        """Write an event of the supervisor, or of a VM that was removed.

        :raises OSError: if that fails; the next call writes this event, too
        """
        with self._noting:
            _append(self._own_events, self._owe(self._own_events, [event]))
            del self._owed[self._own_events]

    def _owe(self, file: Path, events: Iterable[Event]) -> list[bytes]:
        owed = self._owed.setdefault(file, [])
        owed += map(event_line, events)
        return owed

    def reserve(self, sequence: int) -> int:
        """Reserve event numbers, so that no supervisor after this one uses them again.

        An event is published even if it cannot be written, so the events on disk do not tell
        which numbers were used. The file never grows, so that it can be written to a full disk.

        :param sequence: the last number in use
        :returns: the last number that is reserved now
        :raises OSError: if the file cannot be written
        """
        ceiling = sequence + _RESERVED
        descriptor = os.open(self._ceiling, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, f"{ceiling:>19}\n".encode(), 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return ceiling

    def _reserved(self) -> int:
        try:
            return int(self._ceiling.read_text())
        except (OSError, ValueError):
            return 0

    def remove(self, vm_id: str, event: Event) -> None:
        """Remove a VM's directory. If a crash interrupts this, the next start completes it.

        :raises OSError: if the directory cannot be renamed, or the event cannot be written
        """
        path = self.tmp / vm_id
        gone = path.with_name(vm_id + _GONE)
        path.rename(gone)
        self._owed.pop(VmDir(path).events, None)
        try:
            self.note(event)
        finally:
            # A full disk makes `note` fail, and this is what frees room.
            shutil.rmtree(gone, ignore_errors=True)

    def events_after(self, sequence: int, vm_ids: Iterable[str], limit: int) -> list[Event]:
        """The next events of these VMs and of the supervisor after a number, in order.

        Events that could not be written yet are included. Memory is taken for ``limit`` events,
        however many there are.

        :param limit: the most events that are returned
        """
        own = self._later_events(self._own_events, sequence)
        # A VM's events are written one at a time, so that its file is in their order.
        files = [VmDir(self.tmp / vm_id).events for vm_id in vm_ids]
        of_vms = [islice(self._later_events(file, sequence), limit) for file in files]
        return heapq.nsmallest(limit, chain(own, *of_vms), key=lambda event: event.sequence)

    def _later_events(self, file: Path, after: int) -> Iterator[Event]:
        owed = [record_file.parse_event(line) for line in tuple(self._owed.get(file, ()))]
        numbers = {event.sequence for event in owed}  # they may be in the file by now
        yield from (event for event in _events(file, after) if event.sequence not in numbers)
        yield from (event for event in owed if event.sequence > after)

    def events_of(self, vm_id: str) -> list[Event]:
        """All events in a VM's file."""
        return list(_events(VmDir(self.tmp / vm_id).events))

    def load(self) -> Found:
        """Read everything in tmp/, and repair what a crash left unfinished."""
        found = Found([], 0, {}, {})
        sequence = self._reserved()
        _mend(self._own_events)
        _shorten(self._own_events)
        deleted = set()
        for event in _events(self._own_events):
            sequence = max(sequence, event.sequence)
            if event.kind is EventKind.DELETED:
                deleted.add(event.vm_id)
        for path in sorted(self.tmp.iterdir()):
            vm_id, ending = path.stem, path.suffix
            ours = _ID.fullmatch(vm_id) and ending in ("", _NEW, _GONE)
            if not ours or not path.is_dir():
                continue
            vm_dir = VmDir(path)
            if ending == _NEW:
                shutil.rmtree(path, ignore_errors=True)
                continue
            _mend(vm_dir.events)
            owner = ""
            for event in _events(vm_dir.events):
                sequence, owner = max(sequence, event.sequence), event.owner
            if ending == _GONE and vm_id in deleted:
                shutil.rmtree(path, ignore_errors=True)
            elif ending == _GONE:
                found.gone[vm_id] = owner
            else:
                sequence = max(sequence, self._load_one(vm_dir, found))
        return attrs.evolve(found, sequence=sequence)

    def finish_removal(self, vm_id: str) -> None:
        """Complete a removal that `load` found in ``gone``."""
        shutil.rmtree(self.tmp / (vm_id + _GONE), ignore_errors=True)

    def _load_one(self, vm_dir: VmDir, found: Found) -> int:
        vm_id = vm_dir.path.name
        if not vm_dir.record.exists() and not vm_dir.events.exists():
            log.warning("not a VM's directory, left alone", path=str(vm_dir.path))
            return 0
        with contextlib.suppress(OSError):
            vm_dir.record_draft.unlink()
        try:
            loaded, events = record_file.parse(vm_dir.record.read_bytes())
            if loaded.id != vm_id:
                raise Damaged(f"the record is that of VM {loaded.id}")
        except (OSError, Damaged) as error:
            log.error("damaged record set aside", vm=vm_id, file=str(vm_dir.record),
                      problem=str(error))  # fmt: skip
            found.damaged[vm_id] = _set_aside(vm_dir.record)
            return 0
        last = max((event.sequence for event in _events(vm_dir.events)), default=0)
        missing = [event_line(event) for event in events if event.sequence > last]
        if missing:
            with contextlib.suppress(OSError):
                _append(vm_dir.events, missing)
        found.records.append(loaded)
        return loaded.sequence


def _replace(file: Path, content: bytes) -> None:
    draft = file.with_name(file.name + _NEW)
    with draft.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    draft.rename(file)
    sync(file.parent)


def _append(file: Path, lines: Iterable[bytes]) -> int:
    """The size of the file then, in bytes."""
    content = b"".join(lines)
    # Without a buffer: after an error, closing the file would write the rest of a buffer.
    with file.open("ab", buffering=0) as opened:
        begin = opened.tell()
        try:
            while content:
                content = content[opened.write(content) :]
            os.fdatasync(opened.fileno())
            return opened.tell()
        except OSError:
            # The next line would be appended to half a line.
            with contextlib.suppress(OSError):
                os.ftruncate(opened.fileno(), begin)
            raise


def _events(file: Path, after: int = 0) -> Iterator[Event]:
    """The events of a file with a greater number.

    Skips lines that are damaged; a missing file has no events.
    """
    with contextlib.suppress(OSError), file.open("rb") as lines:
        for line in lines:
            # Most lines of a long file are passed over, and to parse them would take long.
            number = _NUMBER.match(line)
            if number and int(number[1]) <= after:
                continue
            with contextlib.suppress(Damaged):
                event = record_file.parse_event(line)
                if event.sequence > after:
                    yield event


def _drop_events(file: Path, kept_bytes: int) -> None:
    """Drop events of a VM between its first and its latest. One event in their place counts them.

    That event has the number and the time of the last one that it stands for. A failure is logged:
    the next write tries again.
    """
    events, dropped, size = list(_events(file)), [], 0
    first, latest = events[:_FIRST_EVENTS], events[_FIRST_EVENTS:]
    for event in reversed(latest):
        size += len(event_line(event))
        if size > kept_bytes:
            dropped.append(event)
    if not dropped:
        return
    count = sum(event.data["count"] if event.kind is EventKind.DROPPED else 1 for event in dropped)
    gap = attrs.evolve(dropped[0], kind=EventKind.DROPPED, data={"count": count})
    kept = [*first, gap, *latest[len(dropped) :]]
    try:
        _replace(file, b"".join(map(event_line, kept)))
    except OSError as error:
        log.error("old events cannot be dropped", file=str(file), problem=error.strerror)


def _mend(file: Path) -> None:
    """Cut off the last line if it is incomplete."""
    try:
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
            log.warning("unfinished event cut off", file=str(file))
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("events file cannot be repaired", file=str(file), problem=error.strerror)


def _shorten(file: Path) -> None:
    with contextlib.suppress(OSError):
        lines = file.read_bytes().splitlines(keepends=True)
        if len(lines) > _KEPT_EVENTS:
            _replace(file, b"".join(lines[-_KEPT_EVENTS:]))


def _set_aside(file: Path) -> Path:
    aside = file.with_name(f"{file.name}.bad-{int(time.time())}")
    with contextlib.suppress(OSError):
        file.rename(aside)
    return aside
