"""Why a confidential guest was not launched, by what QEMU and the kernel said. Pure.

The sentences are those with which AMD's and Intel's engineers ended the threads about each of them,
at github.com/AMDESE/AMDSEV and github.com/canonical/tdx; where a refusal is KVM's own, the kernel's
arch/x86/kvm/svm/sev.c. **Nobody here has seen any of them**: no host with SEV or TDX was at hand.
"""

from __future__ import annotations

import re

import attrs

#: The SEV firmware's numbers. Source: the kernel's include/uapi/linux/psp-sev.h.
_FIRMWARE_ERRORS = {
    0x01: "the platform is in another state, for example not initialised",
    0x02: "the guest is in another state",
    0x03: "the platform's configuration is not valid",
    0x07: "the guest's policy does not allow it",
    0x0C: "the ASID belongs to another guest",
    0x0D: "the ASID is not valid",
    0x0E: "the CPU's caches must be written back first",
    0x0F: "the data fabric must be flushed first",
    0x13: "the hardware has failed",
    0x14: "the hardware is not safe to use",
    0x15: "the firmware does not support it here",
    0x16: "a parameter is not valid",
    0x17: "the firmware has no resources left",
    0x18: "the firmware's own data are damaged",
    0x20: "the reverse map table is not initialised",
}


@attrs.frozen
class Cause:
    """:param advice: what mends it"""

    what: str
    advice: str


@attrs.frozen
class _Sign:
    """:param pattern: of one line. The first that fits decides, so the more certain come first"""

    pattern: str
    what: str
    advice: str


_GENERATIONS = (
    "use a QEMU and a kernel of the same generation: SEV-SNP needs 9.1 and 6.11, TDX 10.1 and 6.16"
)

_SIGNS = (
    _Sign(
        r"does not accept value '(?:sev-snp-guest|tdx-guest|igvm-cfg|sev-guest)'",
        "this QEMU does not know the technology",
        "use QEMU 9.1 or later for SEV-SNP, 10.1 or later for TDX and IGVM; an upgrade may have"
        " replaced a patched one",
    ),
    _Sign(
        r"SNP_LAUNCH_START ret=-25|KVM_TDX_CAPABILITIES failed: Inappropriate ioctl",
        "QEMU and the host's kernel do not understand each other",
        _GENERATIONS,
    ),
    _Sign(
        r"SNP_LAUNCH_START ret=-22 fw_error=0(?:x0)?\b",
        "KVM refused the launch before the firmware was asked: by the policy, or by the machine",
        "with kernels of the first generation (6.11) leave smt in the policy, and take"
        " single-socket, migration-agent and whatever else they do not know out of it; have"
        " firmware in one file (MANAGER_TEE_FIRMWARE)",
    ),
    _Sign(
        r"sev_kvm_init: failed to initialize ret=-22",
        "SEV-SNP is not initialised on this host, though SEV-ES may be",
        "see the rows of SEV-SNP in 'qmp-supervisor doctor' and the kernel's log",
    ),
    _Sign(
        r"host kernel does not support requested \S+ VM type",
        "this host's kernel is too old for this QEMU's SEV guests",
        "use Linux 6.10 or later",
    ),
    _Sign(
        r"vm-type tdx not supported by KVM",
        "this host's KVM has no TDX",
        "turn TDX on in the firmware setup, use Linux 6.16 or later with kvm_intel.tdx=1, and a"
        " QEMU of the same generation",
    ),
    _Sign(
        r"KVM_TDX_INIT_MEM_REGION failed",
        "the host could not give the guest its memory",
        f"leave KeyIDs to TDX in the firmware setup; {_GENERATIONS}",
    ),
    _Sign(
        r"kvm run failed Invalid argument",
        "the guest's first instruction could not be run: the firmware is not made for this",
        "use an OVMF that was built for the technology (MANAGER_TEE_FIRMWARE)",
    ),
    _Sign(
        r"SEV: (guest firmware hashes table area is invalid|kernel specified but guest firmware has"
        r" no hashes table)",
        "the firmware has no place for the kernel's hashes",
        "use OVMF's AmdSev build (MANAGER_TEE_FIRMWARE), or unset MANAGER_TEE_KERNEL",
    ),
    _Sign(
        # QEMU 7.2 does not look for KVM before it relies on it.
        r"KVM required|accelerator does not support confidential guest|cgs->ready' failed",
        "confidential guests need KVM",
        "see KVM in 'qmp-supervisor doctor'",
    ),
    _Sign(
        r"Cannot allocate memory|KVM_MEMORY_ENCRYPT_REG_REGION.*failed|failed to register region",
        "the guest's memory could not be locked",
        "set LimitMEMLOCK=infinity in the unit, or memlock in /etc/security/limits.conf",
    ),
)
#: A refusal of the firmware itself: what comes after fw_error says why.
_BY_FIRMWARE = re.compile(r"fw_error=(?:0x([0-9a-f]{1,8})|([0-9]{1,9}))\b", re.IGNORECASE)
#: SEV_RET_UNSUPPORTED
_UNSUPPORTED = 0x15


def explain(said: str) -> Cause | None:
    """The cause of a failed launch, if it is a known one.

    :param said: the last lines of QEMU's log
    """
    lines = said.splitlines()
    for sign in _SIGNS:
        if any(re.search(sign.pattern, line) for line in lines):
            return Cause(sign.what, sign.advice)
    for line in lines:
        if found := _BY_FIRMWARE.search(line):
            number = int(found[1], 16) if found[1] else int(found[2])
            if number:
                return _firmwares(number)
    return None


def _firmwares(number: int) -> Cause:
    known = _FIRMWARE_ERRORS.get(number, "see psp-sev.h of the kernel for the number")
    advice = "update the BIOS, which has the SEV firmware, and see the kernel's log"
    if number == _UNSUPPORTED:
        advice = "SEV-ES beside SEV-SNP is refused by firmware with the fix AMD-SB-3023; else "
        advice += "update the BIOS"
    return Cause(f"the SEV firmware refused the launch with {number:#x}: {known}", advice)
