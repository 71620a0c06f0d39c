"""What was read of a host, raw. `reading` reads it, `judge` decides by it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@enum.unique
class Technology(enum.StrEnum):
    """How a guest's memory can be kept from its host."""

    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"
    TDX = "tdx"

    @property
    def label(self) -> str:
        """What people call it."""
        return self.value.upper()

    @property
    def numbered_as(self) -> str:
        """The misc control group's word for the numbers that its guests have: ASIDs or KeyIDs."""
        return {Technology.SEV: "sev", Technology.TDX: "tdx"}.get(self, "sev_es")

    @property
    def ovmf(self) -> str:
        """The word of firmware descriptors for an OVMF that was built for it."""
        return "intel-tdx" if self is Technology.TDX else f"amd-{self}"

    @property
    def is_amd(self) -> bool:
        return self is not Technology.TDX


@attrs.frozen
class EncryptionLeaf:
    """The registers of CPUID leaf 0x8000001F; all are 0 if the CPU has no such leaf.

    Source: AMD64 Architecture Programmer's Manual, volume 3, "Encrypted Memory Capabilities".
    """

    eax: int
    ebx: int
    ecx: int
    edx: int

    @property
    def c_bit(self) -> int:
        """The bit of a page table entry that says that the page is encrypted."""
        return self.ebx & 0x3F

    @property
    def last_asid(self) -> int:
        """ASIDs are numbers from 1. Each encrypted guest that runs has one."""
        return self.ecx

    @property
    def first_sev_asid(self) -> int:
        """Those below are for SEV-ES and SEV-SNP."""
        return self.edx

    @property
    def asids(self) -> dict[str, int]:
        """How many there are, by the misc control group's words."""
        first = self.first_sev_asid
        return {"sev": max(0, self.last_asid - first + 1), "sev_es": max(0, first - 1)}


@attrs.frozen
class Qemu:
    """:param objects: the types that ``-object`` takes"""

    version: str
    objects: frozenset[str]


@attrs.frozen(kw_only=True)
class HostFacts:
    """All that is known of one host. What could not be read is empty or None.

    :param vendor, family, model, name, flags: of the first CPU, by ``/proc/cpuinfo``
    :param kernel: its release
    :param parameters: raw texts by name, such as ``kvm_amd.sev``; a name is missing if the file is
    :param capacity, current: of the root's misc control group, by resource
    :param log: the kernel's own lines about these technologies, oldest first
    :param devices: whether QEMU's user may read and write them; a name is missing if the device is
    :param memlock: bytes that QEMU may lock; None: any number
    :param kvm: whether KVM works; None if that was not tried
    :param ovmf: by file, the features that a descriptor or the file's name promises
    """

    vendor: str = ""
    family: int | None = None
    model: int | None = None
    name: str = ""
    flags: frozenset[str] = frozenset()
    leaf: EncryptionLeaf | None = None
    kernel: str = ""
    parameters: Mapping[str, str] = attrs.field(factory=dict)
    capacity: Mapping[str, int] | None = None
    current: Mapping[str, int] | None = None
    log: tuple[str, ...] | None = None
    devices: Mapping[str, bool] = attrs.field(factory=dict)
    memlock: int | None = None
    kvm: bool | None = None
    qemu: Qemu | None = None
    ovmf: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
