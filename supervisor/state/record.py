"""A VM's record and its events. How they stand on disk: `record_file`. Pure.

A supervisor needs nothing but a `Record` to adopt a VM that another supervisor started. After a
VM has ended, its record answers every request about it.
"""

from __future__ import annotations

import enum
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.config import Forwards, RestartPolicy, Tee, TemplateUse
from supervisor.parties import Parties  # noqa: TC001 - cattrs resolves it
from supervisor.qemu.cmdline import Forward  # noqa: TC001 - cattrs resolves it
from supervisor.qemu.process import ProcessId  # noqa: TC001 - cattrs resolves it
from supervisor.state.status import RunState, Status, VmState
from supervisor.tee.expected import Measurement
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The status of a new VM.
PRELAUNCH = Status(VmState.PRELAUNCH, RunState.PRELAUNCH)


class RelayState(enum.StrEnum):
    """How far the computation has come. A fact beside the VM's state, not part of it."""

    #: There is no computation.
    IDLE = "idle"
    #: The agent is not ready yet.
    WAITING = "waiting"
    #: The agent has the computation and has not answered yet.
    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    #: The supervisor stopped or the guest was reset while the computation was with the agent, so
    #: its result is unknown. It is sent again only if the run's restart policy boots the guest
    #: again.
    INTERRUPTED = "interrupted"


class Purpose(enum.StrEnum):
    """Why a VM was started."""

    RUN = "run"
    #: Kept ready for a later run, which then takes it.
    POOL = "pool"
    #: Restored from a template and held before its first instruction, until a run takes it.
    HELD = "held"
    #: Booted to become a template.
    TEMPLATE = "template"
    #: Its agent asks another service for its computation.
    CVM = "cvm"

    @property
    def is_for_a_caller(self) -> bool:
        return self in (Purpose.RUN, Purpose.CVM)


class EndMode(enum.StrEnum):
    """How a VM is ended: the guest is asked to power off, or it is not asked."""

    GRACEFUL = "graceful"
    FORCE = "force"


class EndCause(enum.StrEnum):
    """Who asked for a VM's end, or what made it necessary."""

    API = "api"
    #: The caller of ``POST /run`` hung up.
    CALLER_LEFT = "caller-left"
    DELETED = "deleted"
    #: The supervisor is stopping.
    STOPPING = "stopping"
    TTL = "ttl"
    RUN_FAILED = "run-failed"
    #: The run that took it could not be recorded.
    UNRECORDED = "unrecorded"
    #: No template could be made from it.
    TEMPLATE_FAILED = "template-failed"
    #: QEMU's QMP socket is gone, so the supervisor cannot reach QEMU any more.
    SOCKET_GONE = "socket-gone"
    #: Its run wanted no more than the result, which is here.
    COMPUTED = "computed"
    #: The fleet has given its run to another host.
    TAKEN_OVER = "taken-over"
    #: This host has given its run back to the fleet.
    HANDED_BACK = "handed-back"
    #: Its owner did not attest its launch in time.
    UNATTESTED = "unattested"
    #: The guest makes QEMU send more events than the supervisor can read.
    FLOOD = "flood"

    @property
    def is_failure(self) -> bool:
        """Whether something went wrong, and nobody asked for the end."""
        return self in (
            EndCause.RUN_FAILED,
            EndCause.UNRECORDED,
            EndCause.TEMPLATE_FAILED,
            EndCause.SOCKET_GONE,
            EndCause.FLOOD,
            EndCause.UNATTESTED,
            EndCause.TAKEN_OVER,
        )


class EventKind(enum.StrEnum):
    """What an `Event` reports. docs/reference/events.md lists the data of each kind."""

    STATE = "state"
    LAUNCHED = "launched"
    AGENT = "agent"
    AGENT_LATE = "agent-late"
    AGENT_LOST = "agent-lost"
    AGENT_LOG = "agent-log"
    AGENT_EVENT = "agent-event"
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
    MEASURED_LAUNCH = "measured-launch"
    ATTESTED = "attested"
    UPLOAD = "upload"
    COMPUTE = "compute"
    CONSOLE = "console"
    MONITOR = "monitor"
    DROPPED = "dropped"
    DAMAGED = "damaged"
    ADOPTED = "adopted"
    DELETED = "deleted"


class Launch(enum.StrEnum):
    """How far a measured launch has come."""

    #: The run did not ask for one.
    PLAIN = "plain"
    #: QEMU has yet to launch the guest.
    ASKED = "asked"
    #: The guest waits, and nobody has asked for its measurement.
    WAITING = "waiting"
    MEASURED = "measured"
    #: The guest has its owner's secret.
    SECRET = "secret"
    #: Its owner let it run.
    RELEASED = "released"


class Phase(enum.StrEnum):
    """The steps of a run, in their usual order. ``phases_s`` and Server-Timing use these names."""

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
    HELD = "held"
    RELAY = "relay"
    #: Not a step: the warning before a VM's ttl ends was given. It is given once.
    EXPIRING = "expiring"


@attrs.frozen(kw_only=True)
class RunOptions:
    """What a run asked for besides its computation, with the defaults filled in.

    :param ttl_s: seconds from the guest's first instruction to the VM's shutdown
    :param forwards: whether ports of the host lead into the VM, or ``rpc.sock`` to its agent
    :param dials: whether the agent dials the supervisor
    :param tee: what the VM is confidential by. On record it is never ``auto``
    :param tee_policy: the guest's policy, in the words of `supervisor.config.Policy`
    :param attest: whether the guest waits for its owner's word before it runs
    :param dh_cert, session: of the owner's launch session, in base64; empty if he has none
    :param kernel_words: what follows the settings' words on the command line of a kernel that is
        booted directly
    :param parties: who brings and gets what; None: its owner does
    :param labels: its owner's own words, by which he finds it again
    :param request_hash: the hash of the request that had the key, from `request_hash`
    :param request_id: the id of the request that asked for it; empty if it had none
    :param fleet_run: its id in the fleet that this host is a member of; empty if it has none
    :param epoch: how many hosts had it, this one included
    """

    ttl_s: float | None = None
    restart: RestartPolicy = RestartPolicy.NEVER
    keep_disk: bool = False
    template: TemplateUse = TemplateUse.AUTO
    forwards: Forwards = Forwards.HOST
    dials: bool = False
    tee: Tee = Tee.NONE
    tee_policy: str = ""
    attest: bool = False
    dh_cert: str = ""
    session: str = ""
    kernel_words: str = ""
    parties: Parties | None = None
    labels: dict[str, str] = attrs.field(factory=dict)
    idempotency_key: str | None = None
    request_hash: str = ""
    request_id: str = ""
    fleet_run: str = ""
    epoch: int = 0

    @property
    def once(self) -> str | None:
        """What two runs of one owner have in common if they are one and the same."""
        return f"{self.fleet_run} {self.epoch}" if self.fleet_run else self.idempotency_key

    @property
    def technology(self) -> Technology | None:
        """What the VM is confidential by; None if it is a plain one."""
        return None if self.tee is Tee.NONE else Technology(self.tee)


@attrs.frozen
class BaseImage:
    """Which file a VM's disk was made on. Another file at this path is not this one.

    The device's number is not part of it: it may change when the host boots.

    :param path: without symbolic links
    :param modified_ns: when the content last changed, in nanoseconds since the epoch
    """

    path: str
    inode: int
    size_bytes: int
    modified_ns: int

    def __str__(self) -> str:
        at = moment(datetime.fromtimestamp(self.modified_ns / 1e9, UTC))
        return f"{self.size_bytes} bytes of {at}, inode {self.inode}"


@attrs.frozen(kw_only=True)
class Record:
    """One VM.

    :param owner: the name of the caller who posted its run; empty if nobody did, as for a VM of
        the pool, or if nobody was asked for a name
    :param sequence: the number of the VM's last event
    :param fingerprint: the digest of what its QEMU was started with: see `supervisor.templates`
    :param template: the name of the template that it was started from; None for a cold boot
    :param base: the image below its disk, below its template's disk included; None if unknown
    :param bound_to: what its reports say of its computation, in hexadecimal digits; see
        `supervisor.tee.binding`
    :param measurement: what the processor measured when its QEMU was started last, by the files
    :param launch: how far its measured launch has come
    :param launch_by_s: until when its owner may take, in seconds of CLOCK_BOOTTIME
    :param attested_by, attested_at: who let it run after a measured launch, and when; None if
        nobody did
    :param attested_without: the fields on what was launched that were not compared then
    :param renewed: whether its guest, a clone, has been told that it is a copy
    :param ending: how the VM is ended; None until its end is requested
    :param end_cause: who requested the end, or what made it necessary
    :param answered: whether the agent has ever answered; the answer is in the file ``reply``
    :param computed: what became of its last algorithm: ``running``, ``interrupted``, or the state
        of a `supervisor.agent.computing.Outcome`; empty if there was none. The result is in the
        file ``result``
    :param sent: the parts that the present guest's agent has got: ``algorithm``, ``data/0``
    :param first_ran_s: when the VM's first guest began to run, in seconds of the host's
        CLOCK_BOOTTIME, which counts while the host sleeps and cannot be set
    :param running_since_s: when the present guest began to run, on the same clock; a restart sets
        it again
    :param exit_code: QEMU's exit code; negative for a signal; None while QEMU runs, and if QEMU
        was not a child of this supervisor
    :param phases: when each step was done, in seconds after the run was requested
    :param ended_at: set once no process of the VM is left and none will follow
    :param ended_s: the same moment on CLOCK_BOOTTIME
    :param ended_boot: the id of the host's boot that ``ended_s`` belongs to; empty if unknown
    """

    id: str
    created_at: datetime
    options: RunOptions
    memory_bytes: int
    vcpus: int
    owner: str = ""
    sequence: int = 0
    status: Status = PRELAUNCH
    purpose: Purpose = Purpose.RUN
    fingerprint: str = ""
    template: str | None = None
    base: BaseImage | None = None
    bound_to: str = ""
    measurement: Measurement = attrs.field(factory=Measurement)
    launch: Launch = Launch.PLAIN
    launch_by_s: float = 0.0
    attested_by: str = ""
    attested_at: datetime | None = None
    attested_without: tuple[str, ...] = ()
    renewed: bool = False
    ending: EndMode | None = None
    end_cause: EndCause | None = None
    process: ProcessId | None = None
    forwards: tuple[Forward, ...] = ()
    command: tuple[str, ...] = ()
    agent_address: str | None = None
    relay: RelayState = RelayState.WAITING
    answered: bool = False
    computed: str = ""
    sent: tuple[str, ...] = ()
    restarts: int = 0
    first_ran_s: float | None = None
    running_since_s: float | None = None
    phases: dict[str, float] = attrs.field(factory=dict)
    exit_code: int | None = None
    error: str | None = None
    ended_at: datetime | None = None
    ended_s: float = 0.0
    ended_boot: str = ""

    @property
    def reads_shares(self) -> bool:
        """Whether its guest is one of the successor's, and reads its environment over 9p."""
        return self.options.dials or self.purpose is Purpose.CVM

    @property
    def start(self) -> str:
        """How its guest came: ``cold``, ``template``, ``held`` or ``pool``."""
        for taken in (Phase.POOL, Phase.HELD):
            if taken in self.phases:
                return taken.value
        return "template" if self.template else "cold"

    @property
    def steps(self) -> list[tuple[str, float]]:
        """The steps of its start, to the agent's answer, and how many seconds each took.

        The warning of its ttl is none, and may come before the last.
        """
        answered = self.phases.get(Phase.RELAY, 0.0)
        reached = [
            (at, name)
            for name, at in self.phases.items()
            if name != Phase.EXPIRING and at <= answered  # else perhaps in a later supervisor
        ]
        found, before = [], 0.0
        for at, name in sorted(reached, key=lambda step: step[0]):
            found.append((name, at - before))
            before = at
        return found

    @property
    def ended(self) -> bool:
        """Whether no process of the VM is left and none will follow."""
        return self.ended_at is not None

    @property
    def awaits_answer(self) -> bool:
        """Whether the agent may still answer."""
        return not self.answered and self.relay in (RelayState.WAITING, RelayState.SENT)

    @property
    def settled(self) -> bool:
        """Whether the computation is answered, failed or interrupted for good.

        An answer stays valid even if the guest is booted again and gets the computation again.
        """
        given_up = (RelayState.FAILED, RelayState.INTERRUPTED)
        return self.answered or self.relay in given_up or self.ended


@attrs.frozen
class Event:
    """Something that happened to a VM, or to the supervisor if ``vm_id`` is None.

    :param sequence: greater than the number of every earlier event of this tmp/, across restarts
        of the supervisor
    :param data: depends on the kind; an event ``state`` has ``state`` and ``reason``
    :param owner: the owner that the VM had then. It is on disk, and decides who is told; no reader
        is told of it
    """

    sequence: int
    at: datetime
    vm_id: str | None
    kind: EventKind
    data: Mapping[str, Any]
    owner: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The event as a JSON object, for both APIs."""
        return {
            "sequence": self.sequence,
            "at": moment(self.at),
            "vm": self.vm_id,
            "event": self.kind,
            **self.data,
        }


def request_hash(computation: bytes, *members: object, **later_members: object) -> str:
    """The SHA-256 of a request as it was sent, because defaults may change before it is repeated.

    :param later_members: members that older records do not have; None counts as absent, so that
        the hash of an older request stays the same
    """
    sent = (*members, *(pair for pair in later_members.items() if pair[1] is not None))
    return hashlib.sha256(repr(sent).encode() + b"\n" + computation).hexdigest()


def moment(at: datetime) -> str:
    """A time as RFC 3339 writes it, in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
