"""An attestation report, read into its fields. Nothing is believed here. Pure.

Source: AMD's SEV Secure Nested Paging Firmware ABI Specification (56860), "Attestation".
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

import attrs

from supervisor.tee.evidence import BadEvidence, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of a report, and of the part of it that the signature covers.
LENGTH, SIGNED = 0x4A0, 0x2A0
#: Those whose fields are at the places below.
VERSIONS = range(2, 6)

#: A number of the signature, little endian and longer than needed.
_NUMBER = 72
_ECDSA_P384_SHA384 = 1


class Product(enum.StrEnum):
    """AMD's names of the processors, which the certificates have too."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


#: Where the security versions are in a TCB's eight bytes.
_PARTS: dict[Product, Mapping[str, int]] = {
    Product.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")


class SigningKey(enum.IntEnum):
    """Which key has signed a report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class PolicyBit(enum.IntEnum):
    """The bits of a guest's policy. All others are reserved, and zero."""

    SMT = 16
    RESERVED_ONE = 17
    MIGRATE_MA = 18
    DEBUG = 19
    SINGLE_SOCKET = 20
    CXL_ALLOW = 21
    MEM_AES_256_XTS = 22
    RAPL_DIS = 23
    CIPHERTEXT_HIDING_DRAM = 24
    PAGE_SWAP_DISABLE = 25


@attrs.frozen
class Report:
    """The fields, by AMD's names. Numbers are unsigned.

    :param reported_tcb: eight bytes; see `security_versions`
    :param cpuid: family, model and stepping; None before version 3
    :param signature: r and s
    """

    version: int
    policy: int
    vmpl: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    chip_id: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    signed: bytes = attrs.field(repr=False)
    signature: tuple[int, int] = attrs.field(repr=False)

    @property
    def signing_key(self) -> SigningKey | None:
        """None if it is a kind that is not known."""
        number = self.key_info >> 2 & 7
        return SigningKey(number) if number in set(SigningKey) else None

    @property
    def product(self) -> Product | None:
        """What the processor says it is; None if it says nothing, or is not known."""
        family, model, _ = self.cpuid or (0, 0, 0)
        if family == 0x1A:
            return Product.TURIN if model <= 0x11 else None
        if family != 0x19:
            return None
        if model <= 0x0F:
            return Product.MILAN
        return Product.GENOA if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF else None


def security_versions(tcb: bytes, product: Product) -> dict[str, int]:
    """A TCB's parts, by their names in `TCB_PARTS`."""
    return {name: tcb[at] for name, at in _PARTS[product].items()}


def decode(content: bytes) -> Report:
    """Read a report.

    :raises BadEvidence: if it is too short or too long
    :raises Unsupported: if its version or its signature's algorithm is not known
    """
    if len(content) != LENGTH:
        raise BadEvidence(f"not an attestation report: it has {len(content)} bytes, not {LENGTH}")
    version, _guest_svn, policy = struct.unpack_from("<IIQ", content)
    if version not in VERSIONS:
        known = f"{VERSIONS[0]} to {VERSIONS[-1]}"
        raise Unsupported(f"the report has version {version}; versions {known} are known")
    vmpl, algorithm = struct.unpack_from("<II", content, 0x30)
    if algorithm != _ECDSA_P384_SHA384:
        raise Unsupported(f"the report is signed by algorithm {algorithm}; only 1, ECDSA, is known")
    r, s = (content[at : at + _NUMBER] for at in (SIGNED, SIGNED + _NUMBER))
    return Report(
        version=version,
        policy=policy,
        vmpl=vmpl,
        key_info=struct.unpack_from("<I", content, 0x48)[0],
        report_data=content[0x50:0x90],
        measurement=content[0x90:0xC0],
        host_data=content[0xC0:0xE0],
        id_key_digest=content[0xE0:0x110],
        author_key_digest=content[0x110:0x140],
        chip_id=content[0x1A0:0x1E0],
        reported_tcb=content[0x180:0x188],
        cpuid=(content[0x188], content[0x189], content[0x18A]) if version >= 3 else None,
        signed=content[:SIGNED],
        signature=(int.from_bytes(r, "little"), int.from_bytes(s, "little")),
    )
