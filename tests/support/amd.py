"""Stands in for AMD: a root, a signer, chips' keys, and the reports that these sign."""

from __future__ import annotations

import functools
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from supervisor.tee import certificate
from supervisor.tee.snp.endorsement import Roots
from supervisor.tee.snp.report import LENGTH, SIGNED, Product

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.tee.certificate import Certificate

#: When all that is made here is valid.
NOW = datetime(2026, 6, 1, tzinfo=UTC)
_YEAR = timedelta(days=365)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
_OID = "1.3.6.1.4.1.3704.1."
CHIP_ID = bytes(range(64))
#: What a report says unless told otherwise.
FIELDS: dict[str, Any] = {
    "version": 5,
    "policy": 0x30000,
    "vmpl": 0,
    "key_info": 0,
    "chip_id": CHIP_ID,
    "tcb": bytes([3, 0, 0, 0, 0, 0, 8, 115]),
    "cpuid": (0x19, 0x01, 1),
}
TCB = {"3.1": 3, "3.2": 0, "3.3": 8, "3.8": 115}


@attrs.frozen
class Amd:
    """:ivar chain: the ASK and the ARK, in PEM"""

    product: Product
    roots: Roots
    chain: bytes
    _ark: Any
    _ask: Any

    def vcek(
        self,
        *,
        subject: str = "SEV-VCEK",
        product: str = "Milan-B0",
        chip_id: bytes | None = CHIP_ID,
        tcb: Mapping[str, int] = TCB,
    ) -> Chip:
        """A chip whose certificate says this."""
        key = ec.generate_private_key(ec.SECP384R1())
        extensions = {f"{_OID}2": b"\x16" + bytes([len(product)]) + product.encode()}
        extensions |= {f"{_OID}{oid}": _integer(value) for oid, value in tcb.items()}
        if chip_id is not None:
            extensions[f"{_OID}4"] = chip_id
        der = _certificate(subject, key, f"SEV-{self.product}", self._ask, extensions)
        return Chip(der, certificate.load(der)[0], key)

    def revocations(self, *serials: int, until: datetime = NOW + _YEAR) -> bytes:
        """A list of what is revoked, in DER."""
        built = x509.CertificateRevocationListBuilder(
            _name(f"ARK-{self.product}"), NOW - _YEAR, until
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, NOW - _YEAR).build()
            built = built.add_revoked_certificate(revoked)
        signed = built.sign(self._ark, hashes.SHA384(), rsa_padding=_PSS)
        return signed.public_bytes(Encoding.DER)


@attrs.frozen
class Chip:
    """A processor that signs reports."""

    der: bytes
    leaf: Certificate
    _key: ec.EllipticCurvePrivateKey

    def report(self, **fields: Any) -> bytes:
        """A report, signed; the fields are those of `FIELDS` and of `Report`."""
        known = FIELDS | fields
        made = bytearray(LENGTH)
        struct.pack_into("<IIQ", made, 0, known["version"], 0, known["policy"])
        struct.pack_into("<II", made, 0x30, known["vmpl"], 1)
        struct.pack_into("<I", made, 0x48, known["key_info"])
        for at, name in ((0x50, "report_data"), (0x90, "measurement"), (0xC0, "host_data")):
            value = known.get(name, b"")
            made[at : at + len(value)] = value
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            made[at : at + 8] = known["tcb"]
        made[0x188:0x18B] = bytes(known["cpuid"])
        made[0x1A0:0x1E0] = known["chip_id"]
        signature = self._key.sign(bytes(made[:SIGNED]), ec.ECDSA(hashes.SHA384()))
        for at, number in zip((SIGNED, SIGNED + 72), decode_dss_signature(signature), strict=True):
            made[at : at + 72] = number.to_bytes(72, "little")
        return bytes(made)


@functools.cache
def amd(product: Product = Product.MILAN) -> Amd:
    """The same root each time: to make one takes a while."""
    ark, ask = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    root, signer = f"ARK-{product}", f"SEV-{product}"
    made = _certificate(signer, ask, root, ark, serial=77), _certificate(root, ark, root, ark)
    loaded = [certificate.load(der)[0] for der in made]
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in made)
    return Amd(product, Roots(product, loaded[1], (loaded[0],)), pem, ark, ask)


def _certificate(
    subject: str,
    key: Any,
    issuer: str,
    issuer_key: Any,
    extensions: Mapping[str, bytes] | None = None,
    serial: int = 1,
) -> bytes:
    built = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - _YEAR)
        .not_valid_after(NOW + _YEAR)
    )
    for oid, value in (extensions or {}).items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        built = built.add_extension(extension, critical=False)
    signed = built.sign(issuer_key, hashes.SHA384(), rsa_padding=_PSS)
    return signed.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _integer(value: int) -> bytes:
    """In DER."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes([2, len(content)]) + content
