"""Stands in for Intel: a root, a platform's key, its quoting enclave, and documents on them."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from supervisor.tee import certificate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from supervisor.tee.certificate import Certificate

#: When all that is made here is valid.
NOW = datetime(2026, 6, 1, tzinfo=UTC)
_YEAR = timedelta(days=365)
PLATFORM_OID = "1.2.840.113741.1.13.1"
SVNS = (5, 5, 13, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0)
PCESVN = 11
FMSPC = bytes.fromhex("50806f000000")
QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
#: The versions of a TDX module of 1.5; the first two have a list of their own.
TEE_TCB_SVN = bytes([5, 1, 2, *[0] * 13])
#: What a TD's report says unless told otherwise; all else is zero.
FIELDS: dict[str, Any] = {"tee_tcb_svn": TEE_TCB_SVN, "attributes": 1 << 28}
#: Where a TD's report has its fields.
_AT = {
    "tee_tcb_svn": 0, "mrseam": 16, "mrsignerseam": 64, "seamattributes": 112, "xfam": 128,
    "mrtd": 136, "mrconfigid": 184, "mrowner": 232, "mrownerconfig": 280, "rtmr0": 328,
    "rtmr1": 376, "rtmr2": 424, "rtmr3": 472, "report_data": 520, "mrservicetd": 600,
}  # fmt: skip
#: What a quoting enclave's report says.
ENCLAVE: dict[str, Any] = {
    "attributes": b"\x15" + bytes(7) + b"\xe7" + bytes(7),
    "mrsigner": QE_SIGNER,
    "isvprodid": 2,
    "isvsvn": 6,
}


@attrs.frozen
class Intel:
    """:ivar signing: the certificate of the documents"""

    root: Certificate
    signing: Certificate
    _root_key: ec.EllipticCurvePrivateKey
    _signing_key: ec.EllipticCurvePrivateKey
    _platform_key: ec.EllipticCurvePrivateKey
    _platform_der: bytes

    def quote(
        self,
        *,
        version: int = 5,
        enclave: Mapping[str, Any] = ENCLAVE,
        auth_data: bytes = b"auth",
        serial: int = 5,
        platform: bytes | None = None,
        **fields: Any,
    ) -> bytes:
        """A quote; the fields are those of `FIELDS` and of a TD's report.

        :param platform: what the PCK's certificate says; see `platform_extension`
        """
        known = FIELDS | fields
        report = bytearray(648 if version == 5 else 584)
        struct.pack_into("<Q", report, 120, known.pop("attributes"))
        for name, value in known.items():
            report[_AT[name] : _AT[name] + len(value)] = value
        signed = struct.pack("<HHI", version, 2, 0x81) + bytes(40)
        if version == 5:
            signed += struct.pack("<HI", 3, len(report))
        signed += bytes(report)
        key, pck = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        named = hashlib.sha256(point + auth_data).digest().ljust(64, b"\0")
        qe = _qe_report({**enclave, "report_data": enclave.get("report_data", named)})
        leaf = self._pck(pck, serial, platform or platform_extension())
        chain = b"".join(_pem(der) for der in (leaf, self._platform_der)) + b"\0"
        certified = qe + _sign(pck, qe) + struct.pack("<H", len(auth_data)) + auth_data
        certified += struct.pack("<HI", 5, len(chain)) + chain
        body = _sign(key, signed) + point + struct.pack("<HI", 6, len(certified)) + certified
        return signed + struct.pack("<I", len(body)) + body

    def _pck(self, key: ec.EllipticCurvePrivateKey, serial: int, platform: bytes) -> bytes:
        return _certificate("Intel SGX PCK Certificate", key, "Intel SGX PCK Platform CA",
                            self._platform_key, serial, {PLATFORM_OID: platform})  # fmt: skip

    def tcb_info(self, *, statuses: Mapping[str, str] | None = None, **members: Any) -> bytes:
        """:param statuses: of the platform and of the module"""
        says = {"platform": "UpToDate", "module": "UpToDate"} | dict(statuses or {})
        level: dict[str, Any] = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in SVNS],
                "pcesvn": PCESVN,
                "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
            },
            "tcbDate": "2026-01-01T00:00:00Z",
            "tcbStatus": says["platform"],
            "advisoryIDs": ["INTEL-SA-00001"],
        }
        old = {"tcb": {**level["tcb"], "pcesvn": 0, "sgxtcbcomponents": [{"svn": 0}] * 16,
                       "tdxtcbcomponents": [{"svn": 0}] * 16},
               "tcbStatus": "OutOfDate"}  # fmt: skip
        module = {"id": "TDX_01", "tcbLevels": [
            {"tcb": {"isvsvn": TEE_TCB_SVN[0]}, "tcbStatus": says["module"]},
            {"tcb": {"isvsvn": 2}, "tcbStatus": "OutOfDate"},
        ]}  # fmt: skip
        return self.document("tcbInfo", {
            "id": "TDX", "version": 3, "issueDate": f"{NOW - timedelta(days=9):%FT%TZ}",
            "nextUpdate": f"{NOW + timedelta(days=20):%FT%TZ}", "fmspc": FMSPC.hex(),
            "pceId": "0000", "tcbType": 0, "tdxModuleIdentities": [module],
            "tcbLevels": [level, old], **members,
        })  # fmt: skip

    def qe_identity(self, *, status: str = "UpToDate", **members: Any) -> bytes:
        return self.document("enclaveIdentity", {
            "id": "TD_QE", "version": 2, "issueDate": f"{NOW - timedelta(days=9):%FT%TZ}",
            "nextUpdate": f"{NOW + timedelta(days=20):%FT%TZ}",
            "miscselect": "00000000", "miscselectMask": "ffffffff",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "fbffffffffffffff0000000000000000",
            "mrsigner": QE_SIGNER.hex().upper(), "isvprodid": 2,
            "tcbLevels": [{"tcb": {"isvsvn": 6}, "tcbStatus": status},
                          {"tcb": {"isvsvn": 4}, "tcbStatus": "OutOfDate"}], **members,
        })  # fmt: skip

    def document(self, name: str, value: Any, *, spaces: str = "") -> bytes:
        """Signed as Intel signs: the text of the value, to the letter."""
        text = json.dumps(value, separators=(",", ":"))
        signature = _sign(self._signing_key, text.encode()).hex()
        return f'{{{spaces}"{name}":{spaces}{text},"signature":"{signature}"}}'.encode()

    def revocations(self, *serials: int, by_root: bool = False) -> bytes:
        """Of the platform authority; or of the root, which numbers its certificates from 1 on."""
        name = "Intel SGX Root CA" if by_root else "Intel SGX PCK Platform CA"
        built = x509.CertificateRevocationListBuilder(_name(name), NOW - _YEAR, NOW + _YEAR)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, NOW - _YEAR).build()
            built = built.add_revoked_certificate(revoked)
        key = self._root_key if by_root else self._platform_key
        return built.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def platform_extension(
    svns: Iterable[int] = SVNS,
    pcesvn: int = PCESVN,
    pce_id: bytes = bytes(2),
    fmspc: bytes = FMSPC,
) -> bytes:
    """What the certificate of a PCK says of its platform, in DER."""
    tcb = [(f"2.{n}", core.Integer(svn)) for n, svn in enumerate((*svns, pcesvn), 1)]
    return _sequence(
        _pair("2", _sequence(*(_pair(oid, value.dump()) for oid, value in tcb))),
        _pair("3", core.OctetString(pce_id).dump()),
        _pair("4", core.OctetString(fmspc).dump()),
    )


@functools.cache
def intel() -> Intel:
    root, signing, platform = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    name = "Intel SGX Root CA"
    made = [
        _certificate(subject, key, name, root, serial)
        for serial, (subject, key) in enumerate(
            ((name, root), ("Intel SGX TCB Signing", signing),
             ("Intel SGX PCK Platform CA", platform)), 1)
    ]  # fmt: skip
    loaded = [certificate.load(der)[0] for der in made]
    return Intel(loaded[0], loaded[1], root, signing, platform, made[2])


def _qe_report(fields: Mapping[str, Any]) -> bytes:
    made = bytearray(384)
    made[48:64] = fields["attributes"]
    made[128:160] = fields["mrsigner"]
    struct.pack_into("<HH", made, 256, fields["isvprodid"], fields["isvsvn"])
    made[320:384] = fields["report_data"]
    return bytes(made)


def _sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    serial: int,
    extensions: Mapping[str, bytes] | None = None,
) -> bytes:
    built = x509.CertificateBuilder(
        _name(issuer), _name(subject), key.public_key(), serial, NOW - _YEAR, NOW + _YEAR
    )
    for oid, value in (extensions or {}).items():
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        built = built.add_extension(extension, critical=False)
    return built.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def _pair(oid: str, value: bytes) -> bytes:
    return _sequence(core.ObjectIdentifier(f"{PLATFORM_OID}.{oid}").dump(), value)


def _sequence(*parts: bytes) -> bytes:
    """In DER."""
    content = b"".join(parts)
    length = len(content)
    head = bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2, "big")
    return b"\x30" + head + content
