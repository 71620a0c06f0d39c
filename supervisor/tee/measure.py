"""What the processor measures of a guest before its first instruction, by the files. Blocking.

The arithmetic is sev-snp-measure's. An owner who does not believe the supervisor runs that program
with files of his own.

Sources: AMD's SEV Secure Nested Paging Firmware ABI Specification (56860), "Launch Digest"; AMD's
Secure Encrypted Virtualization API (55766), "LAUNCH_MEASURE".
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs
from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.ovmf import OVMF
from sevsnpmeasure.sev_hashes import SevHashes
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

from supervisor.tee import igvm
from supervisor.tee.evidence import BadEvidence
from supervisor.tee.expected import Measurement
from supervisor.tee.facts import Technology
from supervisor.tee.tdx import mrtd

if TYPE_CHECKING:
    from pathlib import Path

_MODES = {
    Technology.SEV: SevMode.SEV,
    Technology.SEV_ES: SevMode.SEV_ES,
    Technology.SEV_SNP: SevMode.SEV_SNP,
}
#: What QEMU sets in the first registers of an SEV-SNP guest: SNPActive, and nothing else.
_GUEST_FEATURES = 0x1
_LARGEST_IGVM = 64 * 1024 * 1024
#: MXCSR and the x87 control word. Source: AMD64 Architecture Programmer's Manual, volume 2,
#: "VMCB State Save Area".
_NOT_LEGACY = slice(0x408, 0x40C), slice(0x410, 0x412)


@attrs.frozen(kw_only=True)
class Measured:
    """What is measured of one guest.

    :param firmware: the file of the code, as it is in memory
    :param cpu: QEMU's ``-cpu``
    """

    firmware: Path
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    vcpus: int
    cpu: str


def measure(technology: Technology, measured: Measured) -> Measurement:
    """What the processor comes to, or why that is not known.

    Under SEV-ES it depends on how QEMU has asked KVM for the guest. Since Linux 6.10 and QEMU 9.1,
    by KVM_SEV_INIT2, MXCSR and the x87 control word are among the first registers. Before, and with
    ``legacy-vm-type``, they were not, and libvirt's virt-qemu-sev-validate still expects that.
    """
    if technology is Technology.TDX:
        return _measure_tdx(measured.firmware)
    mode = _MODES[technology]
    model = measured.cpu.partition(",")[0]
    # The registers of the first CPU hold its signature; SEV does not measure registers.
    signature = vcpu_types.CPU_SIGS.get(model)
    if signature is None and technology is not Technology.SEV:
        return Measurement(problem=f"the signature of the CPU model {model} is not known here")
    firmware = str(measured.firmware)
    boot = str(measured.kernel or ""), str(measured.initrd or ""), measured.cmdline
    count, number = measured.vcpus, signature or 0
    try:
        digest = guest.calc_launch_digest(mode, count, number, firmware, *boot, _GUEST_FEATURES)
        legacy = _legacy(firmware, boot, count, number) if mode is SevMode.SEV_ES else ""
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError) as error:
        return Measurement(problem=f"{measured.firmware}: {error}")
    return Measurement(digest.hex(), legacy_digest=legacy)


def _measure_tdx(firmware: Path) -> Measurement:
    """MRTD. A kernel that is booted directly has no part in it: the firmware measures that."""
    try:
        ovmf = OVMF(str(firmware))
        from_end = int.from_bytes(ovmf.table_item(mrtd.METADATA)[:4], "little")
        return Measurement(mrtd.measure(ovmf.data(), from_end).hex())
    except LookupError:
        return Measurement(problem=f"{firmware}: it says nothing of TDX")
    except BadEvidence as error:
        return Measurement(problem=f"{firmware}: {error.detail}")
    except (OSError, RuntimeError, ValueError) as error:
        return Measurement(problem=f"{firmware}: {error}")


def measure_igvm(technology: Technology, file: Path, vcpus: int) -> Measurement:
    """The same of a guest that is all in an IGVM file.

    Under SEV and SEV-ES nobody has written down what of a file is measured, and how.
    """
    if technology is not Technology.SEV_SNP:
        return Measurement(
            problem=f"what an IGVM file comes to under {technology.label} is not computed here"
        )
    try:
        with file.open("rb") as opened:
            found = igvm.measure(opened.read(_LARGEST_IGVM), vcpus)
    except OSError as error:
        return Measurement(problem=f"{file}: {error.strerror}")
    except igvm.BadIgvm as error:
        return Measurement(problem=f"{file}: {error.detail}")
    return Measurement(found.digest.hex(), policy=found.policy)


def _legacy(firmware: str, boot: tuple[str, str, str], vcpus: int, signature: int) -> str:
    made = hashlib.sha256(OVMF(firmware).data())
    if boot[0]:
        made.update(SevHashes(*boot).construct_table())
    eip = OVMF(firmware).sev_es_reset_eip()
    for page in VMSA(SevMode.SEV_ES, eip, signature, 0, VMMType.QEMU).pages(vcpus):
        registers = bytearray(page)
        for place in _NOT_LEGACY:
            registers[place] = bytes(place.stop - place.start)
        made.update(registers)
    return made.hexdigest()
