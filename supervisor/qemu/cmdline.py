"""From a configuration to QEMU's command line. Pure: one ``*_args`` function a device.

The order is the original manager's, element for element, with a QMP socket in the place of
``-monitor pty``; what this project adds follows after it. Every id carries the VM's id.

Source: QEMU's manual page, ``qemu-system-x86_64(1)``.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.config import QemuConfig

#: How a supervisor hands the QMP socket over; where a person runs the line it is a path.
QMP_BY_DESCRIPTOR = "fd=0"

_FORWARD = re.compile(r"hostfwd=tcp:([0-9.]*):(\d+)-:(\d+)")

_TEMPLATE = re.compile(r"/([0-9a-f]{16}(?:-[0-9]+)?)/ram,share=off")

#: What QEMU may not do once it is up; nothing here needs any of it.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@attrs.frozen
class Accel:
    """What of the host's hardware a VM uses, decided once at start."""

    kvm: bool
    sev: bool


@attrs.frozen
class Forward:
    """A TCP port of the host that leads to a port of the guest."""

    guest_port: int
    host_address: str
    host_port: int


@attrs.frozen
class Ram:
    """Memory in a file, as a template and what is started from it have it.

    :param shared: whether the guest writes to the file; else it is read, and what is written
        stays with this QEMU (``MAP_PRIVATE``)
    """

    file: Path
    shared: bool


@attrs.frozen
class Machine:
    """All that one VM's command line is made of.

    :param qemu: path of QEMU's binary
    :param overlay: qcow2, on the base image or a template's overlay
    :param ram: None for memory of QEMU's own
    """

    vm_id: str
    qemu: str
    accel: Accel
    forwards: Sequence[Forward]
    overlay: Path
    firmware_vars: Path
    serial_log: Path
    qmp_socket: Path
    ram: Ram | None = None


def argv(config: QemuConfig, machine: Machine) -> list[str]:
    """The command a supervisor runs: QMP on descriptor 0, the guest held until ``cont``.

    Descriptor 0 because sudo closes all above 2.
    """
    return [*_command(config, machine, QMP_BY_DESCRIPTOR), "-S"]


def command(config: QemuConfig, machine: Machine) -> list[str]:
    """The same, as a person can run it: QMP on the socket's path, the guest not held."""
    return _command(config, machine, f"path={escape(machine.qmp_socket)}")


def by_hand(words: Sequence[str], qmp_socket: Path) -> list[str]:
    """What `command` gives, from what `argv` gave."""
    path = f"path={escape(qmp_socket)}"
    return [word.replace(f",{QMP_BY_DESCRIPTOR},", f",{path},") for word in words if word != "-S"]


def forwards_in(words: Sequence[str]) -> list[Forward]:
    """The forwards on a command line."""
    found = (match for word in words for match in _FORWARD.findall(word))
    return [Forward(int(guest), address, int(host)) for address, host, guest in found]


def template_in(words: Sequence[str]) -> str | None:
    """The name of the template that a command line starts from."""
    found = (match for word in words for match in _TEMPLATE.findall(word))
    return next(found, None)


def shell_line(words: Sequence[str]) -> str:
    """The command, ready to be pasted into a shell."""
    return shlex.join(words)


def escape(value: object) -> str:
    """A value for one of QEMU's comma-separated options, where a comma is written twice."""
    return str(value).replace(",", ",,")


def cpu_model(config: QemuConfig, accel: Accel) -> str:
    """The original's EPYC where real hardware runs it; ``max`` is what emulation can do."""
    return config.cpu or ("EPYC" if accel.kvm else "max")


def _command(config: QemuConfig, machine: Machine, qmp: str) -> list[str]:
    return [
        *(["sudo"] if config.use_sudo else []),
        machine.qemu,
        *machine_args(config, machine),
        *firmware_args(config, machine),
        *disk_args(config, machine),
        *network_args(config, machine),
        *(sev_args(config, machine) if machine.accel.sev else []),
        *(["-nographic"] if config.no_graphic else []),
        *monitor_args(qmp),
        *our_args(config, machine),
    ]


def machine_args(config: QemuConfig, machine: Machine) -> list[str]:
    return [
        *(["-enable-kvm"] if machine.accel.kvm else []),
        *("-machine", f"{config.machine},memory-backend=ram" if machine.ram else config.machine),
        *("-cpu", cpu_model(config, machine.accel)),
        *("-smp", f"{config.smp_count},maxcpus={config.smp_maxcpus}"),
        "-m",
        f"{config.memory_size},slots={config.memory_slots},maxmem={config.max_memory}",
    ]


def firmware_args(config: QemuConfig, machine: Machine) -> list[str]:
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
    return [
        *("-netdev", f"user,id={netdev}{forwards}"),
        "-device",
        f"virtio-net-pci,disable-legacy={net.disable_legacy},iommu_platform={net.iommu_platform},"
        f"netdev={netdev},romfile={escape(net.romfile)}"
        # A copy would tell the network where it is now, which nobody there wants to know.
        + (",guest_announce=off" if machine.ram else ""),
    ]


def sev_args(config: QemuConfig, machine: Machine) -> list[str]:
    """Checked against the original's command line only: no SEV host was at hand."""
    sev = config.sev
    sev_id = f"{sev.id}-{machine.vm_id}"
    return [
        "-object",
        f"sev-guest,id={sev_id},cbitpos={sev.cbitpos},reduced-phys-bits={sev.reduced_phys_bits}",
        *("-machine", f"memory-encryption={sev_id}"),
    ]


def monitor_args(qmp: str) -> list[str]:
    return [
        "-chardev",
        f"socket,id=qmp,{qmp},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]


def watchdog_args(config: QemuConfig) -> list[str]:
    """Runs out where the guest has begun to feed it and then stops; one that never does is safe."""
    if config.watchdog is None:
        return []
    return ["-device", "i6300esb", "-action", f"watchdog={config.watchdog}"]


def memory_args(config: QemuConfig, machine: Machine) -> list[str]:
    """Memory that can be shared, or given back to the host, according to what the VM is.

    A guest that reports its free pages has QEMU punch holes: into a file that is mapped privately
    too, under all others that map it. So what has its memory in a file must not have the balloon.
    """
    if machine.accel.sev:
        return []  # encrypted pages cannot be taken away
    if machine.ram is None:
        return ["-device", "virtio-balloon-pci,free-page-reporting=on"]
    share = "on" if machine.ram.shared else "off"
    return [
        "-object",
        f"memory-backend-file,id=ram,size={config.memory_bytes},"
        f"mem-path={escape(machine.ram.file)},share={share}",
        # A new number tells the guest's kernel that it is a copy: QEMU's docs/specs/vmgenid.
        *("-device", "vmgenid,guid=auto"),
        *([] if machine.ram.shared else ["-incoming", "defer"]),
    ]


def our_args(config: QemuConfig, machine: Machine) -> list[str]:
    """What the original has not: a name, a log, a panic device, a boot order, a sandbox."""
    return [
        *("-name", f"qmp-supervisor-{machine.vm_id}"),
        *("-uuid", machine.vm_id),
        # Appending, so that the supervisor may cut the file without leaving a hole.
        *("-chardev", f"file,id=serial,path={escape(machine.serial_log)},append=on"),
        *("-serial", "chardev:serial"),
        *("-device", "pvpanic"),
        # A graphics card that nobody can look at: memory to save and restore, and code to attack.
        *(["-vga", "none"] if config.no_graphic else []),
        *watchdog_args(config),
        *memory_args(config, machine),
        # Firmware that is told the disk does not try the network first: half a second less.
        *("-global", "scsi-hd.bootindex=0"),
        # A reboot would keep the process and lose the record of how it came about.
        *("-action", "reboot=shutdown"),
        *("-sandbox", _SANDBOX),
    ]
