"""Every setting of the supervisor, declared once. Read once, never assigned to. No I/O.

The settings are in `policy` (limits, life and end of VMs), `qemu`, `servers` and `start` (templates
and pool); `settings` reads declarations. `timing` has waits that no setting changes.

A setting that the original manager had keeps its name and default, with three exceptions: KVM and
SEV are ``auto``, everything listens on loopback, and QMP takes the place of ``MONITOR``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from supervisor.config import settings
from supervisor.config.access import AccessConfig, AccessPaths
from supervisor.config.callers import CallersConfig
from supervisor.config.fleet import Address, FleetConfig
from supervisor.config.policy import (
    Auth,
    LifeConfig,
    LimitsConfig,
    OnStop,
    RestartPolicy,
    RetentionConfig,
    ShutdownConfig,
    StopConfig,
)
from supervisor.config.qemu import (
    DiskConfig,
    FirmwareConfig,
    Forwards,
    GuestNetwork,
    NetConfig,
    QemuConfig,
    SevConfig,
    WatchdogAction,
    size_in_bytes,
)
from supervisor.config.servers import AgentConfig, AgentDials, GrpcConfig, HttpConfig
from supervisor.config.settings import Switch, UidRange, setting
from supervisor.config.start import StartConfig, TemplateUse
from supervisor.config.successor import WITHOUT_EFFECT
from supervisor.config.tee import Policy, PolicyWord, QuoteSocket, Tee, TeeConfig
from supervisor.config.timing import Timing

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LONGEST_BACKOFF_S",
    "MAX_COMPUTATION",
    "WITHOUT_EFFECT",
    "AccessConfig",
    "AccessPaths",
    "Address",
    "AgentConfig",
    "AgentDials",
    "Auth",
    "CallersConfig",
    "Config",
    "DiskConfig",
    "FirmwareConfig",
    "FleetConfig",
    "Forwards",
    "GrpcConfig",
    "GuestNetwork",
    "HttpConfig",
    "LifeConfig",
    "LimitsConfig",
    "NetConfig",
    "OnStop",
    "Policy",
    "PolicyWord",
    "QemuConfig",
    "QuoteSocket",
    "RestartPolicy",
    "RetentionConfig",
    "SevConfig",
    "ShutdownConfig",
    "StartConfig",
    "StopConfig",
    "Tee",
    "TeeConfig",
    "TemplateUse",
    "Timing",
    "WatchdogAction",
    "against_namespaces",
    "help_rows",
    "load",
    "markdown_table",
]

#: The greatest size of a computation in bytes, on HTTP, on gRPC and to the agent.
MAX_COMPUTATION = 16 * 1024 * 1024

#: The longest wait before a restart. Each wait is twice the one before, up to this.
LONGEST_BACKOFF_S = 60.0


@attrs.frozen(kw_only=True)
class Config:
    """All settings."""

    log_level: str = setting("MANAGER_LOG_LEVEL", "info", "debug, info, warning or error")
    instance_id: str | None = setting(
        "MANAGER_INSTANCE_ID", None, "name of this supervisor in /health", shown="a new UUID"
    )
    jaeger_url: str | None = setting(
        "MANAGER_JAEGER_URL",
        None,
        "where traces go, over OTLP; variables of OpenTelemetry's SDK come first",
        "COCOS_JAEGER_URL",
    )
    auth: Auth = setting(
        "MANAGER_AUTH",
        Auth.ON,
        "on: callers are asked who they are, and agents for their run's credential; off: nobody is",
    )
    access: AccessConfig = attrs.field(factory=AccessConfig)
    http: HttpConfig = attrs.field(factory=HttpConfig)
    grpc: GrpcConfig = attrs.field(factory=GrpcConfig)
    callers: CallersConfig = attrs.field(factory=CallersConfig)
    agent: AgentConfig = attrs.field(factory=AgentConfig)
    limits: LimitsConfig = attrs.field(factory=LimitsConfig)
    life: LifeConfig = attrs.field(factory=LifeConfig)
    start: StartConfig = attrs.field(factory=StartConfig)
    shutdown: ShutdownConfig = attrs.field(factory=ShutdownConfig)
    stop: StopConfig = attrs.field(factory=StopConfig)
    retention: RetentionConfig = attrs.field(factory=RetentionConfig)
    fleet: FleetConfig = attrs.field(factory=FleetConfig)
    qemu: QemuConfig = attrs.field(factory=QemuConfig)
    #: The successor's variables that are set, and that nothing reads.
    without_effect: tuple[str, ...] = attrs.field(default=(), metadata={"names": None})
    #: Not settings. Only tests pass other values.
    timing: Timing = attrs.field(factory=Timing, metadata={"names": None})


_REFUSED = {
    "MANAGER_QEMU_MONITOR": "the monitor is QMP on a socket in each VM's directory; unset this"
}

_LOG_LEVELS = ("debug", "info", "warning", "error")


def load(environ: Mapping[str, str]) -> Config:
    """The configuration that these environment variables describe.

    :raises ConfigError: with a line for each problem
    """
    config = settings.read(Config, environ, "MANAGER_", _REFUSED, WITHOUT_EFFECT)
    settings.refuse(_contradictions(config))
    given = tuple(name for name in WITHOUT_EFFECT if environ.get(name))
    config = attrs.evolve(config, without_effect=given)
    return _for_dialling(config) if config.agent.dials is not AgentDials.NO else config


def _for_dialling(config: Config) -> Config:
    """Each guest reads an environment of its own, so none can be copied."""
    start = attrs.evolve(config.start, templates=TemplateUse.OFF)
    net = attrs.evolve(config.qemu.net, dials=True)
    return attrs.evolve(config, start=start, qemu=attrs.evolve(config.qemu, net=net))


def against_namespaces(config: Config) -> list[str]:
    """The settings with which no VM can be in a network namespace of its own, and why."""
    found = []
    if config.qemu.net.guest is GuestNetwork.OPEN:
        found.append("MANAGER_QEMU_GUEST_NETWORK=open, which needs QEMU in the host's network")
    if config.qemu.use_sudo:
        found.append("MANAGER_QEMU_USE_SUDO: there is no root in a namespace of another user")
    if not config.agent.url.is_loopback:
        found.append("MANAGER_AGENT_GRPC_URL, by which the agent is not reached through its VM")
    return found


def _contradictions(config: Config) -> list[str]:
    found = []
    if config.log_level not in _LOG_LEVELS:
        found.append(f"MANAGER_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}")
    found += _contradictions_of_servers(config)
    agent = config.agent
    if (agent.client_cert is None) != (agent.client_key is None):
        found.append("MANAGER_AGENT_GRPC_CLIENT_CERT and MANAGER_AGENT_GRPC_CLIENT_KEY go together")
    if agent.own_certs and (agent.ca_certs or not agent.client_tls):
        found.append(
            "MANAGER_AGENT_GRPC_OWN_CERTS needs MANAGER_AGENT_GRPC_CLIENT_TLS=true, and no"
            " MANAGER_AGENT_GRPC_CA_CERTS"
        )
    if (agent.ca_certs or agent.client_cert) and not agent.client_tls:
        found.append("certificates for the agent need MANAGER_AGENT_GRPC_CLIENT_TLS=true")
    net = config.qemu.net
    if agent.url.is_loopback and agent.url.port not in (
        None,
        net.guest_fwd_1,
        net.guest_fwd_2,
        net.guest_fwd_3,
    ):
        found.append(
            f"MANAGER_AGENT_GRPC_URL={agent.url}: with a loopback host the port is the guest's,"
            " and no MANAGER_QEMU_GUEST_FWD_* forwards to it"
        )
    if not all((net.host_fwd_1, net.host_fwd_2, net.host_fwd_3)):
        found.append("MANAGER_QEMU_HOST_FWD_* must be ports from 1 to 65535")
    if config.qemu.memory_bytes > size_in_bytes(config.qemu.max_memory):
        found.append("MANAGER_QEMU_MEMORY_SIZE must not exceed MANAGER_QEMU_MAX_MEMORY")
    if config.qemu.smp_count < 1 or config.qemu.smp_count > config.qemu.smp_maxcpus:
        found.append("MANAGER_QEMU_SMP_COUNT must be 1 to MANAGER_QEMU_SMP_MAXCPUS")
    if net.forwards is Forwards.NONE:
        found += [f"MANAGER_FORWARDS=none excludes {one}" for one in against_namespaces(config)]
    found += _contradictions_of_dialling(config)
    found += _contradictions_of_users(config.qemu, config.limits)
    found += _contradictions_of_tee(config.qemu)
    found += _contradictions_of_start(config.start, config.limits)
    if config.start.pool_size and agent.is_fixed:
        found.append(f"MANAGER_POOL_SIZE needs an agent for each VM, not {agent.url} alone")
    return [*found, *_contradictions_of_life(config.life, config.retention)]


def _contradictions_of_dialling(config: Config) -> list[str]:
    if config.agent.dials is AgentDials.NO:
        return []
    asked, net = f"MANAGER_AGENT_DIALS={config.agent.dials}", config.qemu.net
    found = [f"{asked} excludes {one}" for one in against_namespaces(config)]
    if net.host_fwd_addr != "127.0.0.1" and net.forwards is Forwards.HOST:
        found.append(
            f"{asked} excludes MANAGER_QEMU_HOST_FWD_ADDR={net.host_fwd_addr}: no answer to another"
            " host leaves the guest's namespace"
        )
    return found


def _contradictions_of_users(qemu: QemuConfig, limits: LimitsConfig) -> list[str]:
    found = []
    if qemu.net.guest is GuestNetwork.INTERNET and qemu.use_sudo:
        found.append(
            "MANAGER_QEMU_GUEST_NETWORK=internet and MANAGER_QEMU_USE_SUDO exclude each other:"
            " there is no root in a namespace of another user"
        )
    if qemu.net.guest_allow and qemu.net.guest is not GuestNetwork.INTERNET:
        found.append("MANAGER_QEMU_GUEST_NETWORK_ALLOW needs MANAGER_QEMU_GUEST_NETWORK=internet")
    if qemu.run_as is not None and qemu.use_sudo:
        found.append("MANAGER_QEMU_RUN_AS and MANAGER_QEMU_USE_SUDO exclude each other")
    if isinstance(qemu.run_as, UidRange):
        # The first is the group of all, and a VM that becomes a template has one.
        ids = qemu.run_as.last - qemu.run_as.first + 1
        if ids < limits.max_vms + 2:
            found.append(
                f"MANAGER_QEMU_RUN_AS={qemu.run_as} must have two ids more than MANAGER_MAX_VMS,"
                f" so {limits.max_vms + 2} at least"
            )
    return found


def _contradictions_of_tee(qemu: QemuConfig) -> list[str]:
    found, tee = [], qemu.tee
    excluded = {
        Switch.TRUE: {Tee.NONE, Tee.TDX},
        Switch.FALSE: set(Tee) - {Tee.NONE},
        Switch.AUTO: set[Tee](),
    }
    if qemu.enable_sev_snp and qemu.enable_tdx and tee.use is None:
        found.append(
            "MANAGER_QEMU_ENABLE_SEV_SNP and MANAGER_QEMU_ENABLE_TDX exclude each other: set"
            " MANAGER_TEE"
        )
    if tee.use in excluded[qemu.enable_sev]:
        found.append(
            f"MANAGER_QEMU_ENABLE_SEV={qemu.enable_sev} and MANAGER_TEE={tee.use} exclude each"
            " other: unset the first"
        )
    if (tee.id_block is None) != (tee.id_auth is None):
        found.append("MANAGER_TEE_ID_BLOCK and MANAGER_TEE_ID_AUTH go together")
    if (tee.initrd or tee.cmdline) and not tee.kernel:
        found.append("MANAGER_TEE_INITRD and MANAGER_TEE_CMDLINE need MANAGER_TEE_KERNEL")
    if tee.igvm and (tee.kernel or tee.firmware or tee.id_block):
        found.append(
            "MANAGER_TEE_IGVM excludes MANAGER_TEE_KERNEL, _FIRMWARE and _ID_BLOCK: all is in the"
            " one file"
        )
    return found


def _contradictions_of_servers(config: Config) -> list[str]:
    found = []
    for name, server in (("HTTP", config.http), ("GRPC", config.grpc)):
        if (server.server_cert is None) != (server.server_key is None):
            found.append(f"MANAGER_{name}_SERVER_CERT and MANAGER_{name}_SERVER_KEY go together")
        elif server.client_ca_certs and not server.server_cert:
            found.append(f"MANAGER_{name}_CLIENT_CA_CERTS needs MANAGER_{name}_SERVER_CERT")
    if config.callers.body_bytes < 4 * MAX_COMPUTATION:
        found.append(f"MANAGER_BODY_BUDGET must be at least {4 * MAX_COMPUTATION >> 20}M")
    return found


def _contradictions_of_start(start: StartConfig, limits: LimitsConfig) -> list[str]:
    found = []
    if start.templates is TemplateUse.REQUIRE:
        found.append("MANAGER_TEMPLATES must be auto or off; a run can require a template")
    if start.pool_size > limits.max_vms:
        found.append("MANAGER_POOL_SIZE must not exceed MANAGER_MAX_VMS")
    return found


def _contradictions_of_life(life: LifeConfig, retention: RetentionConfig) -> list[str]:
    found = []
    if life.restart is not RestartPolicy.NEVER and not life.restart_limit:
        found.append(f"MANAGER_RESTART={life.restart} needs a MANAGER_RESTART_LIMIT of at least 1")
    if life.restart_backoff_s > LONGEST_BACKOFF_S:
        found.append(
            "MANAGER_RESTART_BACKOFF must not exceed 1m, the longest wait before a restart"
        )
    if retention.disks and not retention.count:
        found.append("MANAGER_KEEP_DISKS=true needs a MANAGER_KEEP_ENDED of at least 1")
    return found


def help_rows() -> list[tuple[str, str]]:
    """For a command's help: each setting's names, and its meaning with its default."""
    return [
        (", ".join(one.names), f"{one.help} [{one.default_text}]" if one.default_text else one.help)
        for one in settings.declared(Config)
    ]


def markdown_table() -> str:
    """The table in docs/reference/settings.md."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for one in settings.declared(Config):
        also = "".join(f" (or `{alias}`)" for alias in one.names[1:])
        default = f"`{one.default_text}`" if one.default_text else ""
        rows.append(f"| `{one.names[0]}`{also} | {default} | {one.help} |")
    return "\n".join(rows)
