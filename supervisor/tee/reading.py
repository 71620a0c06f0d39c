"""Reads a host's facts. Blocking. Nothing raises: what cannot be read is not known.

Sources: the kernel's Documentation/ABI/testing/dev-kmsg and Documentation/admin-guide/cgroup-v2.rst
for the formats; AMD64 Architecture Programmer's Manual, volume 3, for CPUID.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.tee.facts import EncryptionLeaf, HostFacts, Technology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from supervisor.tee.facts import Qemu

_PARAMETERS = ("kvm_amd.sev", "kvm_amd.sev_es", "kvm_amd.sev_snp", "kvm_intel.tdx")
_DEVICES = ("/dev/kvm", "/dev/sev")
#: Version 2, and the places of the misc controller on hosts with version 1.
_CGROUPS = ("", "misc", "unified")
_OF_INTEREST = re.compile(r"SEV|SNP|TDX|tdx|tme|sev command")
_RECORD_BYTES = 8192
_MOST_RECORDS = 100_000

#: ``void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])`` for the System V ABI:
#: push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; mov [r8+4], ebx;
#: mov [r8+8], ecx; mov [r8+12], edx; pop rbx; ret
_CPUID = bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")
_LAST_EXTENDED = 0x80000000
_ENCRYPTION = 0x8000001F


def read(
    *,
    kvm: bool | None,
    qemu: Qemu | None,
    ovmf: Mapping[str, frozenset[str]],
    may_open: Callable[[Path], bool],
    locks_freely: bool,
    root: Path = Path("/"),
) -> HostFacts:
    """The facts of this host, with those that others found out.

    :param may_open: whether QEMU's user may read and write a device
    :param locks_freely: whether QEMU's user may lock memory beyond its limit
    :param root: of the files; a test has its own
    """
    cpu = _cpu(_text(root / "proc/cpuinfo") or "")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    devices = {name: root / name.lstrip("/") for name in _DEVICES}
    return HostFacts(
        vendor=cpu.get("vendor_id", ""),
        family=_number(cpu.get("cpu family", "")),
        model=_number(cpu.get("model", "")),
        name=cpu.get("model name", ""),
        flags=frozenset(cpu.get("flags", "").split()),
        leaf=encryption_leaf(),
        kernel=(_text(root / "proc/sys/kernel/osrelease") or "").strip(),
        parameters=dict(_parameters(root)),
        capacity=_misc(root, "capacity"),
        current=_misc(root, "current"),
        log=_log(root / "dev/kmsg"),
        devices={
            name: may_open(device) for name, device in devices.items() if os.path.exists(device)
        },
        memlock=None if locks_freely or limit == resource.RLIM_INFINITY else limit,
        kvm=kvm,
        qemu=qemu,
        ovmf=ovmf,
    )


def encryption_leaf() -> EncryptionLeaf | None:
    """CPUID's leaf on memory encryption; None if this process cannot execute the instruction.

    /dev/cpu/0/cpuid would need root and a module; packages that are kept up give names of features
    and not the leaf. So a page of ours has the instruction. It is written and then made executable,
    never both at once; a hardened kernel, or systemd's MemoryDenyWriteExecute=, may still refuse.
    """
    if platform.machine() != "x86_64":
        return None
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, flags=private) as page:
            page.write(_CPUID)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            protect = ctypes.CDLL(None).mprotect
            protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
                return None
            # Beyond its last leaf, Intel's CPUs answer with another leaf's registers.
            if _cpuid(address, _LAST_EXTENDED)[0] < _ENCRYPTION:
                return EncryptionLeaf(0, 0, 0, 0)
            return EncryptionLeaf(*_cpuid(address, _ENCRYPTION))
    except OSError:
        return None


def numbers(root: Path = Path("/")) -> dict[str, int]:
    """How many ASIDs and KeyIDs the host has, by the misc control group's words; as far as known.

    :param root: of the files; a test has its own
    """
    capacity = _misc(root, "capacity")
    if capacity is not None:
        return {one.numbered_as: capacity.get(one.numbered_as, 0) for one in Technology}
    leaf = encryption_leaf()
    return leaf.asids if leaf else {}


def _cpuid(address: int, leaf: int) -> list[int]:
    word = ctypes.c_uint32
    registers = (word * 4)()
    ctypes.CFUNCTYPE(None, word, word, ctypes.c_void_p)(address)(
        leaf, 0, ctypes.addressof(registers)
    )
    return list(registers)


def _cpu(text: str) -> dict[str, str]:
    """The first CPU of ``/proc/cpuinfo``: members by name."""
    first = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _parameters(root: Path) -> Iterator[tuple[str, str]]:
    for name in _PARAMETERS:
        module, _, parameter = name.partition(".")
        text = _text(root / "sys/module" / module / "parameters" / parameter)
        if text is not None:
            yield name, text.strip()


def _misc(root: Path, what: str) -> dict[str, int] | None:
    """``misc.capacity`` or ``misc.current`` of the root group; None without such a file."""
    for place in _CGROUPS:
        text = _text(root / "sys/fs/cgroup" / place / f"misc.{what}")
        if text is not None:
            pairs = (line.partition(" ") for line in text.splitlines())
            numbers = {name: _number(value) for name, _, value in pairs}
            return {name: number for name, number in numbers.items() if number is not None}
    return None


def _log(file: Path) -> tuple[str, ...] | None:
    """None if the log may not be read, or there is none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = "".join(part.decode(errors="replace") for part in _records(descriptor))
    finally:
        os.close(descriptor)
    return tuple(line for line in _kernels_own(text) if _OF_INTEREST.search(line))


def _records(descriptor: int) -> Iterator[bytes]:
    for _ in range(_MOST_RECORDS):
        try:
            part = os.read(descriptor, _RECORD_BYTES)
        except BrokenPipeError:
            continue  # the next record was overwritten meanwhile
        except OSError:
            return
        if not part:
            return
        yield part


def _kernels_own(text: str) -> Iterator[str]:
    """The messages. Processes may write records as well; those have another facility than 0."""
    for line in text.splitlines():
        prefix, _, message = line.partition(";")
        priority = _number(prefix.partition(",")[0])
        if priority is not None and priority < 8:
            yield message


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else None
