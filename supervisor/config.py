"""Every setting of the supervisor, declared once. Read once, never assigned to. No I/O.

The names and defaults are the original manager's where it had them. What differs on purpose:
``auto`` for KVM and SEV, loopback for everything that listens, and QMP for ``MONITOR``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from supervisor import settings
from supervisor.settings import (
    AgentUrl,
    IPv4,
    OnOff,
    Port,
    PortRange,
    Seconds,
    Size,
    Switch,
    setting,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A computation's size in bytes, on HTTP, on gRPC and towards the agent alike.
MAX_COMPUTATION = 16 * 1024 * 1024


@attrs.frozen(kw_only=True)
class HttpConfig:
    """Where the HTTP API listens. A certificate and its key make it HTTPS."""

    host: str = setting("MANAGER_HTTP_HOST", "127.0.0.1", "address the HTTP API listens on")
    port: Port = setting("MANAGER_HTTP_PORT", 9021, "its port; 0 lets the system choose")
    server_cert: Path | None = setting(
        "MANAGER_HTTP_SERVER_CERT", None, "PEM certificate chain; with the key: HTTPS"
    )
    server_key: Path | None = setting("MANAGER_HTTP_SERVER_KEY", None, "PEM private key")
    client_ca_certs: Path | None = setting(
        "MANAGER_HTTP_CLIENT_CA_CERTS", None, "PEM CAs; set: clients must show a certificate"
    )


@attrs.frozen(kw_only=True)
class GrpcConfig:
    """Where the gRPC API listens. A certificate and its key make it TLS."""

    host: str = setting("MANAGER_GRPC_HOST", "127.0.0.1", "address the gRPC API listens on")
    port: Port = setting("MANAGER_GRPC_PORT", 7001, "its port; 0 lets the system choose")
    server_cert: Path | None = setting(
        "MANAGER_GRPC_SERVER_CERT", None, "PEM certificate chain; with the key: TLS"
    )
    server_key: Path | None = setting("MANAGER_GRPC_SERVER_KEY", None, "PEM private key")
    client_ca_certs: Path | None = setting(
        "MANAGER_GRPC_CLIENT_CA_CERTS", None, "PEM CAs; set: clients must show a certificate"
    )


@attrs.frozen(kw_only=True)
class AgentConfig:
    """How the agents in the guests are reached."""

    url: AgentUrl = setting(
        "MANAGER_AGENT_GRPC_URL",
        AgentUrl("localhost", 7002),
        "loopback: the port is the guest's, each VM is reached at its own forwarded port;"
        " any other host: the fixed address of one bridged guest"
        " (`{port}` stands for the VM's host port)",
        "AGENT_GRPC_URL",
    )
    timeout_s: Seconds = setting(
        "MANAGER_AGENT_GRPC_TIMEOUT",
        60.0,
        "longest time for the agent's answer to one call",
        "AGENT_GRPC_TIMEOUT",
    )
    ca_certs: Path | None = setting(
        "MANAGER_AGENT_GRPC_CA_CERTS",
        None,
        "PEM CAs the agent's certificate is checked against; unset: the system's",
        "AGENT_GRPC_CA_CERTS",
    )
    client_tls: bool = setting(
        "MANAGER_AGENT_GRPC_CLIENT_TLS",
        False,
        "whether agents are spoken to over TLS",
        "AGENT_GRPC_CLIENT_TLS",
    )
    client_cert: Path | None = setting(
        "MANAGER_AGENT_GRPC_CLIENT_CERT", None, "PEM certificate shown to the agent (mutual TLS)"
    )
    client_key: Path | None = setting(
        "MANAGER_AGENT_GRPC_CLIENT_KEY", None, "PEM private key that belongs to it"
    )
    server_name: str | None = setting(
        "MANAGER_AGENT_GRPC_SERVER_NAME",
        None,
        "name in the agent's certificate, where it is not the host of the URL",
    )
    boot_timeout_s: Seconds = setting(
        "MANAGER_BOOT_TIMEOUT", 180.0, "longest time from the VM's start to its agent being ready"
    )


@attrs.frozen(kw_only=True)
class ShutdownConfig:
    """How a VM is ended: each step's grace period, after which the next one is taken."""

    powerdown_grace_s: Seconds = setting(
        "MANAGER_POWERDOWN_GRACE", 60.0, "time for the guest to power off when asked by ACPI"
    )
    powerdown_interval_s: Seconds = setting(
        "MANAGER_POWERDOWN_INTERVAL",
        5.0,
        "the power button is pressed again after this time; a guest that is still booting"
        " does not hear the first",
    )
    quit_grace_s: Seconds = setting(
        "MANAGER_QUIT_GRACE", 10.0, "time for QEMU to exit after QMP quit"
    )
    term_grace_s: Seconds = setting(
        "MANAGER_TERM_GRACE", 5.0, "time for QEMU to exit after SIGTERM; then SIGKILL"
    )

    @property
    def longest_s(self) -> float:
        """All steps together, and some time for the kernel to take a killed process away."""
        return self.powerdown_grace_s + self.quit_grace_s + self.term_grace_s + 15


@attrs.frozen(kw_only=True)
class NetConfig:
    """The guest's network card and the host ports that lead to it."""

    id: str = setting("MANAGER_QEMU_NETDEV_ID", "vmnic", "id of the network back end")
    host_fwd_addr: IPv4 = setting(
        "MANAGER_QEMU_HOST_FWD_ADDR", "127.0.0.1", "host address the forwarded ports listen on"
    )
    host_fwd_1: Port = setting(
        "MANAGER_QEMU_HOST_FWD_1", 2222, "first host port tried for the guest's first port"
    )
    guest_fwd_1: Port = setting("MANAGER_QEMU_GUEST_FWD_1", 22, "SSH in the guest")
    host_fwd_2: Port = setting("MANAGER_QEMU_HOST_FWD_2", 9301, "likewise for the second")
    guest_fwd_2: Port = setting("MANAGER_QEMU_GUEST_FWD_2", 9031, "the agent's HTTP in the guest")
    host_fwd_3: Port = setting("MANAGER_QEMU_HOST_FWD_3", 7020, "likewise for the third")
    guest_fwd_3: Port = setting("MANAGER_QEMU_GUEST_FWD_3", 7002, "the agent's gRPC in the guest")
    host_fwd_range: PortRange | None = setting(
        "MANAGER_QEMU_HOST_FWD_RANGE",
        None,
        "take all host ports from this range, such as 6100-6200, and not from the three above",
    )
    disable_legacy: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_NET_PCI_DISABLE_LEGACY", "on", "of the network card"
    )
    iommu_platform: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_NET_PCI_IOMMU_PLATFORM", "true", "of the network card"
    )
    romfile: str = setting("MANAGER_QEMU_VIRTIO_NET_PCI_ROMFILE", "", "of the network card")


@attrs.frozen(kw_only=True)
class FirmwareConfig:
    """OVMF: the code all VMs share, and the variables each gets a copy of."""

    code_if: str = setting("MANAGER_QEMU_OVMF_CODE_IF", "pflash", "interface of the CODE drive")
    code_format: str = setting("MANAGER_QEMU_OVMF_CODE_FORMAT", "raw", "its format")
    code_unit: int = setting("MANAGER_QEMU_OVMF_CODE_UNIT", 0, "its unit")
    code_file: Path = setting(
        "MANAGER_QEMU_OVMF_CODE_FILE", Path("/usr/share/OVMF/OVMF_CODE.fd"), "its file, shared"
    )
    code_readonly: OnOff = setting("MANAGER_QEMU_OVMF_CODE_READONLY", "on", "read only or not")
    vars_if: str = setting("MANAGER_QEMU_OVMF_VARS_IF", "pflash", "interface of the VARS drive")
    vars_format: str = setting("MANAGER_QEMU_OVMF_VARS_FORMAT", "raw", "its format")
    vars_unit: int = setting("MANAGER_QEMU_OVMF_VARS_UNIT", 1, "its unit")
    vars_file: Path = setting(
        "MANAGER_QEMU_OVMF_VARS_FILE",
        Path("/usr/share/OVMF/OVMF_VARS.fd"),
        "its file; each VM gets a copy",
    )


@attrs.frozen(kw_only=True)
class DiskConfig:
    """The base image and the controller it hangs on. Each VM writes to an overlay of its own."""

    file: Path = setting(
        "MANAGER_QEMU_DISK_IMG_FILE", Path("img/focal-server-cloudimg-amd64.img"), "base image"
    )
    interface: str = setting("MANAGER_QEMU_DISK_IMG_IF", "none", "interface of the disk's drive")
    id: str = setting("MANAGER_QEMU_DISK_IMG_ID", "disk0", "id of the disk's drive")
    format: str = setting("MANAGER_QEMU_DISK_IMG_FORMAT", "qcow2", "format of the base image")
    scsi_id: str = setting("MANAGER_QEMU_VIRTIO_SCSI_PCI_ID", "scsi", "id of the SCSI controller")
    disable_legacy: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_DISABLE_LEGACY", "on", "of the SCSI controller"
    )
    iommu_platform: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_IOMMU_PLATFORM", "true", "of the SCSI controller"
    )


@attrs.frozen(kw_only=True)
class SevConfig:
    """AMD SEV's object on the command line."""

    id: str = setting("MANAGER_QEMU_SEV_ID", "sev0", "id of the sev-guest object")
    cbitpos: int = setting(
        "MANAGER_QEMU_SEV_CBITPOS", 51, "position of the C-bit in a page table entry; the host's"
    )
    reduced_phys_bits: int = setting(
        "MANAGER_QEMU_SEV_REDUCED_PHYS_BITS", 1, "physical address bits lost to encryption"
    )


@attrs.frozen(kw_only=True)
class QemuConfig:
    """How QEMU is started."""

    bin_path: str = setting("MANAGER_QEMU_BIN_PATH", "qemu-system-x86_64", "QEMU, by name or path")
    tmp: Path = setting(
        "MANAGER_QEMU_TMP_FILE_LOC", Path("tmp"), "directory that holds one directory a VM"
    )
    use_sudo: bool = setting("MANAGER_QEMU_USE_SUDO", False, "start QEMU through sudo")
    enable_kvm: Switch = setting(
        "MANAGER_QEMU_ENABLE_KVM",
        Switch.AUTO,
        "auto: by a probe that runs guest code; true: refuse to start without; false: emulate",
    )
    enable_sev: Switch = setting(
        "MANAGER_QEMU_ENABLE_SEV",
        Switch.AUTO,
        "auto: where the host offers it; true: refuse to start without; false: plain VMs",
    )
    machine: str = setting("MANAGER_QEMU_MACHINE", "q35", "QEMU's machine type")
    cpu: str | None = setting(
        "MANAGER_QEMU_CPU", None, "CPU model", shown="EPYC with KVM, max without"
    )
    smp_count: int = setting("MANAGER_QEMU_SMP_COUNT", 4, "virtual CPUs")
    smp_maxcpus: int = setting("MANAGER_QEMU_SMP_MAXCPUS", 64, "virtual CPUs that could be plugged")
    memory_size: Size = setting("MANAGER_QEMU_MEMORY_SIZE", "2048M", "memory")
    memory_slots: int = setting("MANAGER_QEMU_MEMORY_SLOTS", 5, "slots for more")
    max_memory: Size = setting("MANAGER_QEMU_MAX_MEMORY", "30G", "memory with all slots filled")
    no_graphic: bool = setting("MANAGER_QEMU_NO_GRAPHIC", True, "no display")
    firmware: FirmwareConfig = attrs.field(factory=FirmwareConfig)
    disk: DiskConfig = attrs.field(factory=DiskConfig)
    net: NetConfig = attrs.field(factory=NetConfig)
    sev: SevConfig = attrs.field(factory=SevConfig)


@attrs.frozen(kw_only=True)
class Config:
    """All of it."""

    log_level: str = setting("MANAGER_LOG_LEVEL", "info", "debug, info, warning or error")
    instance_id: str | None = setting(
        "MANAGER_INSTANCE_ID", None, "name of this supervisor in /health", shown="a new UUID"
    )
    max_vms: int = setting("MANAGER_MAX_VMS", 10, "VMs that may run at once")
    jaeger_url: str | None = setting(
        "MANAGER_JAEGER_URL", None, "reserved for tracing, which is not there yet"
    )
    http: HttpConfig = attrs.field(factory=HttpConfig)
    grpc: GrpcConfig = attrs.field(factory=GrpcConfig)
    agent: AgentConfig = attrs.field(factory=AgentConfig)
    shutdown: ShutdownConfig = attrs.field(factory=ShutdownConfig)
    qemu: QemuConfig = attrs.field(factory=QemuConfig)


_REFUSED = {
    "MANAGER_QEMU_MONITOR": "the monitor is QMP on a socket of each VM's directory; unset this"
}

_LOG_LEVELS = ("debug", "info", "warning", "error")


def load(environ: Mapping[str, str]) -> Config:
    """The configuration that these environment variables describe.

    :raises ConfigError: with a line for each problem
    """
    config = settings.read(Config, environ, "MANAGER_", _REFUSED)
    settings.refuse(_contradictions(config))
    return config


def _contradictions(config: Config) -> list[str]:
    found = []
    if config.log_level not in _LOG_LEVELS:
        found.append(f"MANAGER_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}")
    for name, server in (("HTTP", config.http), ("GRPC", config.grpc)):
        if (server.server_cert is None) != (server.server_key is None):
            found.append(f"MANAGER_{name}_SERVER_CERT and MANAGER_{name}_SERVER_KEY go together")
        elif server.client_ca_certs and not server.server_cert:
            found.append(f"MANAGER_{name}_CLIENT_CA_CERTS needs MANAGER_{name}_SERVER_CERT")
    agent = config.agent
    if (agent.client_cert is None) != (agent.client_key is None):
        found.append("MANAGER_AGENT_GRPC_CLIENT_CERT and MANAGER_AGENT_GRPC_CLIENT_KEY go together")
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
        found.append("MANAGER_QEMU_HOST_FWD_* must be ports from 1 on")
    if _bytes(config.qemu.memory_size) > _bytes(config.qemu.max_memory):
        found.append("MANAGER_QEMU_MEMORY_SIZE must not be over MANAGER_QEMU_MAX_MEMORY")
    if config.qemu.smp_count < 1 or config.qemu.smp_count > config.qemu.smp_maxcpus:
        found.append("MANAGER_QEMU_SMP_COUNT must be 1 to MANAGER_QEMU_SMP_MAXCPUS")
    return found


def _bytes(size: str) -> int:
    """What QEMU takes a size for: mebibytes where there is no unit."""
    unit = size[-1].upper()
    power = "KMGT".find(unit) + 1
    return int(size[:-1]) << (10 * power) if power else int(size) << 20


def help_rows() -> list[tuple[str, str]]:
    """Name, and meaning with default, of every setting: for a command's help."""
    return [
        (", ".join(one.names), f"{one.help} [{one.default_text}]" if one.default_text else one.help)
        for one in settings.declared(Config)
    ]


def markdown_table() -> str:
    """The README's table of settings."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for one in settings.declared(Config):
        also = "".join(f" (or `{alias}`)" for alias in one.names[1:])
        default = f"`{one.default_text}`" if one.default_text else ""
        rows.append(f"| `{one.names[0]}`{also} | {default} | {one.help} |")
    return "\n".join(rows)
