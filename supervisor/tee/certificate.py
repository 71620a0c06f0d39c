"""X.509 certificates as AMD and Intel make them. Pure.

AMD's VCEKs have the serial number 0. RFC 5280 forbids it, and later releases of ``cryptography``
will not load them. So asn1crypto reads the certificates, and cryptography checks signatures.

Source: RFC 5280, RFC 4055 (RSASSA-PSS).
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs
from asn1crypto import core, crl, pem, x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from supervisor.tee.checks import Check, check
from supervisor.tee.evidence import BadEvidence, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Of a common name: RFC 5280, ub-common-name.
_NAME_CHARACTERS = 64

#: Of AMD's reports: files are easily swapped.
_REPORT_BYTES = 0x4A0

#: What asn1crypto raises of bytes that are no certificate.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@attrs.frozen
class Certificate:
    """One certificate, read.

    :param subject: its common name, as of its issuer; empty if there is none that can be shown
    :param public_key: SubjectPublicKeyInfo, in DER
    :param extensions: the values, in DER, by object identifier in dots
    """

    subject: str
    issuer: str
    serial: int
    begins_at: datetime
    ends_at: datetime
    public_key: bytes
    extensions: Mapping[str, bytes]
    _der: bytes = attrs.field(repr=False)
    _signed: bytes = attrs.field(repr=False)
    _signature: bytes = attrs.field(repr=False)
    _algorithm: str = attrs.field(repr=False)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the whole certificate, in DER."""
        return hashlib.sha256(self._der).digest()

    def signed_by(self, issuer: Certificate) -> bool:
        """Whether the issuer's key made this certificate's signature."""
        return signed_by(issuer.public_key, self._signed, self._signature, self._algorithm)

    def integer(self, oid: str) -> int | None:
        """An extension's value; None if it is not there or no integer of a byte."""
        value = self._native(oid)
        return value if isinstance(value, int) and value in range(256) else None

    def text(self, oid: str) -> str:
        """An extension's value; empty if it is not there or no string that can be shown."""
        return _shown(self._native(oid))

    def _native(self, oid: str) -> object:
        try:
            return core.load(self.extensions[oid], strict=True).native
        except MALFORMED:
            return None


def signed_by(public_key: bytes, signed: bytes, signature: bytes, algorithm: str) -> bool:
    """Whether a key made a signature, by AMD's or Intel's only way for certificates and lists.

    :param public_key: SubjectPublicKeyInfo, in DER
    :param algorithm: asn1crypto's name
    """
    try:
        key = load_der_public_key(public_key)
        if algorithm == "rsassa_pss" and isinstance(key, rsa.RSAPublicKey):
            scheme = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
            key.verify(signature, signed, scheme, hashes.SHA384())
        elif algorithm == "sha256_ecdsa" and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def load(content: bytes) -> list[Certificate]:
    """The certificates of a file: one in DER, or any number in PEM.

    :raises BadEvidence: if there is none, or one cannot be read
    """
    content = decoded(content)
    if len(content) == _REPORT_BYTES and content[:1] != b"\x30":
        raise BadEvidence("this is an attestation report, and no certificate")
    try:
        if pem.detect(content):
            parts = [der for _, _, der in pem.unarmor(content, multiple=True)]
        else:
            parts = [content]
        return [_read(x509.Certificate.load(der, strict=True)) for der in parts]
    except MALFORMED as error:
        raise BadEvidence(f"not a certificate in DER or PEM: {error}") from error


def load_one(content: bytes) -> Certificate:
    """The certificate of a file, where others beside it would be in nobody's mind.

    :raises BadEvidence: if there is none, or more than one, or it cannot be read
    """
    found = load(content)
    if len(found) != 1:
        raise BadEvidence(f"there are {len(found)} certificates, and one is meant")
    return found[0]


def _read(parsed: Any) -> Certificate:
    inner = parsed["tbs_certificate"]
    if inner["signature"].dump() != parsed["signature_algorithm"].dump():
        raise ValueError("it names two algorithms of its signature")  # only one is signed
    return Certificate(
        subject=_common_name(parsed.subject),
        issuer=_common_name(parsed.issuer),
        serial=parsed.serial_number,
        begins_at=_moment(parsed.not_valid_before),
        ends_at=_moment(parsed.not_valid_after),
        public_key=parsed.public_key.dump(),
        extensions={
            one["extn_id"].dotted: bytes(one["extn_value"].contents) for one in inner["extensions"]
        },
        der=parsed.dump(),
        signed=inner.dump(),
        signature=parsed.signature,
        algorithm=parsed["signature_algorithm"]["algorithm"].native,
    )


def _common_name(name: Any) -> str:
    return _shown(name.native.get("common_name"))


def _shown(value: object) -> str:
    """A name that is one line without control characters; else empty. Anybody may have made it."""
    fits = isinstance(value, str) and value.isprintable() and len(value) <= _NAME_CHARACTERS
    return str(value) if fits else ""


def _moment(value: object) -> datetime:
    """A time that can be compared and shown. asn1crypto has others, such as of the year 0.

    :raises ValueError: if it is none
    """
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("not a time")
    return value


def validity(found: Certificate, at: datetime) -> Check:
    """Whether a certificate is valid at this time."""
    begins, ends = (f"{one:%Y-%m-%d}" for one in (found.begins_at, found.ends_at))
    return check(
        f"validity of {found.subject}",
        f"{begins} to {ends}",
        found.begins_at <= at <= found.ends_at,
        expected=f"a time that {at:%Y-%m-%d} is in",
        why="expired" if at > found.ends_at else "not valid yet",
    )


@attrs.frozen
class RevocationList:
    """An authority's list of certificates that are no longer to be believed, read.

    :param revoked: serial numbers
    :param until: when a newer one is due; None if it does not say
    """

    revoked: frozenset[int]
    until: datetime | None
    _signed: bytes = attrs.field(repr=False)
    _signature: bytes = attrs.field(repr=False)
    _algorithm: str = attrs.field(repr=False)

    def signed_by(self, authority: Certificate) -> bool:
        """Whether the authority's key made this list's signature."""
        return signed_by(authority.public_key, self._signed, self._signature, self._algorithm)


def load_list(content: bytes) -> RevocationList:
    """The revocation list of a file, in DER or PEM.

    :raises BadEvidence: if it is not one
    """
    content = decoded(content)
    try:
        parsed = crl.CertificateList.load(
            pem.unarmor(content)[2] if pem.detect(content) else content, strict=True
        )
        inner = parsed["tbs_cert_list"]
        until = inner["next_update"].native
        return RevocationList(
            revoked=frozenset(
                one["user_certificate"].native for one in inner["revoked_certificates"]
            ),
            until=None if until is None else _moment(until),
            signed=inner.dump(),
            signature=parsed.signature,
            algorithm=parsed["signature_algorithm"]["algorithm"].native,
        )
    except MALFORMED as error:
        raise BadEvidence(f"not a revocation list in DER or PEM: {error}") from error


def revocation(
    found: RevocationList, of: Iterable[Certificate], authority: Certificate, at: datetime
) -> Check:
    """Whether an authority's list says that one of its certificates is no longer to be believed."""
    field = "revocation list"
    if not found.signed_by(authority):
        return check(
            field, "somebody else's", good=False, expected=f"signed by {authority.subject}"
        )
    if found.until is not None and at > found.until:
        until = f"valid until {found.until:%Y-%m-%d}"
        return check(field, until, good=False, why="fetch a new one")
    # Every VCEK has the number 0.
    bad = [one.subject for one in of if one.serial and one.serial in found.revoked]
    says = f"revokes {', '.join(bad)}" if bad else "revokes none of these"
    return check(field, f"of {authority.subject}: {says}", not bad)
