"""How a report tells which computation its VM was started for. Pure.

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

#: Length of the field. SEV and SEV-ES have none.
_LENGTHS: Mapping[Technology | None, int] = {Technology.SEV_SNP: 32, Technology.TDX: 48}


def binds(technology: Technology | None) -> bool:
    """Whether a VM belongs to one computation from its start on."""
    return technology in _LENGTHS


def field(technology: Technology | None, computation: bytes) -> bytes:
    """The field's content, with zeros at its end; empty if there is no such field."""
    length = _LENGTHS.get(technology, 0)
    return hashlib.sha256(computation).digest().ljust(length, b"\0") if length else b""
