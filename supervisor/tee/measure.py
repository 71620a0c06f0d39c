"""What the processor measures of a guest before its first instruction, by the files. Blocking.

The arithmetic is sev-snp-measure's. An owner who does not believe the supervisor runs that program
with files of his own.

Sources: AMD's SEV Secure Nested Paging Firmware ABI Specification (56860), "Launch Digest"; AMD's
Secure Encrypted Virtualization API (55766), "LAUNCH_MEASURE".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode

from supervisor.tee.expected import Measurement
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from pathlib import Path

_MODES = {
    Technology.SEV: SevMode.SEV,
    Technology.SEV_ES: SevMode.SEV_ES,
    Technology.SEV_SNP: SevMode.SEV_SNP,
}
#: What QEMU sets in the first registers of an SEV-SNP guest: SNPActive, and nothing else.
_GUEST_FEATURES = 0x1


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
    mode = _MODES.get(technology)
    if mode is None:
        return Measurement(problem="MRTD and RTMRs are not computed here")
    model = measured.cpu.partition(",")[0]
    # The registers of the first CPU hold its signature; SEV does not measure registers.
    signature = vcpu_types.CPU_SIGS.get(model)
    if signature is None and technology is not Technology.SEV:
        return Measurement(problem=f"the signature of the CPU model {model} is not known here")
    try:
        digest = guest.calc_launch_digest(
            mode,
            measured.vcpus,
            signature or 0,
            str(measured.firmware),
            str(measured.kernel or ""),
            str(measured.initrd or ""),
            measured.cmdline,
            _GUEST_FEATURES,
        )
    except (OSError, RuntimeError, ValueError, LookupError, AssertionError) as error:
        return Measurement(problem=f"{measured.firmware}: {error}")
    return Measurement(digest.hex())
