"""Settings for QEMU's command line."""

from __future__ import annotations

import enum
from pathlib import Path

import attrs

from supervisor.config.settings import (
    IPv4,
    Networks,
    OnOff,
    Port,
    PortRange,
    Size,
    Switch,
    UidRange,
    UserName,
    choice,
    setting,
)
from supervisor.config.tee import Tee, TeeConfig


@choice
class WatchdogAction(enum.StrEnum):
    """What QEMU does when a guest's watchdog fires: QAPI's ``WatchdogAction``."""

    RESET = "reset"
    SHUTDOWN = "shutdown"
    POWEROFF = "poweroff"
    PAUSE = "pause"
    INJECT_NMI = "inject-nmi"
    NONE = "none"


@choice
class GuestNetwork(enum.StrEnum):
    """What a guest can reach. Its forwards, through which it is reached, are there with each."""

    NONE = "none"
    INTERNET = "internet"
    OPEN = "open"


@choice
class Forwards(enum.StrEnum):
    """Which ports of the host lead into a VM."""

    HOST = "host"
    NONE = "none"


@attrs.frozen(kw_only=True)
class NetConfig:
    """The guest's network card and the host ports that are forwarded to it."""

    id: str = setting("MANAGER_QEMU_NETDEV_ID", "vmnic", "id of the network back end")
    guest: GuestNetwork = setting(
        "MANAGER_QEMU_GUEST_NETWORK",
        GuestNetwork.NONE,
        "what a guest reaches. none: nothing outside itself; internet: public addresses, but not"
        " the host's; open: all that the host reaches, the host's loopback and other VMs' forwards"
        " included",
    )
    guest_allow: Networks = setting(
        "MANAGER_QEMU_GUEST_NETWORK_ALLOW",
        (),
        "private networks that guests reach as well, with internet, such as 10.1.2.0/24,fd00::/64",
        shown="",
    )
    forwards: Forwards = setting(
        "MANAGER_FORWARDS",
        Forwards.HOST,
        "host: three ports of the host lead into each VM; none: no port does, and the supervisor"
        " alone reaches the agent; a run can ask for either",
    )
    host_fwd_addr: IPv4 = setting(
        "MANAGER_QEMU_HOST_FWD_ADDR", "127.0.0.1", "host address of the forwarded ports"
    )
    host_fwd_1: Port = setting(
        "MANAGER_QEMU_HOST_FWD_1", 2222, "first host port to try for GUEST_FWD_1"
    )
    guest_fwd_1: Port = setting("MANAGER_QEMU_GUEST_FWD_1", 22, "guest port of SSH")
    host_fwd_2: Port = setting(
        "MANAGER_QEMU_HOST_FWD_2", 9301, "first host port to try for GUEST_FWD_2"
    )
    guest_fwd_2: Port = setting("MANAGER_QEMU_GUEST_FWD_2", 9031, "guest port of the agent's HTTP")
    host_fwd_3: Port = setting(
        "MANAGER_QEMU_HOST_FWD_3",
        7020,
        "first host port to try for GUEST_FWD_3",
        "MANAGER_QEMU_HOST_FWD_AGENT",
    )
    guest_fwd_3: Port = setting(
        "MANAGER_QEMU_GUEST_FWD_3",
        7002,
        "guest port of the agent's gRPC",
        "MANAGER_QEMU_GUEST_FWD_AGENT",
    )
    host_fwd_range: PortRange | None = setting(
        "MANAGER_QEMU_HOST_FWD_RANGE",
        None,
        "range of all host ports, such as 6100-6200, in place of HOST_FWD_1 to 3",
    )
    disable_legacy: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_NET_PCI_DISABLE_LEGACY", "on", "disable-legacy of the network card"
    )
    iommu_platform: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_NET_PCI_IOMMU_PLATFORM", "true", "iommu_platform of the network card"
    )
    romfile: str = setting("MANAGER_QEMU_VIRTIO_NET_PCI_ROMFILE", "", "romfile of the network card")
    #: Not a setting: whether a way leads from the guest to the supervisor, as MANAGER_AGENT_DIALS
    #: says. QEMU is in a network namespace of its own then, whatever its guest reaches besides.
    dials: bool = attrs.field(default=False, metadata={"names": None})


@attrs.frozen(kw_only=True)
class FirmwareConfig:
    """OVMF's two files. All VMs share the CODE file, and each VM gets a copy of the VARS file.

    If a file is not set and its default is missing, `supervisor.qemu.firmware` chooses it.
    """

    code_if: str = setting("MANAGER_QEMU_OVMF_CODE_IF", "pflash", "interface of the CODE drive")
    code_format: str = setting("MANAGER_QEMU_OVMF_CODE_FORMAT", "raw", "format of the CODE file")
    code_unit: int = setting("MANAGER_QEMU_OVMF_CODE_UNIT", 0, "unit of the CODE drive")
    code_file: Path = setting(
        "MANAGER_QEMU_OVMF_CODE_FILE",
        Path("/usr/share/OVMF/OVMF_CODE.fd"),
        "CODE file; if the default is missing, QEMU's firmware descriptors choose",
    )
    code_readonly: OnOff = setting(
        "MANAGER_QEMU_OVMF_CODE_READONLY", "on", "readonly of the CODE drive"
    )
    vars_if: str = setting("MANAGER_QEMU_OVMF_VARS_IF", "pflash", "interface of the VARS drive")
    vars_format: str = setting("MANAGER_QEMU_OVMF_VARS_FORMAT", "raw", "format of the VARS file")
    vars_unit: int = setting("MANAGER_QEMU_OVMF_VARS_UNIT", 1, "unit of the VARS drive")
    vars_file: Path = setting(
        "MANAGER_QEMU_OVMF_VARS_FILE",
        Path("/usr/share/OVMF/OVMF_VARS.fd"),
        "VARS file, of which each VM gets a copy; chosen like the CODE file",
    )
    version: str = setting(
        "MANAGER_QEMU_OVMF_VERSION", "", "what CVMInfo says of the firmware's version"
    )


@attrs.frozen(kw_only=True)
class DiskConfig:
    """The base image and its SCSI controller. Each VM writes to an overlay of its own."""

    file: Path = setting(
        "MANAGER_QEMU_DISK_IMG_FILE",
        Path("img/focal-server-cloudimg-amd64.img"),
        "base image",
        "MANAGER_QEMU_SRC_DISK_FILE",
    )
    interface: str = setting("MANAGER_QEMU_DISK_IMG_IF", "none", "interface of the disk's drive")
    id: str = setting(
        "MANAGER_QEMU_DISK_IMG_ID", "disk0", "id of the disk's drive", "MANAGER_QEMU_DISK_ID"
    )
    format: str = setting(
        "MANAGER_QEMU_DISK_IMG_FORMAT",
        "qcow2",
        "format of the base image",
        "MANAGER_QEMU_DISK_FORMAT",
    )
    scsi_id: str = setting(
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_ID",
        "scsi",
        "id of the SCSI controller",
        "MANAGER_QEMU_DISK_SCSI_ID",
    )
    disable_legacy: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_DISABLE_LEGACY",
        "on",
        "disable-legacy of the SCSI controller",
    )
    iommu_platform: OnOff = setting(
        "MANAGER_QEMU_VIRTIO_SCSI_PCI_IOMMU_PLATFORM",
        "true",
        "iommu_platform of the SCSI controller",
    )


@attrs.frozen(kw_only=True)
class SevConfig:
    """What the objects of SEV, SEV-ES and SEV-SNP have in common on the command line."""

    id: str = setting("MANAGER_QEMU_SEV_ID", "sev0", "id of the object", "MANAGER_QEMU_SEV_SNP_ID")
    cbitpos: int | None = setting(
        "MANAGER_QEMU_SEV_CBITPOS",
        None,
        "position of the C-bit in a page table entry; another than the host's is refused",
        "MANAGER_QEMU_SEV_SNP_CBIT_POS",
        "MANAGER_QEMU_SEV_SNP_CBITPOS",
        shown="the host's, by CPUID",
    )
    #: Not the host's, which CPUID tells: QEMU's manual says that an EPYC's guest loses one bit.
    reduced_phys_bits: int = setting(
        "MANAGER_QEMU_SEV_REDUCED_PHYS_BITS",
        1,
        "physical address bits that a guest loses",
        "MANAGER_QEMU_SEV_SNP_REDUCED_PHYS_BITS",
    )


@attrs.frozen(kw_only=True)
class QemuConfig:
    """How QEMU is started."""

    bin_path: str = setting("MANAGER_QEMU_BIN_PATH", "qemu-system-x86_64", "QEMU, by name or path")
    tmp: Path = setting(
        "MANAGER_QEMU_TMP_FILE_LOC",
        Path("tmp"),
        "directory of all records, logs, disks and templates",
    )
    use_sudo: bool = setting("MANAGER_QEMU_USE_SUDO", False, "start QEMU through sudo")
    run_as: UidRange | UserName | None = setting(
        "MANAGER_QEMU_RUN_AS",
        None,
        "if the supervisor is root: the user that QEMU runs as; or a range of ids such as"
        " 200000-200999, of which each VM gets one",
    )
    scopes: Path | None = setting(
        "MANAGER_SCOPES",
        None,
        "unix socket of qmp-supervisor scopes, which puts each QEMU into a systemd scope",
    )
    enable_kvm: Switch = setting(
        "MANAGER_QEMU_ENABLE_KVM",
        Switch.AUTO,
        "auto: KVM if a probe guest runs; true: KVM, or refuse to start; false: emulation",
    )
    enable_sev: Switch = setting(
        "MANAGER_QEMU_ENABLE_SEV",
        Switch.AUTO,
        "the original's, for MANAGER_TEE=auto (auto), sev (true) and none (false)",
    )
    enable_sev_snp: bool = setting(
        "MANAGER_QEMU_ENABLE_SEV_SNP", False, "the successor's, for MANAGER_TEE=sev-snp"
    )
    enable_tdx: bool = setting(
        "MANAGER_QEMU_ENABLE_TDX", False, "the successor's, for MANAGER_TEE=tdx"
    )
    machine: str = setting("MANAGER_QEMU_MACHINE", "q35", "QEMU's machine type")
    cpu: str | None = setting(
        "MANAGER_QEMU_CPU",
        None,
        "CPU model",
        shown="EPYC with KVM, max without; EPYC-v4 for sev-snp, host for tdx",
    )
    smp_count: int = setting("MANAGER_QEMU_SMP_COUNT", 4, "virtual CPUs of a VM")
    smp_maxcpus: int = setting("MANAGER_QEMU_SMP_MAXCPUS", 64, "maxcpus of -smp")
    memory_size: Size = setting("MANAGER_QEMU_MEMORY_SIZE", "2048M", "memory of a VM")
    memory_slots: int = setting("MANAGER_QEMU_MEMORY_SLOTS", 5, "slots of -m")
    max_memory: Size = setting("MANAGER_QEMU_MAX_MEMORY", "30G", "maxmem of -m")
    no_graphic: bool = setting("MANAGER_QEMU_NO_GRAPHIC", True, "no display and no graphics card")
    watchdog: WatchdogAction | None = setting(
        "MANAGER_QEMU_WATCHDOG",
        None,
        "action of an i6300esb watchdog: reset, shutdown, poweroff, pause, inject-nmi or none;"
        " unset: no watchdog",
    )
    eos_version: str = setting(
        "MANAGER_EOS_VERSION", "", "what CVMInfo says of the version of the guest's system"
    )
    firmware: FirmwareConfig = attrs.field(factory=FirmwareConfig)
    disk: DiskConfig = attrs.field(factory=DiskConfig)
    net: NetConfig = attrs.field(factory=NetConfig)
    sev: SevConfig = attrs.field(factory=SevConfig)
    tee: TeeConfig = attrs.field(factory=TeeConfig)

    @property
    def default_tee(self) -> Tee:
        """What VMs are unless their run says otherwise."""
        if self.tee.use is not None:
            return self.tee.use
        if self.enable_sev_snp:
            return Tee.SEV_SNP
        if self.enable_tdx:
            return Tee.TDX
        by_switch = {Switch.AUTO: Tee.AUTO, Switch.TRUE: Tee.SEV, Switch.FALSE: Tee.NONE}
        return by_switch[self.enable_sev]

    @property
    def boots_disk(self) -> bool:
        """Whether runs boot the disk image. With agents that dial, a kernel takes its place."""
        return not self.net.dials or self.tee.kernel is None

    @property
    def memory_bytes(self) -> int:
        return size_in_bytes(self.memory_size)


def size_in_bytes(size: str) -> int:
    """A size's bytes, as QEMU reads it: without a unit it is in mebibytes."""
    unit = size[-1].upper()
    power = "KMGT".find(unit) + 1
    return int(size[:-1]) << (10 * power) if power else int(size) << 20
