"""The certificates that a host has for its guests, as a guest gets them behind its report. Pure.

Nothing is believed here: the host wrote it.

Source: AMD's SEV-ES Guest-Hypervisor Communication Block Standardization (56421), "SNP Extended
Guest Request".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING
from uuid import UUID

from supervisor.tee import certificate
from supervisor.tee.evidence import BadEvidence
from supervisor.tee.snp.report import LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.tee.certificate import Certificate

#: Kinds of certificates by their GUIDs. Those that this package has anyway are left out.
_KINDS = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
}
#: A GUID, the place of its certificate and the certificate's length.
_ENTRY = struct.Struct("<16sII")


def split(evidence: bytes) -> tuple[bytes, Mapping[str, bytes]]:
    """A report, and by its kind each certificate that may have signed it.

    :raises BadEvidence: if what is behind the report is no table
    """
    report, table = evidence[:LENGTH], evidence[LENGTH:]
    found: dict[str, bytes] = {}
    if not any(table):
        return report, found
    for start in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, at, length = _ENTRY.unpack_from(table, start)
        if not any(guid):
            return report, found
        if at + length > len(table):
            break
        # Hosts write GUIDs as they are read; some programs take them for Microsoft's.
        kind = _KINDS.get(UUID(bytes=guid)) or _KINDS.get(UUID(bytes_le=guid))
        if kind and length:
            found[kind] = table[at : at + length]
    raise BadEvidence(
        f"not an attestation report: it has {len(evidence)} bytes, and what is behind the first"
        f" {LENGTH} is no table of certificates"
    )


def leaf(table: Mapping[str, bytes]) -> Certificate:
    """The certificate of the key that signed the report, as far as the host says.

    :raises BadEvidence: if there is none, or it cannot be read
    """
    for content in table.values():
        return certificate.load(content)[0]
    raise BadEvidence(
        "the certificate of the key that signed is not with the report: say --leaf;"
        " 'qmp-supervisor fetch-certs' prints where AMD has it"
    )
