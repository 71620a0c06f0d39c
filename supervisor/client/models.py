"""What bodies and answers have: made of openapi.yaml by scripts/client."""

# 51dc3868329e9e45bca92bf16758e2aae729d5ac267d9aff38781f0e59ed0ff6
from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

Id: TypeAlias = str


State: TypeAlias = Literal["prelaunch", "running", "paused", "shutdown", "shutoff", "crashed"]


Labels: TypeAlias = dict[str, str]


class Relay(TypedDict):
    state: str


class Forward(TypedDict):
    guest_port: int
    host_address: str
    host_port: int


class Usage(TypedDict):
    at: str
    cpu_s: float
    memory_bytes: int


class QueryStatus(TypedDict):
    status: str
    running: bool


class Attested(TypedDict):
    by: str | None
    at: str
    not_compared: list[str]


Datum: TypeAlias = str


ResultItem: TypeAlias = str


class Parties(TypedDict):
    algorithm: str
    data: list[Datum]
    result: list[ResultItem]
    algorithm_sha256: NotRequired[str]


Base64: TypeAlias = str


class PartiesNow(TypedDict):
    algorithm: str
    data: list[str]
    result: list[str]
    algorithm_sha256: str | None
    sent: list[str]


ComputationItem: TypeAlias = int


class HostWanted(TypedDict):
    """
    what a run asks of the host that takes it, in a fleet
    """

    image: NotRequired[str]
    memory: NotRequired[str]
    labels: NotRequired[Labels]
    replace: NotRequired[Literal["auto", "never"]]


class RunForm(TypedDict):
    """
    small parts first
    """

    run: NotRequired[str]
    computation: NotRequired[bytes]
    compute: NotRequired[str]
    algorithm: NotRequired[bytes]
    data: NotRequired[list[bytes]]


class ComputeRequest(TypedDict):
    time_limit: NotRequired[str]
    memory_limit: NotRequired[str]
    datasets: NotRequired[int]
    then: NotRequired[Literal["keep", "end"]]


class Outcome(TypedDict):
    vm: Id
    state: Literal[
        "succeeded", "failed", "timed-out", "out-of-memory", "result-too-large", "cancelled"
    ]
    error: str
    exit_status: int
    duration_s: float
    ended_at: str
    stdout: str
    stderr: str
    algorithm_sha256: str
    data_sha256: list[str]
    result_size: int
    result_sha256: str


class OutcomeOfForm(TypedDict):
    state: Literal[
        "succeeded", "failed", "timed-out", "out-of-memory", "result-too-large", "cancelled"
    ]
    error: str
    exit_status: int
    duration_s: float
    ended_at: str
    stdout: str
    stderr: str
    algorithm_sha256: str
    data_sha256: list[str]
    result_size: int
    result_sha256: str


class Stored(TypedDict):
    vm: Id
    part: str
    size: int
    sha256: str


class Agent(TypedDict):
    ready: bool
    address: str | None
    protected: bool | None
    reason: str | None
    last_lost: str | None


class Status(TypedDict):
    id: Id
    state: State
    reason: str
    monitor: str
    query_status: QueryStatus | None
    query_sev: dict[str, Any] | None
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    insecure: list[str]
    launch: Literal["plain", "asked", "waiting", "measured", "secret", "released"]
    attested: Attested | None
    asked_at: str | None
    agent: Agent
    uptime_s: float | None
    sequence: int


class Summary(TypedDict):
    host: NotRequired[str]
    id: Id
    state: State
    reason: str
    ended: bool
    owner: str | None
    purpose: str
    labels: Labels
    relay: Relay
    error: str | None
    template: str | None
    agent_ready: bool
    monitor: str
    created_at: str
    ended_at: str | None
    uptime_s: float | None
    forwards: list[Forward]
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    attested: Attested | None
    computed: str | None
    parties: PartiesNow | None
    usage: NotRequired[Usage | None]
    credential: NotRequired[str | None]


class Restart(TypedDict):
    policy: str
    count: int


class Vm(TypedDict):
    host: NotRequired[str]
    id: Id
    state: State
    reason: str
    monitor: str
    query_status: QueryStatus | None
    query_sev: dict[str, Any] | None
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    insecure: list[str]
    launch: Literal["plain", "asked", "waiting", "measured", "secret", "released"]
    attested: Attested | None
    asked_at: str | None
    agent: Agent
    uptime_s: float | None
    sequence: int
    created_at: str
    ended_at: str | None
    ended: bool
    exit_code: int | None
    error: str | None
    pid: int | None
    directory: str
    forwards: list[Forward]
    argv: list[str]
    command: str
    relay: Relay
    request_id: str | None
    ttl_s: float | None
    restart: Restart
    keep_disk: bool
    owner: str | None
    parties: PartiesNow | None
    labels: Labels
    computed: str | None
    purpose: str
    template: str | None
    tee_policy: str | None
    phases_s: dict[str, float]
    usage: NotRequired[Usage | None]


class Page(TypedDict):
    vms: list[Summary]
    next: str | None
    missing: NotRequired[list[str]]


class EventBase(TypedDict):
    sequence: int
    at: str
    vm: str | None
    host: NotRequired[str]
    position: NotRequired[str]


class EventState(EventBase):
    event: Literal["state"]
    state: State
    reason: str
    purpose: NotRequired[str]
    ttl_s: NotRequired[float | None]
    restart: NotRequired[str]
    keep_disk: NotRequired[bool]
    forwards: NotRequired[str]
    tee: NotRequired[str]
    tee_policy: NotRequired[str | None]
    dials: NotRequired[Literal[True]]
    bound_to: NotRequired[str]


class EventLaunched(EventBase):
    event: Literal["launched"]
    pid: int
    template: str | None


class EventAgent(EventBase):
    event: Literal["agent"]
    address: str | None


class EventAgentLate(EventBase):
    event: Literal["agent-late"]
    why: str


class EventAgentLost(EventBase):
    event: Literal["agent-lost"]
    reason: Literal["silent", "refused", "restarted", "disconnected"]
    why: str


class EventAgentLog(EventBase):
    event: Literal["agent-log"]
    level: str
    message: str
    computation: str


class EventAgentEvent(EventBase):
    event: Literal["agent-event"]
    type: str
    status: str
    originator: str
    computation: str
    details: str


class EventRelay(EventBase):
    event: Literal["relay"]
    state: Literal["waiting", "sent", "answered", "failed", "interrupted"]


class EventRenewed(EventBase):
    event: Literal["renewed"]


class EventFallback(EventBase):
    event: Literal["fallback"]
    template: str | None
    why: str


class EventTaken(EventBase):
    event: Literal["taken"]
    ttl_s: float | None
    restart: str
    keep_disk: bool


class EventEnding(EventBase):
    event: Literal["ending"]
    mode: Literal["graceful", "force"]
    cause: str
    why: str


class EventExpiring(EventBase):
    event: Literal["expiring"]
    in_s: float


class EventRestarting(EventBase):
    event: Literal["restarting"]
    number: int
    in_s: float


class EventReset(EventBase):
    event: Literal["reset"]


class EventWatchdog(EventBase):
    event: Literal["watchdog"]
    action: str | None


class EventIoError(EventBase):
    event: Literal["io-error"]
    operation: str | None
    action: str | None
    nospace: bool | None
    reason: str | None


class EventMeasuredLaunch(EventBase):
    event: Literal["measured-launch"]
    step: Literal["waiting", "measured", "secret", "released"]
    for_s: NotRequired[float]


class EventAttested(EventBase):
    event: Literal["attested"]
    by: str
    not_compared: list[str]


class EventUpload(EventBase):
    event: Literal["upload"]
    part: str
    size: int


class EventCompute(EventBase):
    event: Literal["compute"]
    state: str
    error: NotRequired[str]
    duration_s: NotRequired[float]
    result_size: NotRequired[int]


class EventConsole(EventBase):
    event: Literal["console"]
    by: str


class EventMonitor(EventBase):
    event: Literal["monitor"]
    monitor: Literal["lost", "ok"]


class EventDropped(EventBase):
    event: Literal["dropped"]
    count: int


class EventDamaged(EventBase):
    event: Literal["damaged"]
    file: str | None


class EventAdopted(EventBase):
    event: Literal["adopted"]
    running: list[str]
    ended_meanwhile: list[str]


class EventDeleted(EventBase):
    event: Literal["deleted"]


class EventHost(EventBase):
    event: Literal["host"]
    state: Literal["unreached", "reached", "begun-anew"]


class Evidence(TypedDict):
    vm: Id
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    report_data: str
    evidence: str
    certificate: str | None
    verdict: NotRequired[dict[str, Any]]


class Rule(TypedDict):
    field: str
    expected: str | None
    why: str
    option: str | None


class Policy(TypedDict):
    vm: Id
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    rules: list[Rule]
    command: str


class Template(TypedDict):
    digest: str
    state: Literal["building", "ready", "failed", "stale"]
    vm: str | None
    problem: str | None
    error: str | None
    since: str
    built_in_s: float | None
    size_bytes: int | None
    clones: int
    failures: int


class Templates(TypedDict):
    use: str
    possible: bool
    why: str | None
    templates: list[Template]


class LostHost(TypedDict):
    name: str
    lost_s: float


class FleetHost(TypedDict):
    name: str
    address: str
    version: str
    qemu: str
    firmware: str
    image: str | None
    template: bool
    tee: dict[str, int]
    room: int
    vms_free: int
    memory_free_bytes: int
    vcpus_free: int
    vm_memory_bytes: int
    vm_vcpus: int
    labels: Labels
    draining: bool
    since: str


class Drained(TypedDict):
    host: str
    draining: bool
    vms: int
    callers: int


class Computation(TypedDict):
    vm: Id
    state: str


class LaunchMeasurement(TypedDict):
    vm: Id
    data: str
    api_major: int
    api_minor: int
    build_id: int
    policy: int


class Check(TypedDict):
    name: str
    verdict: Literal["ok", "note", "warn", "fail"]
    detail: str
    advice: str


class Checks(TypedDict):
    checks: list[Check]


class SevPlatform(TypedDict):
    pdh: str
    cert_chain: str
    cpu0_id: str
    cbitpos: int
    reduced_phys_bits: int


class WhoAmI(TypedDict):
    name: str | None
    role: str
    known_by: str
    rights: list[str]
    host: NotRequired[str]


class Health(TypedDict):
    status: Literal["pass"]
    version: str
    commit: str
    description: str
    build_time: str
    instance_id: str


class Readiness(TypedDict):
    status: Literal["pass"]


class Cell(TypedDict):
    verdict: Literal["ok", "missing", "unknown"]
    found: str
    advice: str


class Problem(TypedDict):
    """
    RFC 9457; docs/reference/errors.md has all types and their further members
    """

    type: str
    title: str
    status: int
    detail: str
    instance: NotRequired[str]
    advice: NotRequired[str]
    request_id: NotRequired[str]
    vm: NotRequired[str]


class RunRequest(TypedDict):
    computation: str | list[ComputationItem]
    ttl: NotRequired[str]
    restart: NotRequired[Literal["never", "on-failure"]]
    keep_disk: NotRequired[bool]
    template: NotRequired[Literal["auto", "off", "require"]]
    forwards: NotRequired[Literal["host", "none"]]
    tee: NotRequired[Literal["auto", "none", "sev", "sev-es", "sev-snp", "tdx"]]
    tee_policy: NotRequired[str]
    attest: NotRequired[bool]
    dh_cert: NotRequired[str]
    session: NotRequired[str]
    labels: NotRequired[Labels]
    parties: NotRequired[Parties]
    host: NotRequired[HostWanted]


class Answer(TypedDict):
    host: NotRequired[str]
    id: Id
    computation: str
    state: State
    forwards: list[Forward]
    credential: str | None
    tee: Literal["none", "sev", "sev-es", "sev-snp", "tdx"]
    outcome: NotRequired[OutcomeOfForm]


Event: TypeAlias = (
    EventState
    | EventLaunched
    | EventAgent
    | EventAgentLate
    | EventAgentLost
    | EventAgentLog
    | EventAgentEvent
    | EventRelay
    | EventRenewed
    | EventFallback
    | EventTaken
    | EventEnding
    | EventExpiring
    | EventRestarting
    | EventReset
    | EventWatchdog
    | EventIoError
    | EventMeasuredLaunch
    | EventAttested
    | EventUpload
    | EventCompute
    | EventConsole
    | EventMonitor
    | EventDropped
    | EventDamaged
    | EventAdopted
    | EventDeleted
    | EventHost
)


class Events(TypedDict):
    events: list[Event]
    next: str | None
    missing: NotRequired[list[str]]


class Hosts(TypedDict):
    self: str
    reached: bool
    hosts: list[FleetHost]
    lost: list[LostHost]


class Host(TypedDict):
    technologies: dict[str, dict[str, Cell]]
