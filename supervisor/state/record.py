"""What is known of a VM, as it is kept on disk; and the events of its life. Pure.

A `Record` is all that a supervisor needs to take up a VM that another one started, and all
that is told of a VM that has ended.
"""

from __future__ import annotations

import enum
import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from supervisor.config import RestartPolicy, TemplateUse
from supervisor.qemu.cmdline import Forward  # noqa: TC001 - cattrs resolves it
from supervisor.qemu.process import ProcessId  # noqa: TC001 - likewise
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Of ``vm.json``. The version before is read, too; any other is set aside, not guessed at.
VERSION = 2


#: The state of a VM that was only decided on.
PRELAUNCH = Status(VmState.PRELAUNCH, "prelaunch")

#: What JSON says of garbage, and what comes of a value of another kind than expected.
_UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)


class Damaged(Exception):
    """A record or an event that cannot be read."""


class RelayState(enum.StrEnum):
    """How far the computation has come. Beside the VM's state, not part of it."""

    #: There is no computation.
    IDLE = "idle"
    #: The agent is not ready yet.
    WAITING = "waiting"
    #: The agent has it, its answer is to come.
    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    #: The supervisor went away, or the guest was reset, between the two, so nobody knows. It is
    #: not sent again, but to a guest that is booted again as its run asked for.
    INTERRUPTED = "interrupted"


class Purpose(enum.StrEnum):
    """What a VM is there for."""

    RUN = "run"
    #: Kept ready for a run to come, which then has it.
    POOL = "pool"
    #: Booted to become a template.
    TEMPLATE = "template"


class EndMode(enum.StrEnum):
    """How a VM is to be ended: by the guest, or without asking it."""

    GRACEFUL = "graceful"
    FORCE = "force"


class EndCause(enum.StrEnum):
    """Who asked for a VM's end, or what made it necessary."""

    API = "api"
    #: The caller of ``POST /run`` hung up.
    CALLER_LEFT = "caller-left"
    DELETED = "deleted"
    #: The supervisor stops.
    STOPPING = "stopping"
    TTL = "ttl"
    RUN_FAILED = "run-failed"
    #: Its run could not be put on record.
    UNRECORDED = "unrecorded"
    #: No template could be made of it.
    TEMPLATE_FAILED = "template-failed"
    #: QEMU's QMP socket is gone, so nobody can speak to it any more.
    SOCKET_GONE = "socket-gone"
    #: The guest has QEMU send more events than anybody can read.
    FLOOD = "flood"


class EventKind(enum.StrEnum):
    """What an `Event` tells. docs/reference/events.md has the data of each."""

    STATE = "state"
    LAUNCHED = "launched"
    AGENT = "agent"
    RELAY = "relay"
    RENEWED = "renewed"
    FALLBACK = "fallback"
    TAKEN = "taken"
    ENDING = "ending"
    EXPIRING = "expiring"
    RESTARTING = "restarting"
    RESET = "reset"
    WATCHDOG = "watchdog"
    IO_ERROR = "io-error"
    MONITOR = "monitor"
    DAMAGED = "damaged"
    ADOPTED = "adopted"
    DELETED = "deleted"


class Phase(enum.StrEnum):
    """A step on a run's way, in the usual order. ``phases_s`` and Server-Timing name them so."""

    QUEUE = "queue"
    DIRECTORY = "directory"
    OVERLAY = "overlay"
    SPAWN = "spawn"
    GREETING = "greeting"
    RESTORE = "restore"
    RUNNING = "running"
    RENEW = "renew"
    AGENT = "agent"
    POOL = "pool"
    RELAY = "relay"
    #: The warning before the end of the time to live, which is given once.
    EXPIRING = "expiring"


@attrs.frozen(kw_only=True)
class RunOptions:
    """What a run asked for beside its computation, with the defaults filled in.

    :param ttl_s: seconds from the guest's first instruction to the VM's shutdown
    :param request_hash: of the request that bore the key
    """

    ttl_s: float | None = None
    restart: RestartPolicy = RestartPolicy.NEVER
    keep_disk: bool = False
    template: TemplateUse = TemplateUse.AUTO
    idempotency_key: str | None = None
    request_hash: str = ""


@attrs.frozen(kw_only=True)
class Record:
    """One VM. ``sequence`` is that of the last event.

    :param fingerprint: of what its QEMU was started with; see `template`
    :param template: the name of the template it was started from, if it was
    :param renewed: whether the guest of such a VM has been told that it is a copy
    :param ending: how its end was asked for, once it was; ``end_cause`` by whom
    :param answered: whether the agent has ever answered; the answer is in the file ``reply``
    :param first_ran_s: when a guest of this VM first ran, on the host's CLOCK_BOOTTIME; that
        clock goes on while the host sleeps, and cannot be set
    :param running_since_s: when the present guest first ran; another one after a restart
    :param exit_code: QEMU's; negative for a signal; None while it runs, and where it was not
        our child to ask
    :param phases: when each step was done, in seconds after the run was asked for
    :param ended_at: set once nothing of the VM runs, and nothing will
    """

    id: str
    created_at: datetime
    options: RunOptions
    memory_bytes: int
    vcpus: int
    sequence: int = 0
    status: Status = PRELAUNCH
    purpose: Purpose = Purpose.RUN
    fingerprint: str = ""
    template: str | None = None
    renewed: bool = False
    ending: EndMode | None = None
    end_cause: EndCause | None = None
    process: ProcessId | None = None
    forwards: tuple[Forward, ...] = ()
    command: tuple[str, ...] = ()
    agent_address: str | None = None
    relay: RelayState = RelayState.WAITING
    answered: bool = False
    restarts: int = 0
    first_ran_s: float | None = None
    running_since_s: float | None = None
    phases: dict[str, float] = attrs.field(factory=dict)
    exit_code: int | None = None
    error: str | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the process is gone, no other will follow, and only the record is left."""
        return self.ended_at is not None

    @property
    def awaits_answer(self) -> bool:
        """Whether an answer of the agent may yet come."""
        return self.relay in (RelayState.WAITING, RelayState.SENT)

    @property
    def settled(self) -> bool:
        """Whether the computation is answered, failed or interrupted for good.

        An answer stays one, also while a guest that was booted again has the computation again.
        """
        given_up = (RelayState.FAILED, RelayState.INTERRUPTED)
        return self.answered or self.relay in given_up or self.ended


@attrs.frozen
class Event:
    """Something that happened to a VM, or to the supervisor where ``vm_id`` is None.

    :param sequence: greater than that of every event before it, on this tmp/ for ever
    :param data: by the kind; a ``state`` has ``state`` and ``reason``
    """

    sequence: int
    at: datetime
    vm_id: str | None
    kind: EventKind
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, in events.jsonl and on the wire."""
        return {
            "sequence": self.sequence,
            "at": moment(self.at),
            "vm": self.vm_id,
            "event": self.kind,
            **self.data,
        }


def request_hash(computation: bytes, *asked: object, **asked_since: object) -> str:
    """Of a request, as it was sent: defaults may change before it is repeated.

    :param asked_since: members that requests on record may not have known; None as if not there
    """
    known = (*asked, *(pair for pair in asked_since.items() if pair[1] is not None))
    return hashlib.sha256(repr(known).encode() + b"\n" + computation).hexdigest()


def moment(at: datetime) -> str:
    """RFC 3339, to the millisecond, in UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event_line(event: Event) -> bytes:
    """One line of events.jsonl, with its end."""
    return json.dumps(event.to_dict()).encode() + b"\n"


def parse_event(line: bytes) -> Event:
    """:raises Damaged:"""
    try:
        data = json.loads(line)
        at = _moment(data.pop("at"))
        kind = EventKind(data.pop("event"))
        event = Event(int(data.pop("sequence")), at, data.pop("vm"), kind, data)
        words: list[object] = [event.vm_id or ""]
        if kind is EventKind.STATE:
            words += [VmState(data["state"]), data["reason"]]
        if not all(isinstance(word, str) for word in words):
            raise TypeError(words)
    except (*_UNREADABLE, KeyError) as error:
        raise Damaged(f"no event: {error!r}") from error
    return event


def _moment(text: str, _: object = None) -> datetime:
    """With its zone, also where somebody left that out: else it compares with no other."""
    return datetime.fromisoformat(text).astimezone(UTC)


def dump(record: Record, events: Iterable[Event]) -> bytes:
    """The content of vm.json: the record, and the events that led to it.

    They are there so that events.jsonl can be completed after a crash between the two.
    """
    content = {
        "version": VERSION,
        "vm": _converter.unstructure(record),
        "events": [event.to_dict() for event in events],
    }
    return json.dumps(content).encode() + b"\n"


def parse(content: bytes) -> tuple[Record, list[Event]]:
    """:raises Damaged: with what is wrong"""
    try:
        value = json.loads(content)
        version = value["version"]
        if version == 1:
            _rename_members_of_version_1(value["vm"])
        elif version != VERSION:
            raise Damaged(f"it is of version {version}, not {VERSION}")
        record = _converter.structure(value["vm"], Record)
        events = [parse_event(json.dumps(event).encode()) for event in value["events"]]
        last = events[-1].sequence
    except (*_UNREADABLE, LookupError, cattrs.BaseValidationError) as error:
        raise Damaged(f"it cannot be read: {_words(error)}") from error
    if last != record.sequence:
        raise Damaged(f"its last event is number {last}, the record's {record.sequence}")
    return record, events


def _rename_members_of_version_1(vm: dict[str, Any]) -> None:
    """A supervisor that is upgraded adopts the VMs of the version before."""
    vm["options"] = vm.pop("wishes")
    vm["options"]["request_hash"] = vm["options"].pop("fingerprint")
    vm["fingerprint"] = vm.pop("recipe")
    vm["answered"] = vm["relay"] == RelayState.ANSWERED


def _words(error: Exception) -> str:
    if isinstance(error, cattrs.BaseValidationError):
        return "; ".join(cattrs.transform_error(error))
    return f"{type(error).__name__}: {error}"


_converter = make_converter(forbid_extra_keys=True)
_converter.register_structure_hook(datetime, _moment)
