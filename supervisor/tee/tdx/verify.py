"""Whether a quote says what its owner expects, and whether it is a TD's on a platform of Intel's.

Each field has a verdict of its own; see `supervisor.tee.checks`. Pure.

Source: Intel TDX DCAP Quoting Library API, "Quote Format"; Intel SGX ECDSA Quote Verification.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs

from supervisor.tee import certificate, ecdsa
from supervisor.tee.checks import Bits, Check, check, compare
from supervisor.tee.evidence import BadEvidence
from supervisor.tee.tdx import collateral, pck
from supervisor.tee.tdx.quote import Attribute

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from supervisor.tee.certificate import Certificate, RevocationList
    from supervisor.tee.tdx.collateral import QeIdentity, Signed, TcbInfo
    from supervisor.tee.tdx.quote import QeReport, Quote, TdReport

#: Intel's quoting enclave for TDX: who signed it, and which of that signer's it is.
_QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
_QE_PRODUCT = 2
#: Of an enclave's attributes: its memory can be read.
_QE_DEBUG = 0x02

#: Attributes that let somebody else into the TD, with what they do.
_OPEN: dict[int, str] = {
    Attribute.DEBUG: "the host may read and change the TD's memory and registers",
    Attribute.MIGRATABLE: "a migration TD, another one of the host, may take this one over",
}
_RTMRS = range(4)


@attrs.frozen(kw_only=True)
class Expected:
    """What an owner knows. None: he does not say, and the field is not compared.

    :param attributes: the attributes that the TD must have, bit for bit
    :param allowed: attributes that are let through though they open the TD
    :param allowed_tcb: words of Intel's for a TCB that are let through
    :param rtmr: by number
    """

    report_data: bytes | None = None
    mrtd: bytes | None = None
    mrconfigid: bytes | None = None
    mrowner: bytes | None = None
    mrownerconfig: bytes | None = None
    rtmr: Mapping[int, bytes] = attrs.field(factory=dict)
    attributes: int | None = None
    allowed: frozenset[Attribute] = frozenset()
    allowed_tcb: frozenset[str] = frozenset()


def verify(
    quote: Quote,
    expected: Expected,
    at: datetime,
    *,
    info: Signed[TcbInfo] | None = None,
    identity: Signed[QeIdentity] | None = None,
    revocations: Sequence[RevocationList] = (),
    root: Certificate | None = None,
) -> list[Check]:
    """All that can be said of a quote.

    :param at: when certificates and collateral must be valid
    :param revocations: lists of the authority of the PCK's certificate, and of the root
    :param root: Intel's, if not this package's
    :raises BadEvidence: if the quote's certificates cannot be read
    """
    given = certificate.load(quote.pck_chain)
    leaf, root = given[0], root or pck.root()
    signer = next((one for one in given[1:] if leaf.signed_by(one) and one.signed_by(root)), None)
    way = " < ".join(one.subject for one in (leaf, *([signer] if signer else []), root))
    checks = [check("certificate chain", way, signer is not None, why="no way to Intel's root")]
    of_documents: list[Certificate] = []
    for one in (info, identity):
        if one and one.signer not in of_documents:
            of_documents.append(one.signer)
    used = (leaf, signer, root, *of_documents)
    checks += [certificate.validity(each, at) for each in used if each]
    if signer:
        issued = [(signer, [leaf]), (root, [signer, *of_documents])]
        checks += [_revocation(found, issued, at) for found in revocations]
    checks += [*_keys(quote, leaf), _enclave(quote.qe), _module(quote.report)]
    platform = pck.Platform.of(leaf)
    checks += collateral.judge(
        quote.report,
        quote.qe,
        platform,
        info.document if info else None,
        identity.document if identity else None,
        at,
        expected.allowed_tcb,
    )
    return [*checks, *_attributes(quote.report, expected), *_guest(quote.report, expected)]


def _revocation(
    found: RevocationList, issued: Sequence[tuple[Certificate, list[Certificate]]], at: datetime
) -> Check:
    """:param issued: by each authority, what it has signed of what is used here"""
    authority, of = next((one for one in issued if found.signed_by(one[0])), issued[0])
    return certificate.revocation(found, of, authority, at)


def _keys(quote: Quote, leaf: Certificate) -> list[Check]:
    """PCK signs the quoting enclave's report, which names the key, which signs the quote."""
    of_platform = ecdsa.is_signed(quote.qe.content, quote.qe_signature, leaf.public_key, ecdsa.P256)
    named = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    of_enclave = quote.qe.report_data == named.ljust(64, b"\0")
    of_key = ecdsa.is_signed(quote.signed, quote.signature, quote.attestation_key, ecdsa.P256)
    why = "it was changed, or another key has signed it"
    return [
        check("signature of the enclave's report", f"by {leaf.subject}", of_platform, why=why),
        check("attestation key", "the enclave's", of_enclave, why="the enclave names another"),
        check("signature of the quote", "by the attestation key", of_key, why=why),
    ]


def _enclave(qe: QeReport) -> Check:
    ours = (qe.mrsigner, qe.isvprodid) == (_QE_SIGNER, _QE_PRODUCT)
    debug = bool(qe.attributes[0] & _QE_DEBUG)
    found = f"product {qe.isvprodid} of {qe.mrsigner.hex()}{', debug' if debug else ''}"
    expected = f"product {_QE_PRODUCT} of {_QE_SIGNER.hex()}"
    why = "not Intel's quoting enclave, or one whose memory can be read"
    return check("quoting enclave", found, ours and not debug, expected=expected, why=why)


def _module(report: TdReport) -> Check:
    good = not any(report.mrsignerseam) and not any(report.seamattributes)
    found = "Intel's" if good else report.mrsignerseam.hex()
    return check("TDX module", found, good, expected="MRSIGNERSEAM and SEAMATTRIBUTES of zeros")


def _attributes(report: TdReport, expected: Expected) -> list[Check]:
    bits = Bits(
        field="attributes",
        known=Attribute,
        opens=_OPEN,
        allowed=expected.allowed,
        expected=expected.attributes,
    )
    return bits.judge(report.attributes)


def _guest(report: TdReport, expected: Expected) -> list[Check]:
    """What was launched, for whom, and what it has measured since."""
    if unknown := set(expected.rtmr) - set(_RTMRS):
        raise BadEvidence(f"there is no RTMR {min(unknown)}")
    values: dict[str, tuple[bytes, bytes | None]] = {
        "MRTD": (report.mrtd, expected.mrtd),
        **{f"RTMR{number}": (report.rtmr[number], expected.rtmr.get(number)) for number in _RTMRS},
        "MRCONFIGID": (report.mrconfigid, expected.mrconfigid),
        "MROWNER": (report.mrowner, expected.mrowner),
        "MROWNERCONFIG": (report.mrownerconfig, expected.mrownerconfig),
        "REPORTDATA": (report.report_data, expected.report_data),
        "MRSEAM": (report.mrseam, None),
        "XFAM": (report.xfam, None),
        "MRSERVICETD": (report.mrservicetd, None),
    }
    return [
        compare(field, found.hex(), None if wanted is None else wanted.hex())
        for field, (found, wanted) in values.items()
    ]
