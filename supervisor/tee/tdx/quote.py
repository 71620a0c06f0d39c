"""A quote, read into its fields. Nothing is believed here. Pure.

Source: Intel TDX DCAP Quoting Library API, "Quote Format"; Intel TDX Module Base Architecture
Specification, "TD Attributes".
"""

from __future__ import annotations

import enum
import struct

import attrs

from supervisor.tee.evidence import BadEvidence, Unsupported

_HEADER = 48
_ECDSA_P256 = 2
_TEE_TDX = 0x81
#: Lengths of a TD's report, by the number of its kind: of TDX 1.0 and of TDX 1.5.
_BODIES = {2: 584, 3: 648}
_QE_REPORT = 384
_CERTIFIED_QE, _PCK_CHAIN = 6, 5
_NUMBER = 32


def is_one(content: bytes) -> bool:
    """Whether it looks like a quote of TDX, of any version."""
    return len(content) > _HEADER and struct.unpack_from("<I", content, 4)[0] == _TEE_TDX


class Attribute(enum.IntEnum):
    """The bits of a TD's attributes. All others are reserved, and zero."""

    DEBUG = 0
    SEPT_VE_DISABLE = 28
    MIGRATABLE = 29
    PKS = 30
    KL = 31
    PERFMON = 63


@attrs.frozen
class TdReport:
    """What a TD is, by Intel's names.

    :param tee_tcb_svn: the security versions of the TDX module
    :param rtmr: what the TD has measured itself
    :param mrservicetd: the service TDs that it lets in; empty before TDX 1.5
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seamattributes: bytes
    attributes: int
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    mrservicetd: bytes


@attrs.frozen
class QeReport:
    """The report of the enclave that has made the quote, by Intel's names.

    :param content: all of it, which its signature covers
    """

    miscselect: int
    attributes: bytes
    mrsigner: bytes
    isvprodid: int
    isvsvn: int
    report_data: bytes
    content: bytes = attrs.field(repr=False)


@attrs.frozen
class Quote:
    """:param signed: what the attestation key has signed
    :param signature: and the others: r and s, big endian
    :param attestation_key: x and y
    :param pck_chain: certificates in PEM, the leaf first
    """

    version: int
    report: TdReport
    signed: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False)
    attestation_key: bytes = attrs.field(repr=False)
    qe: QeReport
    qe_signature: bytes = attrs.field(repr=False)
    qe_auth_data: bytes = attrs.field(repr=False)
    pck_chain: bytes = attrs.field(repr=False)


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, length: int) -> bytes:
        found = self.content[self.at : self.at + length]
        if len(found) != length:
            raise BadEvidence(f"the quote ends after {len(self.content)} bytes, in a field")
        self.at += length
        return found

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]
        return value

    def rest(self) -> bytes:
        return self.content[self.at :]


def decode(content: bytes) -> Quote:
    """Read a quote. What follows it, such as the zeros of a buffer, is left.

    :raises BadEvidence: if it is too short
    :raises Unsupported: if it is of another version, of SGX, or signed in another way
    """
    reader = _Reader(content)
    version, key_type, tee = (reader.number(form) for form in "HHI")
    if version not in (4, 5):
        raise Unsupported(f"the quote has version {version}; versions 4 and 5 are known")
    if tee != _TEE_TDX:
        raise Unsupported(f"the quote is of TEE type {tee:#x}, not of TDX, {_TEE_TDX:#x}")
    if key_type != _ECDSA_P256:
        raise Unsupported(
            f"the quote is signed by a key of type {key_type}; only 2, P-256, is known"
        )
    reader.take(_HEADER - reader.at)
    kind, length = 2, _BODIES[2]
    if version == 5:
        kind, length = reader.number("H"), reader.number("I")
    if _BODIES.get(kind) != length:
        raise Unsupported(
            f"the quote's body is of kind {kind} with {length} bytes, which is unknown"
        )
    report = _td_report(reader.take(length))
    signed = content[: reader.at]
    return _signed(version, report, signed, _Reader(reader.take(reader.number("I"))))


def _signed(version: int, report: TdReport, signed: bytes, reader: _Reader) -> Quote:
    signature, key = reader.take(2 * _NUMBER), reader.take(2 * _NUMBER)
    certified = _certification(reader, _CERTIFIED_QE)
    qe_report, qe_signature = certified.take(_QE_REPORT), certified.take(2 * _NUMBER)
    auth_data = certified.take(certified.number("H"))
    return Quote(
        version=version,
        report=report,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe=_qe_report(qe_report),
        qe_signature=qe_signature,
        qe_auth_data=auth_data,
        # The text of a C string.
        pck_chain=_certification(certified, _PCK_CHAIN).rest().rstrip(b"\0"),
    )


def _certification(reader: _Reader, wanted: int) -> _Reader:
    kind, length = reader.number("H"), reader.number("I")
    if kind != wanted:
        raise Unsupported(f"the quote has certification data of type {kind}, not {wanted}")
    return _Reader(reader.take(length))


def _td_report(content: bytes) -> TdReport:
    reader = _Reader(content)
    return TdReport(
        tee_tcb_svn=reader.take(16),
        mrseam=reader.take(48),
        mrsignerseam=reader.take(48),
        seamattributes=reader.take(8),
        attributes=reader.number("Q"),
        xfam=reader.take(8),
        mrtd=reader.take(48),
        mrconfigid=reader.take(48),
        mrowner=reader.take(48),
        mrownerconfig=reader.take(48),
        rtmr=(reader.take(48), reader.take(48), reader.take(48), reader.take(48)),
        report_data=reader.take(64),
        # Behind the TCB that the TDX module has after an update.
        mrservicetd=reader.rest()[16:],
    )


def _qe_report(content: bytes) -> QeReport:
    isvprodid, isvsvn = struct.unpack_from("<HH", content, 256)
    return QeReport(
        miscselect=struct.unpack_from("<I", content, 16)[0],
        attributes=content[48:64],
        mrsigner=content[128:160],
        isvprodid=isvprodid,
        isvsvn=isvsvn,
        report_data=content[320:384],
        content=content,
    )
