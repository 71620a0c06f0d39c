"""The settings: every name with its default, what is refused, and what contradicts itself."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import attrs
import pytest

from supervisor import config
from supervisor.caller import Role
from supervisor.config import (
    Address,
    AgentDials,
    Auth,
    Config,
    Forwards,
    GuestNetwork,
    OnStop,
    Policy,
    PolicyWord,
    QuoteSocket,
    RestartPolicy,
    Tee,
    TemplateUse,
    WatchdogAction,
    settings,
)
from supervisor.config.settings import AgentUrl, PortRange, Switch, UidRange
from supervisor.errors import ConfigError

#: Name, where it is kept, its default, another value as written and as read.
ROWS: list[tuple[str, str, Any, str, Any]] = [
    ("MANAGER_LOG_LEVEL", "log_level", "info", "debug", "debug"),
    ("MANAGER_INSTANCE_ID", "instance_id", None, "one", "one"),
    ("MANAGER_MAX_VMS", "limits.max_vms", 10, "3", 3),
    ("MANAGER_MAX_VMS_PER_OWNER", "limits.max_vms_per_owner", None, "3", 3),
    ("MANAGER_MAX_MEMORY_PER_OWNER", "limits.max_memory_per_owner", None, "3G", "3G"),
    ("MANAGER_MEMORY_OVERCOMMIT", "limits.memory_overcommit", 1.0, "1.5", 1.5),
    ("MANAGER_VCPU_OVERCOMMIT", "limits.vcpu_overcommit", 16.0, "2", 2.0),
    ("MANAGER_QUEUE", "limits.queue", 16, "0", 0),
    (
        "MANAGER_FLEET",
        "fleet.servers",
        None,
        "nats://10.0.0.1:4222, nats://[fd00::1]:4222",
        ("nats://10.0.0.1:4222", "nats://[fd00::1]:4222"),
    ),
    ("MANAGER_FLEET_DIR", "fleet.directory", Path("/etc/qmp-supervisor/fleet"), "/f", Path("/f")),
    ("MANAGER_FLEET_ADDRESS", "fleet.address", None, "[fd00::1]:9", Address("fd00::1", 9)),
    (
        "MANAGER_FLEET_LABELS",
        "fleet.labels",
        None,
        "zone=a, rack=7",
        {"zone": "a", "rack": "7"},
    ),
    ("MANAGER_QUEUE_TIMEOUT", "limits.queue_timeout_s", 60.0, "PT2M", 120.0),
    ("MANAGER_TTL", "life.ttl_s", None, "PT1H30M", 5400.0),
    ("MANAGER_TTL_WARNING", "life.ttl_warning_s", 60.0, "5m", 300.0),
    (
        "MANAGER_RESTART",
        "life.restart",
        RestartPolicy.NEVER,
        "on-failure",
        RestartPolicy.ON_FAILURE,
    ),
    ("MANAGER_TEMPLATES", "start.templates", TemplateUse.AUTO, "off", TemplateUse.OFF),
    ("MANAGER_CLONE_TIMEOUT", "start.clone_timeout_s", 10.0, "3s", 3.0),
    ("MANAGER_HELD_CLONES", "start.held_clones", 2, "0", 0),
    ("MANAGER_POOL_SIZE", "start.pool_size", 0, "4", 4),
    ("MANAGER_POOL_MAX_AGE", "start.pool_max_age_s", 3600.0, "5m", 300.0),
    ("MANAGER_POOL_INTERVAL", "start.pool_interval_s", 1.0, "200ms", 0.2),
    ("MANAGER_RESTART_BACKOFF", "life.restart_backoff_s", 1.0, "PT1M", 60.0),
    ("MANAGER_RESTART_LIMIT", "life.restart_limit", 5, "3", 3),
    ("MANAGER_START_TIMEOUT", "life.start_timeout_s", 30.0, "1m", 60.0),
    ("MANAGER_ATTEST_TIMEOUT", "life.attest_timeout_s", 600.0, "1h", 3600.0),
    ("MANAGER_HEARTBEAT", "life.heartbeat_s", 30.0, "10", 10.0),
    ("MANAGER_LOG_SIZE", "life.log_size", "4M", "64K", "64K"),
    ("MANAGER_QMP_TIMEOUT", "life.answer_s", 10.0, "500ms", 0.5),
    ("MANAGER_ON_SIGINT", "stop.on_sigint", OnStop.END, "leave", OnStop.LEAVE),
    ("MANAGER_ON_SIGTERM", "stop.on_sigterm", OnStop.LEAVE, "END", OnStop.END),
    ("MANAGER_KEEP_ENDED", "retention.count", 100, "0", 0),
    ("MANAGER_KEEP_ENDED_FOR", "retention.age_s", 604800.0, "P1DT2H", 93600.0),
    ("MANAGER_KEEP_REPLIES", "retention.replies_s", None, "10m", 600.0),
    ("MANAGER_MAX_RESULT", "retention.result_bytes", 4 << 30, "1M", 1 << 20),
    ("MANAGER_KEEP_RESULTS", "retention.results_bytes", 16 << 30, "1G", 1 << 30),
    ("MANAGER_ALGORITHM_TIMEOUT", "life.algorithm_s", 3600.0, "10m", 600.0),
    ("MANAGER_KEEP_DISKS", "retention.disks", False, "true", True),
    ("MANAGER_MAX_KEPT_DISKS", "retention.most_disks", 100, "3", 3),
    ("MANAGER_JAEGER_URL", "jaeger_url", None, "http://h:4318", "http://h:4318"),
    ("MANAGER_AUTH", "auth", Auth.ON, "off", Auth.OFF),
    ("MANAGER_SOCKET", "access.socket", None, "/run/a.sock", Path("/run/a.sock")),
    ("MANAGER_GRPC_SOCKET", "access.grpc_socket", None, "/run/g.sock", Path("/run/g.sock")),
    ("MANAGER_SOCKET_GROUP", "access.socket_group", None, "parties", "parties"),
    ("MANAGER_SOCKET_ROLE", "access.socket_role", Role.RUN, "read", Role.READ),
    ("MANAGER_TOKENS", "access.tokens", None, "/etc/t.json", Path("/etc/t.json")),
    ("MANAGER_TLS_CALLERS", "access.certificates", None, "/etc/c.toml", Path("/etc/c.toml")),
    ("MANAGER_HTTP_NAMES", "http.names", (), "A.example.org, b", ("a.example.org", "b")),
    ("MANAGER_BODY_BUDGET", "callers.body_budget", "128M", "64M", "64M"),
    ("MANAGER_BODY_WAIT", "callers.body_wait_s", 30.0, "1s", 1.0),
    ("MANAGER_BODY_TIMEOUT", "callers.body_timeout_s", 10.0, "1m", 60.0),
    ("MANAGER_BODY_RATE", "callers.body_rate", "64K", "1M", "1M"),
    ("MANAGER_CALLER_RATE", "callers.rate", 500, "0", 0),
    ("MANAGER_CALLER_REQUESTS", "callers.requests", 256, "1", 1),
    ("MANAGER_CALLER_READERS", "callers.readers", 64, "1", 1),
    ("MANAGER_HTTP_CONNECTIONS", "callers.connections", 512, "1", 1),
    ("MANAGER_HTTP_HEADER_TIMEOUT", "callers.header_timeout_s", 10.0, "1s", 1.0),
    ("MANAGER_AUDIT_LOG", "callers.audit_log", None, "/a/log", Path("/a/log")),
    ("MANAGER_AUDIT_SIZE", "callers.audit_size", "64M", "1G", "1G"),
    ("MANAGER_HTTP_HOST", "http.host", "127.0.0.1", "::1", "::1"),
    ("MANAGER_HTTP_PORT", "http.port", 9021, "0", 0),
    ("MANAGER_GRPC_HOST", "grpc.host", "127.0.0.1", "0.0.0.0", "0.0.0.0"),
    ("MANAGER_GRPC_PORT", "grpc.port", 7001, "65535", 65535),
    (
        "MANAGER_AGENT_GRPC_URL",
        "agent.url",
        AgentUrl("localhost", 7002),
        "192.168.122.251:7002",
        AgentUrl("192.168.122.251", 7002),
    ),
    ("MANAGER_AGENT_GRPC_TIMEOUT", "agent.timeout_s", 60.0, "1m30s", 90.0),
    ("MANAGER_AGENT_GRPC_CLIENT_TLS", "agent.client_tls", False, "true", True),
    ("MANAGER_BOOT_TIMEOUT", "agent.boot_timeout_s", 180.0, "250ms", 0.25),
    ("MANAGER_POWERDOWN_GRACE", "shutdown.powerdown_grace_s", 60.0, "5", 5.0),
    ("MANAGER_POWERDOWN_INTERVAL", "shutdown.powerdown_interval_s", 5.0, "0.5", 0.5),
    ("MANAGER_QUIT_GRACE", "shutdown.quit_grace_s", 10.0, "1s", 1.0),
    ("MANAGER_TERM_GRACE", "shutdown.term_grace_s", 5.0, "2s", 2.0),
    ("MANAGER_QEMU_BIN_PATH", "qemu.bin_path", "qemu-system-x86_64", "/q", "/q"),
    ("MANAGER_QEMU_TMP_FILE_LOC", "qemu.tmp", Path("tmp"), "/t", Path("/t")),
    ("MANAGER_QEMU_USE_SUDO", "qemu.use_sudo", False, "1", True),
    ("MANAGER_QEMU_RUN_AS", "qemu.run_as", None, "200000-200099", UidRange(200000, 200099)),
    ("MANAGER_SCOPES", "qemu.scopes", None, "/run/scopes.sock", Path("/run/scopes.sock")),
    ("MANAGER_QEMU_ENABLE_KVM", "qemu.enable_kvm", Switch.AUTO, "true", Switch.TRUE),
    ("MANAGER_QEMU_ENABLE_SEV", "qemu.enable_sev", Switch.AUTO, "false", Switch.FALSE),
    ("MANAGER_TEE", "qemu.tee.use", None, "sev-snp", Tee.SEV_SNP),
    (
        "MANAGER_TEE_POLICY",
        "qemu.tee.policy",
        Policy(),
        "no-smt, Debug",
        Policy(((PolicyWord.SMT, False), (PolicyWord.DEBUG, True))),
    ),
    ("MANAGER_TEE_FIRMWARE", "qemu.tee.firmware", None, "/f", Path("/f")),
    ("MANAGER_CORIM_SIGNING_KEY", "qemu.tee.signing_key", None, "/k", Path("/k")),
    ("MANAGER_TEE_KERNEL", "qemu.tee.kernel", None, "/k", Path("/k")),
    ("MANAGER_TEE_IGVM", "qemu.tee.igvm", None, "/i", Path("/i")),
    (
        "MANAGER_TEE_QUOTE_SOCKET",
        "qemu.tee.quote_socket",
        None,
        "vsock:2:4050",
        QuoteSocket(cid=2, port=4050),
    ),
    ("MANAGER_QEMU_MACHINE", "qemu.machine", "q35", "pc", "pc"),
    ("MANAGER_QEMU_CPU", "qemu.cpu", None, "EPYC", "EPYC"),
    ("MANAGER_QEMU_SMP_COUNT", "qemu.smp_count", 4, "1", 1),
    ("MANAGER_QEMU_SMP_MAXCPUS", "qemu.smp_maxcpus", 64, "8", 8),
    ("MANAGER_QEMU_MEMORY_SIZE", "qemu.memory_size", "2048M", "1G", "1G"),
    ("MANAGER_QEMU_MEMORY_SLOTS", "qemu.memory_slots", 5, "0", 0),
    ("MANAGER_QEMU_MAX_MEMORY", "qemu.max_memory", "30G", "8G", "8G"),
    ("MANAGER_QEMU_NO_GRAPHIC", "qemu.no_graphic", True, "off", False),
    (
        "MANAGER_QEMU_WATCHDOG",
        "qemu.watchdog",
        None,
        "inject-nmi",
        WatchdogAction.INJECT_NMI,
    ),
    ("MANAGER_QEMU_OVMF_CODE_IF", "qemu.firmware.code_if", "pflash", "x", "x"),
    ("MANAGER_QEMU_OVMF_CODE_FORMAT", "qemu.firmware.code_format", "raw", "qcow2", "qcow2"),
    ("MANAGER_QEMU_OVMF_CODE_UNIT", "qemu.firmware.code_unit", 0, "2", 2),
    (
        "MANAGER_QEMU_OVMF_CODE_FILE",
        "qemu.firmware.code_file",
        Path("/usr/share/OVMF/OVMF_CODE.fd"),
        "/c",
        Path("/c"),
    ),
    ("MANAGER_QEMU_OVMF_CODE_READONLY", "qemu.firmware.code_readonly", "on", "off", "off"),
    ("MANAGER_QEMU_OVMF_VARS_IF", "qemu.firmware.vars_if", "pflash", "x", "x"),
    ("MANAGER_QEMU_OVMF_VARS_FORMAT", "qemu.firmware.vars_format", "raw", "qcow2", "qcow2"),
    ("MANAGER_QEMU_OVMF_VARS_UNIT", "qemu.firmware.vars_unit", 1, "3", 3),
    (
        "MANAGER_QEMU_OVMF_VARS_FILE",
        "qemu.firmware.vars_file",
        Path("/usr/share/OVMF/OVMF_VARS.fd"),
        "/v",
        Path("/v"),
    ),
    ("MANAGER_AGENT_DIALS", "agent.dials", AgentDials.NO, "whole", AgentDials.WHOLE),
    ("MANAGER_QEMU_NETDEV_ID", "qemu.net.id", "vmnic", "n", "n"),
    ("MANAGER_QEMU_GUEST_NETWORK", "qemu.net.guest", GuestNetwork.NONE, "open", GuestNetwork.OPEN),
    ("MANAGER_FORWARDS", "qemu.net.forwards", Forwards.HOST, "none", Forwards.NONE),
    ("MANAGER_QEMU_HOST_FWD_ADDR", "qemu.net.host_fwd_addr", "127.0.0.1", "0.0.0.0", "0.0.0.0"),
    ("MANAGER_QEMU_HOST_FWD_1", "qemu.net.host_fwd_1", 2222, "8080", 8080),
    ("MANAGER_QEMU_GUEST_FWD_1", "qemu.net.guest_fwd_1", 22, "23", 23),
    ("MANAGER_QEMU_HOST_FWD_2", "qemu.net.host_fwd_2", 9301, "8081", 8081),
    ("MANAGER_QEMU_GUEST_FWD_2", "qemu.net.guest_fwd_2", 9031, "9032", 9032),
    ("MANAGER_QEMU_HOST_FWD_3", "qemu.net.host_fwd_3", 7020, "8082", 8082),
    (
        "MANAGER_QEMU_HOST_FWD_RANGE",
        "qemu.net.host_fwd_range",
        None,
        "6100-6200",
        PortRange(6100, 6200),
    ),
    ("MANAGER_QEMU_VIRTIO_NET_PCI_DISABLE_LEGACY", "qemu.net.disable_legacy", "on", "off", "off"),
    (
        "MANAGER_QEMU_VIRTIO_NET_PCI_IOMMU_PLATFORM",
        "qemu.net.iommu_platform",
        "true",
        "false",
        "false",
    ),
    ("MANAGER_QEMU_VIRTIO_NET_PCI_ROMFILE", "qemu.net.romfile", "", "r", "r"),
    (
        "MANAGER_QEMU_DISK_IMG_FILE",
        "qemu.disk.file",
        Path("img/focal-server-cloudimg-amd64.img"),
        "/i",
        Path("/i"),
    ),
    ("MANAGER_QEMU_DISK_IMG_IF", "qemu.disk.interface", "none", "x", "x"),
    ("MANAGER_QEMU_DISK_IMG_ID", "qemu.disk.id", "disk0", "x", "x"),
    ("MANAGER_QEMU_DISK_IMG_FORMAT", "qemu.disk.format", "qcow2", "raw", "raw"),
    ("MANAGER_QEMU_VIRTIO_SCSI_PCI_ID", "qemu.disk.scsi_id", "scsi", "x", "x"),
    ("MANAGER_QEMU_VIRTIO_SCSI_PCI_DISABLE_LEGACY", "qemu.disk.disable_legacy", "on", "off", "off"),
    (
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_IOMMU_PLATFORM",
        "qemu.disk.iommu_platform",
        "true",
        "false",
        "false",
    ),
    ("MANAGER_QEMU_ENABLE_SEV_SNP", "qemu.enable_sev_snp", False, "true", True),
    ("MANAGER_QEMU_ENABLE_TDX", "qemu.enable_tdx", False, "true", True),
    ("MANAGER_EOS_VERSION", "qemu.eos_version", "", "1.2", "1.2"),
    ("MANAGER_QEMU_OVMF_VERSION", "qemu.firmware.version", "", "2025.02", "2025.02"),
    ("MANAGER_QEMU_SEV_ID", "qemu.sev.id", "sev0", "x", "x"),
    ("MANAGER_QEMU_SEV_CBITPOS", "qemu.sev.cbitpos", None, "47", 47),
    ("MANAGER_QEMU_SEV_REDUCED_PHYS_BITS", "qemu.sev.reduced_phys_bits", 1, "5", 5),
]

#: Settings that only mean something together with others, by what they are set along with.
TOGETHER: list[tuple[str, str, dict[str, str]]] = [
    ("MANAGER_HTTP_SERVER_CERT", "http.server_cert", {"MANAGER_HTTP_SERVER_KEY": "/x"}),
    ("MANAGER_HTTP_SERVER_KEY", "http.server_key", {"MANAGER_HTTP_SERVER_CERT": "/x"}),
    (
        "MANAGER_HTTP_CLIENT_CA_CERTS",
        "http.client_ca_certs",
        {"MANAGER_HTTP_SERVER_CERT": "/x", "MANAGER_HTTP_SERVER_KEY": "/x"},
    ),
    ("MANAGER_GRPC_SERVER_CERT", "grpc.server_cert", {"MANAGER_GRPC_SERVER_KEY": "/x"}),
    ("MANAGER_GRPC_SERVER_KEY", "grpc.server_key", {"MANAGER_GRPC_SERVER_CERT": "/x"}),
    (
        "MANAGER_GRPC_CLIENT_CA_CERTS",
        "grpc.client_ca_certs",
        {"MANAGER_GRPC_SERVER_CERT": "/x", "MANAGER_GRPC_SERVER_KEY": "/x"},
    ),
    (
        "MANAGER_AGENT_GRPC_CA_CERTS",
        "agent.ca_certs",
        {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true"},
    ),
    (
        "MANAGER_AGENT_GRPC_CLIENT_CERT",
        "agent.client_cert",
        {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true", "MANAGER_AGENT_GRPC_CLIENT_KEY": "/x"},
    ),
    (
        "MANAGER_AGENT_GRPC_CLIENT_KEY",
        "agent.client_key",
        {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true", "MANAGER_AGENT_GRPC_CLIENT_CERT": "/x"},
    ),
    ("MANAGER_TEE_INITRD", "qemu.tee.initrd", {"MANAGER_TEE_KERNEL": "/x"}),
    ("MANAGER_TEE_ID_BLOCK", "qemu.tee.id_block", {"MANAGER_TEE_ID_AUTH": "/x"}),
    ("MANAGER_TEE_ID_AUTH", "qemu.tee.id_auth", {"MANAGER_TEE_ID_BLOCK": "/x"}),
]

ALIASES = {
    "AGENT_GRPC_URL": ("agent.url", "10.0.0.1:1", AgentUrl("10.0.0.1", 1)),
    "AGENT_GRPC_TIMEOUT": ("agent.timeout_s", "3s", 3.0),
    "AGENT_GRPC_CLIENT_TLS": ("agent.client_tls", "true", True),
    "AGENT_GRPC_CA_CERTS": ("agent.ca_certs", "/ca", Path("/ca")),
}


#: The successor's words for the same things: their values, and where ours are.
SUCCESSORS = {
    "COCOS_JAEGER_URL": ("http://j:4318/v1/traces", "jaeger_url", "http://j:4318/v1/traces"),
    "MANAGER_QEMU_HOST_FWD_AGENT": ("6100", "qemu.net.host_fwd_3", 6100),
    "MANAGER_QEMU_GUEST_FWD_AGENT": ("7002", "qemu.net.guest_fwd_3", 7002),
    "MANAGER_QEMU_SRC_DISK_FILE": ("/d", "qemu.disk.file", Path("/d")),
    "MANAGER_QEMU_DISK_ID": ("d", "qemu.disk.id", "d"),
    "MANAGER_QEMU_DISK_FORMAT": ("raw", "qemu.disk.format", "raw"),
    "MANAGER_QEMU_DISK_SCSI_ID": ("s", "qemu.disk.scsi_id", "s"),
    "MANAGER_QEMU_SEV_SNP_ID": ("t", "qemu.sev.id", "t"),
    "MANAGER_QEMU_SEV_SNP_CBIT_POS": ("51", "qemu.sev.cbitpos", 51),
    "MANAGER_QEMU_SEV_SNP_CBITPOS": ("51", "qemu.sev.cbitpos", 51),
    "MANAGER_QEMU_SEV_SNP_REDUCED_PHYS_BITS": ("2", "qemu.sev.reduced_phys_bits", 2),
    "MANAGER_QEMU_DISK_IMG_KERNEL_FILE": ("/k", "qemu.tee.kernel", Path("/k")),
    "MANAGER_QEMU_DISK_IMG_ROOTFS_FILE": ("/r", "qemu.tee.initrd", Path("/r")),
    "MANAGER_QEMU_KERNEL_CMDLINE": ("quiet console=null", "qemu.tee.cmdline", "quiet console=null"),
}


def at(loaded: Config, path: str) -> Any:
    """The value that ``path``, such as ``http.port``, leads to."""
    value: Any = loaded
    for name in path.split("."):
        value = getattr(value, name)
    return value


def problems(**environ: str) -> list[str]:
    """What is wrong with this environment."""
    with pytest.raises(ConfigError) as caught:
        config.load(environ)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("name", "path", "default", "written", "read"), ROWS, ids=[row[0] for row in ROWS]
)
def test_setting(name: str, path: str, default: Any, written: str, read: Any) -> None:
    assert at(config.load({}), path) == default
    assert at(config.load({name: written}), path) == read


@pytest.mark.parametrize(("name", "path", "others"), TOGETHER, ids=[row[0] for row in TOGETHER])
def test_setting_that_needs_others(name: str, path: str, others: dict[str, str]) -> None:
    assert at(config.load({}), path) is None
    assert at(config.load({name: "/file", **others}), path) == Path("/file")


def test_certificates_of_the_agents_own_need_tls_and_no_authority() -> None:
    own, tls = {"MANAGER_AGENT_GRPC_OWN_CERTS": "true"}, {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true"}
    assert config.load({}).agent.own_certs is False
    assert config.load({**own, **tls}).agent.own_certs is True
    for others in ({}, {**tls, "MANAGER_AGENT_GRPC_CA_CERTS": "/file"}):
        with pytest.raises(ConfigError, match="OWN_CERTS needs"):
            config.load({**own, **others})


def test_networks_that_guests_may_reach_though_they_are_private() -> None:
    assert config.load({}).qemu.net.guest_allow == ()
    internet = {"MANAGER_QEMU_GUEST_NETWORK": "internet"}
    allowed = {"MANAGER_QEMU_GUEST_NETWORK_ALLOW": "10.1.2.0/24, fd00:1::/64"}
    assert config.load(internet | allowed).qemu.net.guest_allow == (
        ipaddress.ip_network("10.1.2.0/24"),
        ipaddress.ip_network("fd00:1::/64"),
    )


def test_guest_port_of_the_agent() -> None:
    assert config.load({}).qemu.net.guest_fwd_3 == 7002
    moved = {"MANAGER_QEMU_GUEST_FWD_3": "7003", "MANAGER_AGENT_GRPC_URL": "localhost:7003"}
    assert config.load(moved).qemu.net.guest_fwd_3 == 7003


def test_server_name_of_the_agent() -> None:
    assert config.load({}).agent.server_name is None
    assert config.load({"MANAGER_AGENT_GRPC_SERVER_NAME": "a.test"}).agent.server_name == "a.test"


def test_command_line_of_a_kernel_that_is_measured() -> None:
    assert config.load({}).qemu.tee.cmdline == ""
    booted = {"MANAGER_TEE_KERNEL": "/k", "MANAGER_TEE_CMDLINE": "a=b, c"}
    assert config.load(booted).qemu.tee.cmdline == "a=b, c"


@pytest.mark.parametrize(
    ("environ", "default"),
    [
        ({}, Tee.AUTO),
        ({"MANAGER_QEMU_ENABLE_SEV": "true"}, Tee.SEV),
        ({"MANAGER_QEMU_ENABLE_SEV": "false"}, Tee.NONE),
        ({"MANAGER_TEE": "tdx"}, Tee.TDX),
        # The successor's switches, whose SEV is the first kind alone.
        ({"MANAGER_QEMU_ENABLE_SEV_SNP": "true", "MANAGER_QEMU_ENABLE_SEV": "false"}, Tee.SEV_SNP),
        ({"MANAGER_QEMU_ENABLE_TDX": "true"}, Tee.TDX),
        ({"MANAGER_QEMU_ENABLE_TDX": "true", "MANAGER_TEE": "sev"}, Tee.SEV),
        ({"MANAGER_TEE": "sev-snp", "MANAGER_QEMU_ENABLE_SEV": "true"}, Tee.SEV_SNP),
        ({"MANAGER_TEE": "none", "MANAGER_QEMU_ENABLE_SEV": "false"}, Tee.NONE),
    ],
)
def test_what_vms_are_unless_their_run_says_otherwise(
    environ: dict[str, str], default: Tee
) -> None:
    assert config.load(environ).qemu.default_tee is default


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"TEE": "none", "QEMU_ENABLE_SEV": "true"}, "MANAGER_QEMU_ENABLE_SEV=true and"),
        ({"TEE": "tdx", "QEMU_ENABLE_SEV": "true"}, "MANAGER_TEE=tdx exclude each other"),
        ({"TEE": "auto", "QEMU_ENABLE_SEV": "false"}, "MANAGER_TEE=auto exclude each other"),
        ({"TEE_ID_BLOCK": "/b"}, "go together"),
        ({"TEE_ID_AUTH": "/b"}, "go together"),
        ({"TEE_INITRD": "/i"}, "need MANAGER_TEE_KERNEL"),
        ({"QEMU_ENABLE_TDX": "1", "QEMU_ENABLE_SEV_SNP": "1"}, "set MANAGER_TEE"),
        ({"TEE_CMDLINE": "quiet"}, "need MANAGER_TEE_KERNEL"),
        ({"TEE_IGVM": "/i", "TEE_KERNEL": "/k"}, "MANAGER_TEE_IGVM excludes"),
        ({"TEE_IGVM": "/i", "TEE_FIRMWARE": "/f"}, "MANAGER_TEE_IGVM excludes"),
        ({"TEE": "sgx"}, "must be one of none, auto, sev, sev-es, sev-snp, tdx"),
        ({"TEE_POLICY": "smt,no-smt"}, "smt and no-smt exclude each other"),
        ({"TEE_QUOTE_SOCKET": "vsock:x:1"}, "must be an absolute path, or vsock:CID:PORT"),
        ({"TEE_QUOTE_SOCKET": "qgs.sock"}, "must be an absolute path, or vsock:CID:PORT"),
    ],
)
def test_what_cannot_be_meant_of_confidential_guests(environ: dict[str, str], problem: str) -> None:
    (found,) = problems(**{f"MANAGER_{name}": value for name, value in environ.items()})
    assert problem in found


@pytest.mark.parametrize("written", ["/run/qgs.sock", "vsock:2:4050"])
def test_where_quotes_come_from(written: str) -> None:
    assert str(config.load({"MANAGER_TEE_QUOTE_SOCKET": written}).qemu.tee.quote_socket) == written


def test_every_setting_is_tested_here() -> None:
    tested = {row[0] for row in ROWS} | {row[0] for row in TOGETHER}
    tested |= {"MANAGER_QEMU_GUEST_FWD_3", "MANAGER_AGENT_GRPC_SERVER_NAME"}
    tested |= {"MANAGER_AGENT_GRPC_OWN_CERTS"}
    tested |= {"MANAGER_QEMU_GUEST_NETWORK_ALLOW", "MANAGER_TEE_CMDLINE"}
    assert {one.names[0] for one in settings.declared(Config)} == tested


@pytest.mark.parametrize("alias", ALIASES)
def test_alias(alias: str) -> None:
    path, written, read = ALIASES[alias]
    tls = {} if alias == "AGENT_GRPC_CLIENT_TLS" else {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true"}
    assert at(config.load({alias: written, **tls}), path) == read
    # The name that is ours wins, and an empty one does not count.
    ours = f"MANAGER_{alias}"
    assert at(config.load({alias: written, ours: "", **tls}), path) == read
    other = {"agent.timeout_s": "9s"}.get(path, written)
    assert at(config.load({ours: other, alias: "nonsense://", **tls}), path) is not None


def test_aliases_are_the_only_ones() -> None:
    declared = {name for one in settings.declared(Config) for name in one.names[1:]}
    assert declared == {*ALIASES, *SUCCESSORS}


def test_the_successors_environment_file_is_taken_as_it_is() -> None:
    words = {name: written for name, (written, _, _) in SUCCESSORS.items()}
    loaded = config.load(words | dict.fromkeys(config.WITHOUT_EFFECT, "x"))
    for _, path, read in SUCCESSORS.values():
        assert at(loaded, path) == read
    assert loaded.without_effect == tuple(config.WITHOUT_EFFECT)
    assert config.load(words).without_effect == ()


def test_what_has_no_effect_is_no_setting_of_ours() -> None:
    declared = {name for one in settings.declared(Config) for name in one.names}
    assert not declared & config.WITHOUT_EFFECT.keys()


@pytest.mark.parametrize("name", [row[0] for row in ROWS])
def test_empty_is_unset(name: str) -> None:
    assert config.load({name: ""}) == config.load({})


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("MANAGER_QEMU_MEMORYSIZE", "MANAGER_QEMU_MEMORY_SIZE"),
        ("MANAGER_QEMU_SMP_COUNTS", "MANAGER_QEMU_SMP_COUNT"),
        ("MANAGER_QEMU_OVMF_CODE_FIEL", "MANAGER_QEMU_OVMF_CODE_FILE"),
        ("MANAGER_HTTP_PROT", "MANAGER_HTTP_PORT"),
    ],
)
def test_unknown_name_names_the_nearest(unknown: str, meant: str) -> None:
    assert problems(**{unknown: "1"}) == [f"{unknown} is not a setting; did you mean {meant!r}?"]


def test_names_of_others_are_not_ours_to_judge() -> None:
    assert config.load({"PATH": "/bin", "QEMU_AUDIO_DRV": "none"}) == config.load({})


def test_monitor_is_refused_with_what_replaces_it() -> None:
    (problem,) = problems(MANAGER_QEMU_MONITOR="pty")
    assert problem.startswith("MANAGER_QEMU_MONITOR: ")
    assert "QMP" in problem
    assert config.load({"MANAGER_QEMU_MONITOR": ""}) == config.load({})


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"MANAGER_LOG_LEVEL": "loud"}, ["MANAGER_LOG_LEVEL"]),
        (
            {"MANAGER_QEMU_GUEST_NETWORK": "internet", "MANAGER_QEMU_USE_SUDO": "true"},
            ["MANAGER_QEMU_USE_SUDO"],
        ),
        (
            {"MANAGER_QEMU_GUEST_NETWORK_ALLOW": "10.1.2.0/24"},
            ["MANAGER_QEMU_GUEST_NETWORK=internet"],
        ),
        (
            {"MANAGER_FORWARDS": "none", "MANAGER_QEMU_GUEST_NETWORK": "open"},
            ["MANAGER_FORWARDS=none", "MANAGER_QEMU_GUEST_NETWORK=open"],
        ),
        ({"MANAGER_FORWARDS": "none", "MANAGER_QEMU_USE_SUDO": "true"}, ["MANAGER_QEMU_USE_SUDO"]),
        (
            {"MANAGER_FORWARDS": "none", "MANAGER_AGENT_GRPC_URL": "192.0.2.1:7002"},
            ["MANAGER_AGENT_GRPC_URL"],
        ),
        (
            {"MANAGER_FORWARDS": "none", "MANAGER_AGENT_GRPC_URL": "192.0.2.1:{port}"},
            ["MANAGER_AGENT_GRPC_URL"],
        ),
        (
            {"MANAGER_AGENT_DIALS": "whole", "MANAGER_QEMU_GUEST_NETWORK": "open"},
            ["MANAGER_AGENT_DIALS=whole", "MANAGER_QEMU_GUEST_NETWORK=open"],
        ),
        (
            {"MANAGER_AGENT_DIALS": "whole", "MANAGER_QEMU_HOST_FWD_ADDR": "0.0.0.0"},
            ["MANAGER_AGENT_DIALS=whole", "MANAGER_QEMU_HOST_FWD_ADDR=0.0.0.0"],
        ),
        ({"MANAGER_HTTP_SERVER_CERT": "/c"}, ["MANAGER_HTTP_SERVER_KEY"]),
        ({"MANAGER_HTTP_SERVER_KEY": "/k"}, ["MANAGER_HTTP_SERVER_CERT"]),
        ({"MANAGER_GRPC_SERVER_CERT": "/c"}, ["MANAGER_GRPC_SERVER_KEY"]),
        ({"MANAGER_HTTP_CLIENT_CA_CERTS": "/a"}, ["MANAGER_HTTP_SERVER_CERT"]),
        ({"MANAGER_GRPC_CLIENT_CA_CERTS": "/a"}, ["MANAGER_GRPC_SERVER_CERT"]),
        ({"MANAGER_AGENT_GRPC_CA_CERTS": "/a"}, ["MANAGER_AGENT_GRPC_CLIENT_TLS"]),
        (
            {"MANAGER_AGENT_GRPC_CLIENT_CERT": "/c", "MANAGER_AGENT_GRPC_CLIENT_TLS": "true"},
            ["MANAGER_AGENT_GRPC_CLIENT_KEY"],
        ),
        (
            {"MANAGER_AGENT_GRPC_URL": "localhost:7003"},
            ["MANAGER_AGENT_GRPC_URL", "MANAGER_QEMU_GUEST_FWD_"],
        ),
        ({"MANAGER_QEMU_HOST_FWD_2": "0"}, ["MANAGER_QEMU_HOST_FWD_"]),
        ({"MANAGER_BODY_BUDGET": "63M"}, ["MANAGER_BODY_BUDGET", "64M"]),
        (
            {"MANAGER_QEMU_SMP_COUNT": "65"},
            ["MANAGER_QEMU_SMP_COUNT", "MANAGER_QEMU_SMP_MAXCPUS"],
        ),
        ({"MANAGER_QEMU_SMP_COUNT": "0"}, ["MANAGER_QEMU_SMP_COUNT"]),
        (
            {"MANAGER_RESTART": "on-failure", "MANAGER_RESTART_LIMIT": "0"},
            ["MANAGER_RESTART=on-failure", "MANAGER_RESTART_LIMIT"],
        ),
        ({"MANAGER_RESTART_BACKOFF": "61s"}, ["MANAGER_RESTART_BACKOFF"]),
        ({"MANAGER_TEMPLATES": "require"}, ["MANAGER_TEMPLATES", "auto", "off"]),
        (
            {"MANAGER_POOL_SIZE": "3", "MANAGER_MAX_VMS": "2"},
            ["MANAGER_POOL_SIZE", "MANAGER_MAX_VMS"],
        ),
        (
            {"MANAGER_POOL_SIZE": "1", "MANAGER_AGENT_GRPC_URL": "10.0.0.2:7002"},
            ["MANAGER_POOL_SIZE", "10.0.0.2:7002"],
        ),
        (
            {"MANAGER_KEEP_DISKS": "true", "MANAGER_KEEP_ENDED": "0"},
            ["MANAGER_KEEP_DISKS", "MANAGER_KEEP_ENDED"],
        ),
    ],
)
def test_contradiction(environ: dict[str, str], names: list[str]) -> None:
    (problem,) = problems(**environ)
    for name in names:
        assert name in problem


@pytest.mark.parametrize(
    "environ",
    [
        # A run may ask for another ttl or policy than the settings', and no host is known here.
        {"MANAGER_TTL": "1s", "MANAGER_TTL_WARNING": "1m"},
        {"MANAGER_RESTART_LIMIT": "0"},
        {"MANAGER_KEEP_ENDED": "0"},
        {"MANAGER_QUEUE": "0"},
        {"MANAGER_MAX_VMS": "0"},
        {"MANAGER_QEMU_MEMORY_SIZE": "30G", "MANAGER_MEMORY_OVERCOMMIT": "0.001"},
    ],
    ids=str,
)
def test_no_contradiction(environ: dict[str, str]) -> None:
    config.load(environ)


@pytest.mark.parametrize(
    ("name", "written", "why"),
    [
        ("MANAGER_ON_SIGINT", "kill", "must be one of end, leave"),
        ("MANAGER_ON_SIGTERM", "leaves", "must be one of end, leave; did you mean 'leave'?"),
        ("MANAGER_RESTART", "always", "must be one of never, on-failure"),
        ("MANAGER_RESTART", "on_failure", "did you mean 'on-failure'?"),
        ("MANAGER_QEMU_GUEST_NETWORK", "private", "must be one of none, internet, open"),
        ("MANAGER_QEMU_GUEST_NETWORK_ALLOW", "10.1.2.3/24", "10.1.2.3/24 has host bits set"),
        ("MANAGER_QEMU_WATCHDOG", "true", "must be one of reset, shutdown, poweroff, pause, "),
        ("MANAGER_QEMU_WATCHDOG", "restart", "did you mean 'reset'?"),
        ("MANAGER_QEMU_WATCHDOG", "inject_nmi", "did you mean 'inject-nmi'?"),
        ("MANAGER_MEMORY_OVERCOMMIT", "0", "must be a number such as 1.5, and above 0"),
        ("MANAGER_VCPU_OVERCOMMIT", "16x", "must be a number such as 1.5"),
        ("MANAGER_TTL", "P1M", "must not count in years or months"),
        ("MANAGER_TTL", "soon", "must be a duration such as 90s, 1h30m, 250ms or PT1H30M"),
        ("MANAGER_KEEP_DISKS", "yess", "must be true or false"),
        ("MANAGER_HTTP_NAMES", "a.example.org:9021", "must be host names without a port"),
        ("MANAGER_HTTP_NAMES", "a,,b", "must be host names without a port"),
        ("MANAGER_HTTP_NAMES", "*", "must be host names without a port"),
    ],
)
def test_wrong_word(name: str, written: str, why: str) -> None:
    (problem,) = problems(**{name: written})
    assert problem.startswith(f"{name}={written!r}: ")
    assert why in problem


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        MANAGER_QEMU_MONITOR="pty",
        MANAGER_QEMU_MEMRY_SIZE="1G",
        MANAGER_HTTP_PORT="http",
        MANAGER_BOOT_TIMEOUT="soon",
        MANAGER_QEMU_ENABLE_KVM="maybe",
    )
    assert len(found) == 5


def test_contradictions_are_told_at_once() -> None:
    assert len(problems(MANAGER_LOG_LEVEL="loud", MANAGER_QEMU_SMP_COUNT="0")) == 2


def test_settings_cannot_be_assigned() -> None:
    loaded = config.load({})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        loaded.log_level = "debug"  # type: ignore[misc]


def test_all_grace_periods_fit_into_the_longest() -> None:
    grace = config.load({}).shutdown
    assert grace.longest_s > grace.powerdown_grace_s + grace.quit_grace_s + grace.term_grace_s


def test_help_has_every_setting_with_its_default() -> None:
    rows = dict(config.help_rows())
    assert rows["MANAGER_HTTP_PORT"].endswith("[9021]")
    assert rows["MANAGER_BOOT_TIMEOUT"].endswith("[3m]")
    assert rows["MANAGER_KEEP_ENDED_FOR"].endswith("[168h]")
    assert rows["MANAGER_MEMORY_OVERCOMMIT"].endswith("[1]")
    assert rows["MANAGER_ON_SIGTERM"].endswith("[leave]")
    assert rows["MANAGER_KEEP_DISKS"].endswith("[false]")
    assert "[" not in rows["MANAGER_TTL"]
    assert rows["MANAGER_QEMU_CPU"].endswith(
        "[EPYC with KVM, max without; EPYC-v4 for sev-snp, host for tdx]"
    )
    assert "[" not in rows["MANAGER_HTTP_SERVER_KEY"]
    assert "MANAGER_AGENT_GRPC_URL, AGENT_GRPC_URL" in rows
    assert len(rows) == len(list(settings.declared(Config)))


def test_table_has_a_row_for_every_setting() -> None:
    rows = config.markdown_table().splitlines()[2:]
    for row, one in zip(rows, settings.declared(Config), strict=True):
        assert row.startswith(f"| `{one.names[0]}`")
        assert row.count("|") == 4
