"""What a VM's own evidence comes to, held against what the host says of the launch. Pure.

The host's verdict is of use to its operator. An owner who does not trust the host has the command
``verify``, and the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.tee import certificate
from supervisor.tee.checks import Check, Verdict
from supervisor.tee.evidence import BadEvidence, Unsupported
from supervisor.tee.facts import Technology
from supervisor.tee.snp import report as snp_report
from supervisor.tee.snp import table
from supervisor.tee.snp import verify as snp
from supervisor.tee.tdx import quote as tdx_quote
from supervisor.tee.tdx import verify as tdx

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from supervisor.tee.expected import Claims


#: What was launched, and for whom.
_OF_THE_LAUNCH = ("measurement", "host data", "MRTD", "MRCONFIGID")


def not_compared(checks: Iterable[Check]) -> tuple[str, ...]:
    """The fields that say what was launched, and that nothing was known to compare them with."""
    return tuple(
        one.field
        for one in checks
        if one.verdict is Verdict.NOT_COMPARED and one.field in _OF_THE_LAUNCH
    )


def judge(
    claims: Claims, evidence: bytes, report_data: bytes, leaf: bytes | None, *, at: datetime
) -> list[Check]:
    """All that can be said of evidence from inside the VM. Evidence that cannot be read fails.

    :param report_data: what the guest was asked with, 64 bytes
    :param leaf: the certificate of the key that signed, if it is not with the evidence
    :param at: when the certificates must be valid
    """
    try:
        if claims.technology is Technology.TDX:
            return _tdx(claims, evidence, report_data, at)
        return _snp(claims, evidence, report_data, leaf, at)
    except (BadEvidence, Unsupported) as problem:
        return [Check("evidence", Verdict.FAILED, f"{len(evidence)} bytes", why=str(problem))]


def _snp(
    claims: Claims, evidence: bytes, report_data: bytes, leaf: bytes | None, at: datetime
) -> list[Check]:
    report, at_hand = table.split(evidence)
    expected = snp.Expected(
        report_data=report_data,
        measurement=_known(claims.measurement.digest),
        host_data=_known(claims.bound_to),
        policy=claims.number,
        least_abi=claims.number,
    )
    signer = certificate.load(leaf)[0] if leaf else table.leaf(at_hand)
    return snp.verify(snp_report.decode(report), signer, (), expected, at)


def _tdx(claims: Claims, evidence: bytes, report_data: bytes, at: datetime) -> list[Check]:
    expected = tdx.Expected(
        report_data=report_data,
        mrtd=_known(claims.measurement.digest),
        mrconfigid=_known(claims.bound_to),
    )
    return tdx.verify(tdx_quote.decode(evidence), expected, at)


def _known(digits: str) -> bytes | None:
    return bytes.fromhex(digits) or None
