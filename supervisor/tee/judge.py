"""Whether a host can start confidential guests: by technology a row, by layer a cell. Pure.

**No host with SEV or TDX was ever at hand.** Sources: the kernel's Documentation/virt/kvm/x86/
amd-memory-encryption.rst and Documentation/arch/x86/tdx.rst; for the lines of its log and for what
its parameters mean arch/x86/kvm/svm/sev.c, arch/x86/virt/svm/sev.c, arch/x86/virt/vmx/tdx/tdx.c,
drivers/crypto/ccp/sev-dev.c and drivers/iommu/amd/init.c; QEMU's docs/interop/firmware.json for
OVMF; for what mends a fault the answers of AMD's and Intel's engineers at github.com/AMDESE/AMDSEV
and github.com/canonical/tdx.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from supervisor.tee.facts import EncryptionLeaf, HostFacts


@enum.unique
class Verdict(enum.StrEnum):
    OK = "ok"
    #: No such guest starts.
    MISSING = "missing"
    #: Whether such a guest starts cannot be told.
    UNKNOWN = "unknown"


@enum.unique
class Layer(enum.StrEnum):
    """What must play together, from the bottom up."""

    CPU = "cpu"
    #: The host's own: the BIOS and its setup, the SEV firmware, the TDX module.
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    KVM = "kvm"
    QEMU = "qemu"
    OVMF = "ovmf"
    PERMISSIONS = "permissions"
    #: Numbers that the CPU knows guests by: ASIDs of AMD, KeyIDs of Intel.
    ASIDS = "asids"


@attrs.frozen
class Cell:
    """:param advice: the sentence that mends it; empty if there is nothing to mend"""

    verdict: Verdict
    found: str
    advice: str = ""


#: Of one technology; from the bottom up.
Row: TypeAlias = Mapping[Layer, Cell]
Table: TypeAlias = Mapping[Technology, Row]


@attrs.frozen(kw_only=True)
class _Needs:
    """What one technology needs.

    :param bit: in EAX of CPUID leaf 0x8000001F; None: CPUID does not tell
    :param flag: in ``/proc/cpuinfo``
    :param setup: the settings of the BIOS
    :param kernel, qemu: the first with it
    """

    technology: Technology
    vendor: str = "AuthenticAMD"
    brand: str = "AMD EPYC"
    cpus: str
    bit: int | None
    flag: str
    setup: str
    kernel: tuple[int, int]
    parameter: str
    object: str = "sev-guest"
    qemu: str
    devices: tuple[str, ...] = ("/dev/kvm", "/dev/sev")

    @property
    def label(self) -> str:
        return self.technology.label

    @property
    def resource(self) -> str:
        return self.technology.numbered_as

    @property
    def ovmf(self) -> str:
        return self.technology.ovmf


_ES_SETUP = "turn on SMEE and set 'SEV-ES ASID Space Limit' above 1 in the firmware setup"
_SNP_SETUP = (
    "turn on SMEE, 'SNP Memory Coverage', SEV-SNP and the IOMMU, and set 'SEV-ES ASID Space Limit'"
    " above 1 in the firmware setup"
)
_TDX_SETUP = (
    "turn on TME, TME-MT, TDX and the SEAM loader in the firmware setup, and leave KeyIDs to TDX"
)

_SEV = _Needs(
    technology=Technology.SEV,
    cpus="an EPYC 7001 (Naples) or later",
    bit=1,
    flag="sev",
    setup="turn on SMEE and leave ASIDs to SEV in the firmware setup",
    kernel=(4, 16),
    parameter="kvm_amd.sev",
    qemu="2.12",
)
_SEV_ES = _Needs(
    technology=Technology.SEV_ES,
    cpus="an EPYC 7002 (Rome) or later",
    bit=3,
    flag="sev_es",
    setup=_ES_SETUP,
    kernel=(5, 11),
    parameter="kvm_amd.sev_es",
    qemu="6.0",
)
_SEV_SNP = _Needs(
    technology=Technology.SEV_SNP,
    cpus="an EPYC 7003 (Milan) or later",
    bit=4,
    flag="sev_snp",
    setup=_SNP_SETUP,
    kernel=(6, 11),
    parameter="kvm_amd.sev_snp",
    object="sev-snp-guest",
    qemu="9.1",
)
_TDX = _Needs(
    technology=Technology.TDX,
    vendor="GenuineIntel",
    brand="Intel Xeon",
    cpus="a Xeon of the 5th generation or later, or some of the 4th",
    bit=None,
    flag="tdx_host_platform",
    setup=_TDX_SETUP,
    kernel=(6, 16),
    parameter="kvm_intel.tdx",
    object="tdx-guest",
    qemu="10.1",
    devices=("/dev/kvm",),
)


@attrs.frozen
class _Sign:
    """A line of the kernel's log that decides about a cell. The last such line counts."""

    pattern: str
    advice: str = ""
    verdict: Verdict = Verdict.MISSING


_CCP = r"^ccp [^ ]+ "
_UPDATE = (
    "update the BIOS, or put AMD's newer SEV firmware into /lib/firmware/amd and boot again; after"
    " 'SEV firmware update successful' that directory may have an older one than the board"
)
_INSTEAD_OF_ES = "use SEV-SNP, or turn that off: 'options kvm_amd sev_snp=0' in /etc/modprobe.d"

_TIMED_OUT = _Sign(
    _CCP + r"sev command 0x[0-9a-f]+ timed out, disabling PSP",
    "set the IOMMU to Auto in the firmware setup",
)
_NOT_INITIALISED = _Sign(
    _CCP + r"SEV: (failed to INIT|INIT(_EX)? failed)",
    "update the BIOS; if SEV-SNP fails as well, mend that first or turn it off in the firmware"
    " setup: SEV does not start without it then",
    Verdict.UNKNOWN,  # the log has no line for a later success
)

_SIGNS = {
    (Technology.SEV, Layer.FIRMWARE): [_TIMED_OUT, _NOT_INITIALISED],
    (Technology.SEV_ES, Layer.FIRMWARE): [_TIMED_OUT, _NOT_INITIALISED],
    (Technology.SEV_SNP, Layer.FIRMWARE): [
        _TIMED_OUT,
        _Sign(r"^SEV-SNP: Memory for the RMP table has not been reserved by BIOS", _SNP_SETUP),
        _Sign(
            r"^SEV-SNP: Memory reserved for the RMP table does not cover",
            "let 'SNP Memory Coverage' cover all memory in the firmware setup",
        ),
        _Sign(r"^AMD-Vi: SNP: IOMMU SNP feature (is )?not enabled", _SNP_SETUP),
        _Sign(_CCP + r"SEV-SNP support requires firmware version", _UPDATE),
        _Sign(
            _CCP + r"SEV-SNP: (failed to INIT|SNP_INIT(_EX)? failed)",
            f"{_UPDATE}; some boards also need SMT and SEV-SNP set as AMD's guide says",
        ),
        _Sign(_CCP + r"SEV-SNP API:", verdict=Verdict.OK),
    ],
    (Technology.SEV_SNP, Layer.KERNEL): [
        _Sign(
            r"^AMD-Vi: SNP: IOMMU (is )?disabled or configured in passthrough mode",
            "remove iommu=pt and amd_iommu=off from the kernel's command line, and turn the IOMMU"
            " on in the firmware setup",
        ),
        _Sign(
            r"^AMD-Vi: SNP: IOMMU is configured with V2 page table mode",
            "remove amd_iommu=pgtbl_v2 from the kernel's command line",
        ),
    ],
    # KVM's parameters are Y all the same.
    (Technology.SEV, Layer.KVM): [
        _Sign(
            r"^kvm_amd: SEV unusable",
            "leave ASIDs to SEV: lower 'SEV-ES ASID Space Limit' in the firmware setup",
        )
    ],
    (Technology.SEV_ES, Layer.KVM): [
        _Sign(
            r"^kvm_amd: SEV-ES unusable",
            "SEV-SNP has all the ASIDs, or the SEV firmware refuses SEV-ES beside SEV-SNP"
            f" (AMD-SB-3023): {_INSTEAD_OF_ES}",
        )
    ],
    (Technology.SEV_SNP, Layer.KVM): [
        _Sign(r"^kvm_amd: SEV-SNP unusable", f"the SEV firmware refuses it: {_UPDATE}")
    ],
    (Technology.TDX, Layer.FIRMWARE): [
        _Sign(r"^x86/tme: not enabled by BIOS", _TDX_SETUP),
        _Sign(r"^virt/tdx: (BIOS enabled|module initialized)", verdict=Verdict.OK),
        _Sign(r"^virt/tdx: module not loaded", _TDX_SETUP),
        _Sign(r"^virt/tdx: initialization failed: too few private KeyIDs", _TDX_SETUP),
        _Sign(r"^kvm_intel: tdx: no TDX private KeyIDs", _TDX_SETUP),
        _Sign(
            r"^virt/tdx: (module initialization failed|.*upgrade TDX module)",
            "update the BIOS, which has the TDX module",
        ),
    ],
    (Technology.TDX, Layer.KERNEL): [
        _Sign(
            r"^virt/tdx: initialization failed: Hibernation support is enabled",
            "add nohibernate to the kernel's command line",
        )
    ],
    (Technology.TDX, Layer.KVM): [
        _Sign(
            r"^kvm_intel: tdx: tdx requires kvm.enable_virt_at_load=1",
            "set 'options kvm enable_virt_at_load=1' in /etc/modprobe.d",
        )
    ],
}

#: What the CPU itself is for. On another vendor's CPU there is nothing to say of these.
_OF_THE_CPU = (Layer.FIRMWARE, Layer.KVM, Layer.PERMISSIONS, Layer.ASIDS)
#: SEV-SNP's firmware interface is final from here on.
_SNP_FIRMWARE = (1, 51)


def judge(facts: HostFacts, guest_bytes: int) -> Table:
    """:param guest_bytes: memory of one guest"""
    return {
        needs.technology: _row(facts, needs, guest_bytes)
        for needs in (_SEV, _SEV_ES, _SEV_SNP, _TDX)
    }


def obstacle(row: Row) -> Cell | None:
    """What is to be mended first; None if nothing is known to be missing."""
    return next((cell for cell in row.values() if cell.verdict is Verdict.MISSING), None)


def wrong_c_bit(leaf: EncryptionLeaf | None, given: int | None) -> Cell | None:
    """What is wrong with the C-bit's position, without which QEMU starts no SEV guest.

    :param given: the setting; None if it is not set
    """
    if leaf is None and given is None:
        found = "CPUID cannot be executed here, and MANAGER_QEMU_SEV_CBITPOS is not set"
        return Cell(Verdict.MISSING, found, "set it to the host's C-bit")
    if leaf is None or given is None or given == leaf.c_bit:
        return None
    found = f"MANAGER_QEMU_SEV_CBITPOS={given}, but this host's C-bit is {leaf.c_bit}"
    return Cell(Verdict.MISSING, found, "unset it: CPUID tells the host's")


def _row(facts: HostFacts, needs: _Needs, guest_bytes: int) -> Row:
    row = {
        Layer.CPU: _cpu(facts, needs),
        Layer.FIRMWARE: _firmware(facts, needs),
        Layer.KERNEL: _kernel(facts, needs),
        Layer.KVM: _kvm(facts, needs),
        Layer.QEMU: _qemu(facts, needs),
        Layer.OVMF: _ovmf(facts, needs),
        Layer.PERMISSIONS: _permissions(facts, needs, guest_bytes),
        Layer.ASIDS: _asids(facts, needs),
    }
    if row[Layer.CPU].verdict is Verdict.MISSING:
        row |= dict.fromkeys(_OF_THE_CPU, Cell(Verdict.UNKNOWN, "see cpu"))
    return row


def _cpu(facts: HostFacts, needs: _Needs) -> Cell:
    if not facts.vendor:
        return Cell(Verdict.UNKNOWN, "/proc/cpuinfo names no vendor")
    cpu = f"{facts.vendor} family {facts.family} model {facts.model} ({facts.name})"
    if facts.vendor != needs.vendor:
        return Cell(Verdict.MISSING, f"no {needs.brand}: this CPU is {cpu}")
    if needs.bit is None or facts.leaf is None:
        able = needs.flag in facts.flags
    else:
        able = bool(facts.leaf.eax >> needs.bit & 1)
        cpu += f", C-bit {facts.leaf.c_bit}" if able else ""
    if able:
        return Cell(Verdict.OK, cpu)
    if "hypervisor" in facts.flags:
        found = "this host is itself a virtual machine"
        return Cell(Verdict.MISSING, found, "run the supervisor on the bare machine")
    if needs.bit is None or facts.leaf is None:
        found = f"{cpu}; the kernel does not show the flag {needs.flag}"
        return Cell(Verdict.UNKNOWN, found, f"{needs.label} needs {needs.cpus}")
    found = f"{cpu} has no {needs.label}: CPUID 0x8000001F, EAX bit {needs.bit}"
    return Cell(Verdict.MISSING, found, f"{needs.label} needs {needs.cpus}")


def _firmware(facts: HostFacts, needs: _Needs) -> Cell:
    said = _said(facts, needs, Layer.FIRMWARE)
    if said and said.verdict is not Verdict.OK:
        return said
    version = _sev_firmware(facts)
    if needs is _SEV_SNP and version and version < _SNP_FIRMWARE:
        return Cell(Verdict.MISSING, "SEV firmware {}.{}, not 1.51".format(*version), _UPDATE)
    if needs.flag not in facts.flags and not _is_on(facts, needs):
        found = f"the kernel does not show the flag {needs.flag}"
        return Cell(Verdict.MISSING, found, needs.setup)
    if _asids_by_cpuid(facts, needs) == 0:
        found = f"the firmware setup leaves no ASIDs to {needs.label}, by CPUID"
        return Cell(Verdict.MISSING, found, needs.setup)
    if needs is _SEV_ES and _is_on(facts, _SEV_SNP):
        found = "SEV-SNP is on: SEV firmware with the fix AMD-SB-3023 refuses SEV-ES beside it"
        advice = f"if a launch ends with fw_error=21, {_INSTEAD_OF_ES}"
        return Cell(Verdict.UNKNOWN, found, advice)
    return said or Cell(Verdict.OK, f"the kernel shows the flag {needs.flag}")


def _sev_firmware(facts: HostFacts) -> tuple[int, int] | None:
    """The version that the driver found last."""
    for line in reversed(facts.log or ()):
        if found := re.search(_CCP + r"SEV(?:-SNP)? API:([0-9]{1,5})[.:]([0-9]{1,5})", line):
            return int(found[1]), int(found[2])
    return None


def _kernel(facts: HostFacts, needs: _Needs) -> Cell:
    if said := _said(facts, needs, Layer.KERNEL):
        return said
    kernel = f"kernel {facts.kernel}"
    needed = "{}.{}".format(*needs.kernel)
    if needs.parameter in facts.parameters:  # distributions have it in older kernels as well
        return Cell(Verdict.OK, f"{kernel} knows {needs.parameter}")
    advice = f"{needs.label} needs Linux {needed}, or a distribution's kernel with it"
    if needs is _SEV_SNP and _SEV.parameter in facts.parameters:
        return Cell(Verdict.MISSING, f"{kernel} knows no {needs.parameter}", advice)
    version = re.match(r"([0-9]{1,5})\.([0-9]{1,5})", facts.kernel)
    if version is None:
        return Cell(Verdict.UNKNOWN, f"{kernel}: not a version")
    if (int(version[1]), int(version[2])) < needs.kernel:
        return Cell(Verdict.MISSING, f"{kernel} is older than {needed}", advice)
    return Cell(Verdict.OK, kernel)


def _kvm(facts: HostFacts, needs: _Needs) -> Cell:
    module, _, option = needs.parameter.partition(".")
    if facts.kvm is False:
        return Cell(
            Verdict.MISSING,
            f"{needs.label} needs KVM, which does not work here or is switched off",
            "see KVM in 'qmp-supervisor doctor', and MANAGER_QEMU_ENABLE_KVM",
        )
    value = facts.parameters.get(needs.parameter)
    load = f"'options {module} {option}=1' in /etc/modprobe.d, and load {module} again"
    if value is None:
        found = f"there is no {needs.parameter}: {module} is not loaded, or the kernel is without"
        return Cell(Verdict.MISSING, found, load)
    if not _is_on(facts, needs):
        found = f"{needs.parameter} is {value}"
        return Cell(Verdict.MISSING, found, f"if CPU, firmware and kernel are in order: {load}")
    if said := _said(facts, needs, Layer.KVM):
        return said
    if facts.kvm is None:
        return Cell(Verdict.UNKNOWN, f"{needs.parameter} is {value}; KVM was not tried")
    return Cell(Verdict.OK, f"{needs.parameter} is {value}")


def _qemu(facts: HostFacts, needs: _Needs) -> Cell:
    if facts.qemu is None:
        return Cell(Verdict.UNKNOWN, "QEMU does not answer", "see QEMU in 'qmp-supervisor doctor'")
    knows = needs.object in facts.qemu.objects
    found = f"QEMU {facts.qemu.version} knows {'' if knows else 'no '}{needs.object}"
    if knows:
        return Cell(Verdict.OK, found)
    advice = f"{needs.object} needs QEMU {needs.qemu}; an upgrade may have replaced a patched one"
    return Cell(Verdict.MISSING, found, advice)


def _ovmf(facts: HostFacts, needs: _Needs) -> Cell:
    fit = [file for file, features in facts.ovmf.items() if needs.ovmf in features]
    if fit:
        return Cell(Verdict.OK, f"{fit[0]} has {needs.ovmf}")
    if not facts.ovmf:
        return Cell(Verdict.MISSING, "no OVMF was found", "install the package ovmf")
    found = f"no OVMF says that it has {needs.ovmf}; one may have it all the same"
    return Cell(Verdict.UNKNOWN, found, f"install an OVMF that was built with {needs.ovmf}")


def _permissions(facts: HostFacts, needs: _Needs, guest_bytes: int) -> Cell:
    for device in needs.devices:
        openable = facts.devices.get(device)
        if openable is None:
            driver = "ccp" if device == "/dev/sev" else "kvm"
            advice = f"load {driver}; a container must be given {device}"
            return Cell(Verdict.MISSING, f"there is no {device}", advice)
        if not openable:
            found = f"QEMU's user may not read and write {device}"
            advice = f"give it to a group of that user: chgrp kvm {device}, chmod 660 {device}"
            return Cell(Verdict.MISSING, found, advice)
    # KVM locks all of such a guest. SEV-SNP's and TDX's memory is the kernel's own.
    if needs in (_SEV, _SEV_ES) and facts.memlock is not None and facts.memlock < guest_bytes:
        found = f"{facts.memlock >> 10} KiB may be locked, and a guest has {guest_bytes >> 10}"
        advice = "set LimitMEMLOCK=infinity in the unit, or memlock in /etc/security/limits.conf"
        return Cell(Verdict.MISSING, found, advice)
    return Cell(Verdict.OK, f"QEMU's user may open {' and '.join(needs.devices)}")


def _asids(facts: HostFacts, needs: _Needs) -> Cell:
    kind = "KeyIDs" if needs is _TDX else "ASIDs"
    if facts.capacity is None:
        total = _asids_by_cpuid(facts, needs)
        found = f"{total} by CPUID" if total is not None else f"how many {kind} is not known"
        return Cell(Verdict.UNKNOWN, f"{found}; there is no misc.capacity here")
    total = facts.capacity.get(needs.resource, 0)
    if not total:
        return Cell(Verdict.MISSING, f"misc.capacity has no {needs.resource}", needs.setup)
    if facts.current is None:
        return Cell(Verdict.UNKNOWN, f"{total} {kind}; how many are in use is not known")
    free = total - facts.current.get(needs.resource, 0)
    found = f"{free} of {total} {kind} are free"
    if free > 0:
        return Cell(Verdict.OK, found)
    # None is free now. That keeps no supervisor from starting: its own guests may have them.
    return Cell(Verdict.UNKNOWN, found, f"end a guest with {needs.label}")


def _asids_by_cpuid(facts: HostFacts, needs: _Needs) -> int | None:
    return facts.leaf.asids.get(needs.resource) if facts.leaf else None


def _is_on(facts: HostFacts, needs: _Needs) -> bool:
    """Old kernels say 1, new ones Y."""
    return facts.parameters.get(needs.parameter) in ("Y", "1")


def _said(facts: HostFacts, needs: _Needs, layer: Layer) -> Cell | None:
    """What the last line of the kernel's log about this cell says; None without such a line."""
    signs = _SIGNS.get((needs.technology, layer), [])
    for line in reversed(facts.log or ()):
        for sign in signs:
            if re.search(sign.pattern, line):
                return Cell(sign.verdict, line, sign.advice)
    return None
