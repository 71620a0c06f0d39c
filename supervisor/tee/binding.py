"""How a report tells which computation its VM was started for, and whose a TLS key is. Pure.

The computation's SHA-256 is in a field that the host sets before the guest's first instruction, and
that nobody can set later. Only the report's reader can tell what it means. Kata Containers binds
its guests in the same way.

Sources: AMD's SEV Secure Nested Paging Firmware ABI Specification (56860), "SNP_LAUNCH_FINISH",
HOST_DATA; Intel TDX Module Base Architecture Specification, "TD_PARAMS", MRCONFIGID.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Mapping

#: So that what is bound is not what somebody signs for another purpose.
_TLS_KEY = b"qmp-supervisor agent TLS key v1\0"
NONCE_BYTES = 64

#: Length of the field. SEV and SEV-ES have none.
_LENGTHS: Mapping[Technology | None, int] = {Technology.SEV_SNP: 32, Technology.TDX: 48}


def binds(technology: Technology | None) -> bool:
    """Whether a VM belongs to one computation from its start on."""
    return technology in _LENGTHS


def field(technology: Technology | None, computation: bytes) -> bytes:
    """The field's content, with zeros at its end; empty if there is no such field."""
    length = _LENGTHS.get(technology, 0)
    return hashlib.sha256(computation).digest().ljust(length, b"\0") if length else b""


def report_data(public_key: bytes, nonce: bytes) -> bytes:
    """What the report of a guest says whose agent has a TLS key of its own.

    The agent computes it, and signs nothing that its caller chooses. So only the guest that the
    report is of can be at the other end of a connection with this key.

    :param public_key: SubjectPublicKeyInfo, in DER
    :param nonce: the caller's, at most 64 bytes
    """
    return hashlib.sha512(_TLS_KEY + public_key + nonce.ljust(NONCE_BYTES, b"\0")).digest()
