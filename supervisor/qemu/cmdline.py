"""From a configuration to QEMU's command line. Pure: one ``*_args`` function for each device.

The arguments are those of the original manager in the same order, with a QMP socket in the place
of ``-monitor pty``. What this project adds comes last. Every id contains the VM's id.

Source: QEMU's manual page, ``qemu-system-x86_64(1)``.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING

import attrs

from supervisor.config import GuestNetwork
from supervisor.qemu import confidential
from supervisor.qemu.option import escape
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.config import QemuConfig
    from supervisor.qemu.confidential import Confidential, DirectBoot
    from supervisor.qemu.version import Binary

#: The option of the QMP socket if a supervisor starts QEMU. For a person it is ``path=...``.
QMP_BY_DESCRIPTOR = "fd=0"

_FORWARD = re.compile(r"hostfwd=tcp:([0-9.]*):(\d+)-:(\d+)")

_TEMPLATE = re.compile(r"/([0-9a-f]{16}(?:-[0-9]+)?)/ram,share=off")

#: The guest's memory is in no core file. The kernel does not look for equal pages of other guests:
#: the time that a write takes would tell one guest what is in another's memory.
_PRIVATE = "dump-guest-core=off,mem-merge=off"

#: What a guest of the successor's mounts its environment and its certificates by.
_SHARES = ("env_share", "certs_share")

#: Where the guest's agent and its renewer look for items of the firmware's configuration.
_ITEMS = "opt/org.qmp-supervisor"

#: System calls that QEMU must not make. No device on this command line needs them.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@attrs.frozen
class Accel:
    """What VMs use of the processor. Decided once, at the supervisor's start.

    :param tee: what VMs are confidential by, unless their run says otherwise; None: plain
    """

    kvm: bool
    tee: Technology | None = None


@attrs.frozen
class Forward:
    """A TCP port of the host that QEMU forwards to a port of the guest."""

    guest_port: int
    host_address: str
    host_port: int


@attrs.frozen
class Ram:
    """A guest's memory in a file, for a VM that becomes a template and for clones of a template.

    :param shared: whether the guest's writes go to the file; if not, they stay in this QEMU's
        memory (``MAP_PRIVATE``)
    """

    file: Path
    shared: bool


@attrs.frozen
class Machine:
    """What differs between the command lines of two VMs.

    :param overlay: a qcow2 file on the base image or on a template's overlay; None: no disk
    :param kernel: what a plain VM boots directly
    :param ram: None if the memory is not in a file
    :param renewal: a file with the identity of a copy, if the memory is in a file
    :param shares: the directories that the guest reads over 9p: environment and certificates
    :param confidential: None for a plain VM
    :param dials: whether the guest reaches its QEMU's loopback, for its agent dials the supervisor
    :param credential_hash: what the agent knows its callers by; None if it asks nobody
    """

    vm_id: str
    qemu: Binary
    accel: Accel
    forwards: Sequence[Forward]
    overlay: Path | None
    firmware_vars: Path
    serial_log: Path
    qmp_socket: Path
    ram: Ram | None = None
    renewal: Path | None = None
    shares: tuple[Path, Path] | None = None
    kernel: DirectBoot | None = None
    dials: bool = False
    credential_hash: str | None = None
    confidential: Confidential | None = None

    @property
    def technology(self) -> Technology | None:
        return self.confidential.technology if self.confidential else None

    @property
    def boot(self) -> DirectBoot | None:
        """What it boots without a boot loader."""
        return self.confidential.boot if self.confidential else self.kernel


def argv(config: QemuConfig, machine: Machine) -> list[str]:
    """The command that a supervisor runs: QMP on descriptor 0, the guest paused until ``cont``.

    Descriptor 0, because sudo closes all descriptors above 2.
    """
    return [*_command(config, machine, QMP_BY_DESCRIPTOR), "-S"]


def command(config: QemuConfig, machine: Machine) -> list[str]:
    """The same command for a person: QMP on the socket's path, the guest not paused."""
    return _command(config, machine, f"path={escape(machine.qmp_socket)}")


def by_hand(words: Sequence[str], qmp_socket: Path) -> list[str]:
    """The result of `command`, from the result of `argv`."""
    by_path = f",path={escape(qmp_socket)},"
    return [
        word.replace(f",{QMP_BY_DESCRIPTOR},", by_path) if option == "-chardev" else word
        for option, word in pairwise(["", *words])
        if word != "-S"
    ]


def forwards_in(words: Sequence[str]) -> list[Forward]:
    """The forwards on a command line."""
    matches = (match for word in values_in(words, "-netdev") for match in _FORWARD.findall(word))
    return [Forward(int(guest), address, int(host)) for address, host, guest in matches]


def values_in(words: Sequence[str], option: str) -> list[str]:
    """What follows each of these options on a command line. Nobody but this project writes that,
    where an owner's words may be in ``-append``.
    """
    return [value for name, value in pairwise(words) if name == option]


def template_in(words: Sequence[str]) -> str | None:
    """The name of the template whose memory a command line uses; None if there is none."""
    names = (match for word in values_in(words, "-object") for match in _TEMPLATE.findall(word))
    return next(names, None)


def shell_line(words: Sequence[str]) -> str:
    """The command, ready to be pasted into a shell."""
    return shlex.join(words)


def cpu_model(config: QemuConfig, accel: Accel, technology: Technology | None = None) -> str:
    """The CPU setting; by default the original's EPYC with KVM, and ``max`` with emulation."""
    if config.cpu:
        return config.cpu
    match technology:
        case Technology.SEV_SNP:
            # The firmware compares the guest's CPUID with the CPU's. This model has what all CPUs
            # with SEV-SNP have.
            return "EPYC-v4"
        case Technology.TDX:
            return "host"  # the TDX module decides about CPUID
    return "EPYC" if accel.kvm else "max"


def _command(config: QemuConfig, machine: Machine, qmp: str) -> list[str]:
    return [
        *(["sudo"] if config.use_sudo else []),
        machine.qemu.path,
        *machine_args(config, machine.accel, machine.technology, in_file=machine.ram is not None),
        *firmware_args(config, machine),
        *disk_args(config, machine),
        *network_args(config, machine),
        *confidential_args(config, machine),
        *confidential.boot_args(machine.boot),
        *(["-nographic"] if config.no_graphic else []),
        *monitor_args(qmp, machine.qemu),
        *our_args(config, machine),
    ]


def trial_args(config: QemuConfig, accel: Accel) -> list[str]:
    """What QEMU can try before the first VM: the arguments that name no file."""
    return [
        *machine_args(config, accel),
        *watchdog_args(config),
        *("-machine", _PRIVATE),
        *("-sandbox", _SANDBOX),
    ]


def machine_args(
    config: QemuConfig,
    accel: Accel,
    technology: Technology | None = None,
    *,
    in_file: bool = False,
) -> list[str]:
    """:param in_file: whether the guest's memory is in a file"""
    return [
        *(["-enable-kvm"] if accel.kvm else []),
        *("-machine", f"{config.machine},memory-backend=ram" if in_file else config.machine),
        *("-cpu", cpu_model(config, accel, technology)),
        *("-smp", f"{config.smp_count},maxcpus={config.smp_maxcpus}"),
        "-m",
        f"{config.memory_size},slots={config.memory_slots},maxmem={config.max_memory}",
    ]


def firmware_args(config: QemuConfig, machine: Machine) -> list[str]:
    if machine.confidential and machine.confidential.has_own_firmware:
        return confidential.firmware_args(machine.confidential)
    ovmf = config.firmware
    return [
        "-drive",
        f"if={ovmf.code_if},format={ovmf.code_format},unit={ovmf.code_unit},"
        f"file={escape(ovmf.code_file)},readonly={ovmf.code_readonly}",
        "-drive",
        f"if={ovmf.vars_if},format={ovmf.vars_format},unit={ovmf.vars_unit},"
        f"file={escape(machine.firmware_vars)}",
    ]


def disk_args(config: QemuConfig, machine: Machine) -> list[str]:
    if machine.overlay is None:
        return []
    disk = config.disk
    drive = f"{disk.id}-{machine.vm_id}"
    return [
        "-device",
        f"virtio-scsi-pci,id={disk.scsi_id}-{machine.vm_id},"
        f"disable-legacy={disk.disable_legacy},iommu_platform={disk.iommu_platform}",
        "-drive",
        f"file={escape(machine.overlay)},if={disk.interface},id={drive},format=qcow2",
        *("-device", f"scsi-hd,drive={drive}"),
    ]


def network_args(config: QemuConfig, machine: Machine) -> list[str]:
    net = config.net
    netdev = f"{net.id}-{machine.vm_id}"
    forwards = "".join(
        f",hostfwd=tcp:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"
        for forward in machine.forwards
    )
    # Of what a guest sends, QEMU then passes on answers to forwarded connections only, which are of
    # IPv4. One that dials is kept in by its QEMU's namespace.
    is_restricted = net.guest is GuestNetwork.NONE and not machine.dials
    restrict = ",restrict=on,ipv6=off" if is_restricted else ""
    return [
        *("-netdev", f"user,id={netdev}{forwards}{restrict}"),
        "-device",
        f"virtio-net-pci,disable-legacy={net.disable_legacy},iommu_platform={net.iommu_platform},"
        f"netdev={netdev},romfile={escape(net.romfile)}"
        # After a restore the guest would announce its new place. QEMU's user network needs none.
        + (",guest_announce=off" if machine.ram else ""),
    ]


def confidential_args(config: QemuConfig, machine: Machine) -> list[str]:
    guest = machine.confidential
    if guest is None:
        return []
    return confidential.object_args(config.sev, machine.vm_id, guest, machine.qemu)


def monitor_args(qmp: str, qemu: Binary) -> list[str]:
    if qemu.monitor_is_object:
        monitor = ["-object", "monitor-qmp,id=monitor,chardev=qmp"]
    else:
        monitor = ["-mon", "chardev=qmp,mode=control"]
    return ["-chardev", f"socket,id=qmp,{qmp},server=on,wait=off", *monitor]


def watchdog_args(config: QemuConfig) -> list[str]:
    """A watchdog. It starts when the guest first feeds it, and fires if the guest then stops."""
    if config.watchdog is None:
        return []
    return ["-device", "i6300esb", "-action", f"watchdog={config.watchdog}"]


def memory_args(config: QemuConfig, machine: Machine) -> list[str]:
    """A balloon that gives free memory back to the host; or a file for the guest's memory.

    Never both: if a guest reports free pages, QEMU punches holes into the file, even if it is
    mapped privately. All other VMs that map the file would lose these pages.
    """
    if machine.confidential:
        return []  # encrypted pages cannot be taken away
    if machine.ram is None:
        return ["-device", "virtio-balloon-pci,free-page-reporting=on"]
    share = "on" if machine.ram.shared else "off"
    if not machine.ram.shared and machine.qemu.maps_read_only:
        share += ",readonly=on,rom=off"  # a clone cannot write to the template
    return [
        "-object",
        f"memory-backend-file,id=ram,size={config.memory_bytes},"
        f"mem-path={escape(machine.ram.file)},share={share}",
        # A new generation id tells the guest's kernel that it is a copy: QEMU's docs/specs/vmgenid.
        *("-device", "vmgenid,guid=auto"),
        *line_args(config, machine),
        *([] if machine.ram.shared else ["-incoming", "defer"]),
    ]


def line_args(config: QemuConfig, machine: Machine) -> list[str]:
    """Room for the port of ``supervisor/agent/line.py``, which QEMU gets over QMP."""
    net = config.net
    return [
        "-device",
        # Without the limit QEMU and the guest would make queues for thirty ports.
        f"virtio-serial-pci,id=ports-{machine.vm_id},max_ports=2,"
        f"disable-legacy={net.disable_legacy},iommu_platform={net.iommu_platform}",
    ]


def share_args(config: QemuConfig, machine: Machine) -> list[str]:
    """Two directories over 9p, for reading alone."""
    if machine.shares is None:
        return []
    net, words = config.net, []
    for tag, directory in zip(_SHARES, machine.shares, strict=True):
        name = f"{tag}-{machine.vm_id}"
        words += [
            "-fsdev",
            f"local,id={name},path={escape(directory)},security_model=none,readonly=on",
            "-device",
            f"virtio-9p-pci,fsdev={name},mount_tag={tag},"
            f"disable-legacy={net.disable_legacy},iommu_platform={net.iommu_platform}",
        ]
    return words


def access_args(machine: Machine) -> list[str]:
    """The item of the firmware's configuration by which an agent knows its callers.

    A hash, so it may be read by all who can read a command line. An item is not part of a machine's
    state, so a clone has that of its own QEMU. For that all must have the same size.
    """
    if machine.credential_hash is None:
        return []
    return ["-fw_cfg", f"name={_ITEMS}/credential-sha256,string={machine.credential_hash}"]


def renewal_args(machine: Machine) -> list[str]:
    """The item by which a copy learns who it is. A file, for it is as secret as its entropy."""
    if machine.renewal is None:
        return []
    return ["-fw_cfg", f"name={_ITEMS}/renewal,file={escape(machine.renewal)}"]


def our_args(config: QemuConfig, machine: Machine) -> list[str]:
    """What this project adds: a name, a log, a panic device, a boot order, a sandbox, ..."""
    return [
        *("-name", f"qmp-supervisor-{machine.vm_id}"),
        *("-uuid", machine.vm_id),
        # Appending, so that the file has no hole after the supervisor has emptied it.
        *("-chardev", f"file,id=serial,path={escape(machine.serial_log)},append=on"),
        *("-serial", "chardev:serial"),
        # Of its events only the panic means something; a guest can cause the others without end.
        *("-device", "pvpanic,events=1"),
        # Without a display a graphics card is only memory to save and code to attack.
        *(["-vga", "none"] if config.no_graphic else []),
        *watchdog_args(config),
        *memory_args(config, machine),
        *share_args(config, machine),
        *access_args(machine),
        *renewal_args(machine),
        # With the disk first, the firmware does not try the network: half a second faster. A
        # kernel that QEMU boots has this place itself.
        *([] if machine.boot else ["-global", "scsi-hd.bootindex=0"]),
        # A reboot in the same process would leave no record of its cause.
        *("-action", "reboot=shutdown"),
        # QEMU merges this with the original's -machine.
        *("-machine", _PRIVATE),
        *("-sandbox", _SANDBOX),
    ]
