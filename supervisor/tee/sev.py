"""AMD SEV: whether this host can start SEV guests.

Never run on a host that can: the absence is tested, the presence is read off the kernel's
documentation (``Documentation/virt/kvm/x86/amd-memory-encryption.rst``).
"""

from __future__ import annotations

import os
from pathlib import Path

_PARAMETER = Path("/sys/module/kvm_amd/parameters/sev")
_DEVICE = Path("/dev/sev")


def missing(*, kvm: bool, sudo: bool = False) -> str | None:
    """What keeps this host from starting SEV guests, in a few words; None if nothing does.

    :param sudo: whether QEMU is started as root, who may open what we may not
    """
    if not kvm:
        return "SEV needs KVM, which does not work here"
    try:
        enabled = _PARAMETER.read_text().strip()
    except OSError:
        return f"{_PARAMETER} is not there: no AMD host, or kvm_amd is not loaded"
    if enabled not in ("Y", "1"):
        return f"{_PARAMETER} says {enabled}: SEV is off in the firmware setup or the kernel"
    if not _DEVICE.exists() or not (sudo or os.access(_DEVICE, os.R_OK | os.W_OK)):
        return f"{_DEVICE} cannot be opened for reading and writing"
    return None
