"""Intel's word on a platform: is its firmware, its TDX module and its quoting enclave of today?

Two documents that Intel signs: the TCB info of a kind of platform, and the identity of the quoting
enclave. Pure.

Source: Intel's API of the Provisioning Certification Service for TDX, version 4; "Determining TCB
Status".
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import cattrs

from supervisor.tee import ecdsa
from supervisor.tee.checks import Check, Verdict, check
from supervisor.tee.evidence import BadEvidence, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from supervisor.tee.certificate import Certificate
    from supervisor.tee.tdx.pck import Platform
    from supervisor.tee.tdx.quote import QeReport, TdReport

D = TypeVar("D")

#: Of all, the best.
UP_TO_DATE = "UpToDate"
#: Genuine, with something that the operator has still to do.
NEEDS_MORE = frozenset(
    {"SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"}
)
OUT_OF_DATE = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})
REVOKED = "Revoked"
#: What an owner can let pass.
ALLOWABLE = (*sorted(NEEDS_MORE), *sorted(OUT_OF_DATE))

_FIRST_MEMBER = re.compile(r'\s*\{\s*"(\w+)"\s*:\s*')


def _bits(number: int) -> Any:
    """A validator of an unsigned number."""
    return attrs.validators.and_(attrs.validators.ge(0), attrs.validators.lt(1 << number))


@attrs.frozen
class _Svn:
    svn: int = attrs.field(validator=_bits(8))


@attrs.frozen
class _Tcb:
    sgxtcbcomponents: tuple[_Svn, ...] = ()
    tdxtcbcomponents: tuple[_Svn, ...] = ()
    pcesvn: int = attrs.field(default=0, validator=_bits(16))
    isvsvn: int = attrs.field(default=0, validator=_bits(16))


@attrs.frozen
class _Level:
    tcb: _Tcb
    tcbStatus: str  # noqa: N815 - Intel's names
    advisoryIDs: tuple[str, ...] = ()  # noqa: N815


@attrs.frozen
class _ModuleIdentity:
    id: str
    tcbLevels: tuple[_Level, ...]  # noqa: N815


@attrs.frozen
class TcbInfo:
    """What Intel says of all platforms with one FMSPC. The names are Intel's."""

    id: str
    version: int
    issueDate: datetime  # noqa: N815
    nextUpdate: datetime  # noqa: N815
    fmspc: bytes
    pceId: bytes  # noqa: N815
    tcbLevels: tuple[_Level, ...]  # noqa: N815
    tdxModuleIdentities: tuple[_ModuleIdentity, ...] = ()  # noqa: N815


@attrs.frozen
class QeIdentity:
    """What Intel says of its quoting enclave for TDX. The names are Intel's."""

    id: str
    version: int
    issueDate: datetime  # noqa: N815
    nextUpdate: datetime  # noqa: N815
    miscselect: bytes
    miscselectMask: bytes  # noqa: N815
    attributes: bytes
    attributesMask: bytes  # noqa: N815
    mrsigner: bytes
    isvprodid: int = attrs.field(validator=_bits(16))
    tcbLevels: tuple[_Level, ...]  # noqa: N815


@attrs.frozen
class Signed(Generic[D]):
    """One of these documents, and the certificate of the key that signed it."""

    document: D
    signer: Certificate


_converter = cattrs.Converter()
_converter.register_structure_hook(bytes, lambda text, _: bytes.fromhex(text))
_converter.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text))


def tcb_info(content: bytes, signers: Iterable[Certificate], root: Certificate) -> Signed[TcbInfo]:
    """:raises BadEvidence: if it cannot be read, or Intel has not signed it
    :raises Unsupported: if it is of another version, or not of TDX
    """
    signed: Signed[TcbInfo] = _read(content, "tcbInfo", TcbInfo, signers, root)
    found = signed.document
    if (found.id, found.version) != ("TDX", 3):
        raise Unsupported(f"the TCB info is of {found.id}, version {found.version}, not TDX, 3")
    return signed


def qe_identity(
    content: bytes, signers: Iterable[Certificate], root: Certificate
) -> Signed[QeIdentity]:
    """:raises BadEvidence: if it cannot be read, or Intel has not signed it
    :raises Unsupported: if it is of another version, or of another enclave
    """
    signed: Signed[QeIdentity] = _read(content, "enclaveIdentity", QeIdentity, signers, root)
    found = signed.document
    if (found.id, found.version) != ("TD_QE", 2):
        raise Unsupported(f"the identity is of {found.id}, version {found.version}, not TD_QE, 2")
    return signed


def _read(
    content: bytes, member: str, kind: type[D], signers: Iterable[Certificate], root: Certificate
) -> Signed[D]:
    """The member's value, if its text, to the letter, has a signature that leads to the root."""
    try:
        text = content.decode()
        document = json.loads(text)
        begin = _FIRST_MEMBER.match(text)
        if begin is None or begin[1] != member:
            raise BadEvidence(f"not a document of Intel that begins with {member}")
        value, end = json.JSONDecoder().raw_decode(text, begin.end())
        signature = bytes.fromhex(document["signature"])
        found = _converter.structure(value, kind)
    except (ValueError, TypeError, KeyError, RecursionError, cattrs.BaseValidationError) as error:
        raise BadEvidence(f"the {member} cannot be read: {type(error).__name__}") from error
    signed = text[begin.end() : end].encode()
    for signer in signers:
        if signer.signed_by(root) and ecdsa.is_signed(
            signed, signature, signer.public_key, ecdsa.P256
        ):
            return Signed(found, signer)
    raise BadEvidence(f"no certificate given has signed the {member}, or {root.subject} not it")


def judge(
    report: TdReport,
    qe: QeReport,
    platform: Platform,
    info: TcbInfo | None,
    identity: QeIdentity | None,
    at: datetime,
    allowed: frozenset[str],
) -> list[Check]:
    """What the documents say of a platform, or that nobody has asked them."""
    checks = []
    if info is None:
        checks.append(Check("TCB status", Verdict.NOT_COMPARED, _svns(report, platform)))
    else:
        checks += [_today("TCB info", info, at), *_of_platform(report, platform, info, allowed)]
    if identity is None:
        checks.append(Check("quoting enclave status", Verdict.NOT_COMPARED, f"ISVSVN {qe.isvsvn}"))
    else:
        checks += [_today("identity", identity, at), *_of_enclave(qe, identity, allowed)]
    return checks


def _svns(report: TdReport, platform: Platform) -> str:
    numbers = " ".join(map(str, platform.svns))
    return f"SGX {numbers}, PCE {platform.pcesvn}, TDX {report.tee_tcb_svn.hex()}"


def _today(what: str, found: TcbInfo | QeIdentity, at: datetime) -> Check:
    begin, end = found.issueDate, found.nextUpdate
    shown = f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    return check(
        f"validity of {what}", shown, begin <= at <= end, expected=f"{at:%Y-%m-%d} within",
        why="fetch a new one",
    )  # fmt: skip


def _of_platform(
    report: TdReport, platform: Platform, info: TcbInfo, allowed: frozenset[str]
) -> list[Check]:
    same = (info.fmspc, info.pceId) == (platform.fmspc, platform.pce_id)
    checks = [check("FMSPC", platform.fmspc.hex(), same, expected=info.fmspc.hex(),
                    why="the TCB info is of other platforms")]  # fmt: skip
    module = report.tee_tcb_svn[1]
    # From the module of TDX 1.5 on, the first two versions have a list of their own.
    skipped = 2 if module else 0

    def fits(tcb: _Tcb) -> bool:
        return (
            len(tcb.sgxtcbcomponents) == len(platform.svns)
            and len(tcb.tdxtcbcomponents) == len(report.tee_tcb_svn)
            and _at_least(platform.svns, tcb.sgxtcbcomponents)
            and platform.pcesvn >= tcb.pcesvn
            and _at_least(report.tee_tcb_svn[skipped:], tcb.tdxtcbcomponents[skipped:])
        )

    level = next((one for one in info.tcbLevels if fits(one.tcb)), None)
    checks.append(_status("TCB status", _svns(report, platform), level, allowed))
    if module:
        levels = [
            level
            for one in info.tdxModuleIdentities
            if one.id == f"TDX_{module:02x}"
            for level in one.tcbLevels
        ]
        version = report.tee_tcb_svn[0]
        level = next((one for one in levels if version >= one.tcb.isvsvn), None)
        checks.append(_status("TDX module status", f"{module}.{version}", level, allowed))
    return checks


def _at_least(found: Sequence[int], wanted: Sequence[_Svn]) -> bool:
    return all(one >= least.svn for one, least in zip(found, wanted, strict=True))


def _of_enclave(qe: QeReport, identity: QeIdentity, allowed: frozenset[str]) -> list[Check]:
    misc = qe.miscselect.to_bytes(4, "little")
    same = (
        _masked(misc, identity.miscselectMask) == identity.miscselect
        and _masked(qe.attributes, identity.attributesMask) == identity.attributes
        and qe.mrsigner == identity.mrsigner
        and qe.isvprodid == identity.isvprodid
    )
    level = next((one for one in identity.tcbLevels if qe.isvsvn >= one.tcb.isvsvn), None)
    return [
        check("quoting enclave", "as Intel describes it" if same else "another", same),
        _status("quoting enclave status", f"ISVSVN {qe.isvsvn}", level, allowed),
    ]


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=False))


def _status(field: str, found: str, level: _Level | None, allowed: frozenset[str]) -> Check:
    if level is None:
        return check(field, found, good=False, expected="a level that Intel knows")
    status, why = level.tcbStatus, ", ".join(level.advisoryIDs)
    if status == UP_TO_DATE or status in allowed:
        return Check(field, Verdict.OK, status)
    verdict = Verdict.INSECURE if status in NEEDS_MORE else Verdict.FAILED
    return Check(field, verdict, status, UP_TO_DATE, why)
