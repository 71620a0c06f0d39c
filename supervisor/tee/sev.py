"""AMD SEV: whether this host can start SEV guests.

Never run on an SEV host. Tests cover a host without SEV; the checks for SEV follow the kernel's
documentation (``Documentation/virt/kvm/x86/amd-memory-encryption.rst``).
"""

from __future__ import annotations

import os
from pathlib import Path

_PARAMETER = Path("/sys/module/kvm_amd/parameters/sev")
_DEVICE = Path("/dev/sev")


def missing(*, kvm: bool, sudo: bool = False) -> str | None:
    """Why this host cannot start SEV guests, as part of a sentence; None if it can.

    :param kvm: whether KVM works
    :param sudo: whether QEMU runs as root, which may open devices that we must not open
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
