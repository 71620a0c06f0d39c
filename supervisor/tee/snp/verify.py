"""Whether a report says what its owner expects, and whether it is a processor's of AMD. Pure.

Each field has a verdict of its own; see `supervisor.tee.checks`. Not only the signature is
checked: the certificate of another chip, or of a chip with other firmware, has a good one, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from supervisor.tee import certificate, ecdsa
from supervisor.tee.checks import Bits, Check, Verdict, check, compare
from supervisor.tee.evidence import Unsupported
from supervisor.tee.snp import endorsement
from supervisor.tee.snp.report import PolicyBit, SigningKey, security_versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from supervisor.tee.certificate import Certificate, RevocationList
    from supervisor.tee.snp.endorsement import Leaf, Roots
    from supervisor.tee.snp.report import Product, Report

#: Bits of a policy that let somebody else into the guest, with what they do.
_OPEN: dict[int, str] = {
    PolicyBit.DEBUG: "the host may read and change the guest's memory",
    PolicyBit.MIGRATE_MA: "a migration agent, another VM of the host, may take the guest over",
}
#: What a policy has beside these: the least version of the ABI, and the bit that must be one.
_BESIDE_BITS = 0xFFFF | 1 << PolicyBit.RESERVED_ONE


@attrs.frozen(kw_only=True)
class Expected:
    """What an owner knows. None: he does not say, and the field is not compared.

    :param vmpl: the least trusted level that the report may have been asked for from
    :param policy: the policy that the guest must have, bit for bit but for the least version
    :param least_abi: of the firmware that the policy asks for, as its low 16 bits have it
    :param allowed: bits of a policy that are let through though they open the guest
    :param minimum_tcb: security versions, by their names in `report.TCB_PARTS`
    """

    report_data: bytes | None = None
    measurement: bytes | None = None
    host_data: bytes | None = None
    id_key_digest: bytes | None = None
    author_key_digest: bytes | None = None
    policy: int | None = None
    least_abi: int | None = None
    vmpl: int = 0
    allowed: frozenset[PolicyBit] = frozenset()
    minimum_tcb: Mapping[str, int] = attrs.field(factory=dict)


def verify(
    report: Report,
    leaf: Certificate,
    given: Iterable[Certificate],
    expected: Expected,
    at: datetime,
    *,
    revocations: RevocationList | None = None,
    trusted: Sequence[Roots] | None = None,
) -> list[Check]:
    """All that can be said of a report.

    :param leaf: the certificate of the key that signed it
    :param given: certificates between the leaf and AMD's root, if they are not this package's
    :param at: when the certificates must be valid
    :param revocations: AMD's list for the product
    :param trusted: AMD's roots, if not this package's
    :raises Unsupported: if nobody has signed the report, or by a key that is not known
    """
    if report.signing_key in (None, SigningKey.NONE):
        raise Unsupported("the report is not signed by a VCEK or a VLEK")
    known = endorsement.Leaf.of(leaf)
    way, checks = endorsement.chain(leaf, given, trusted or endorsement.roots(), at)
    if revocations is not None and way:
        on_way = (way.signer, way.leaf)
        checks.append(certificate.revocation(revocations, on_way, way.root.ark, at))
    checks.append(_signature(report, leaf))
    checks.append(_signing_key(report, known))
    if way:
        product = way.root.product
        checks += [_product(report, known, product), *_tcb(report, known, product, expected)]
    return [*checks, _chip(report, known), *_policy(report, expected), *_guest(report, expected)]


def _signature(report: Report, leaf: Certificate) -> Check:
    good = ecdsa.is_signed(report.signed, report.signature, leaf.public_key, ecdsa.P384)
    found = f"by the key of {leaf.subject}" if good else "wrong"
    return check(
        "signature", found, good, why="the report was changed, or another key has signed it"
    )


def _signing_key(report: Report, leaf: Leaf) -> Check:
    said = report.signing_key
    assert said is not None
    found = leaf.certificate.subject
    return check("signing key", said.name, said is leaf.kind, expected=found or "a VCEK or a VLEK")


def _product(report: Report, leaf: Leaf, product: Product) -> Check:
    """That the chip, its certificate and the root are of one product."""
    says = [leaf.product.partition("-")[0]]
    if report.cpuid:
        says.append(str(report.product or "CPUID {:#x} {:#x} {:#x}".format(*report.cpuid)))
    return check("product", " ".join(dict.fromkeys(says)), set(says) == {product}, expected=product)


def _tcb(report: Report, leaf: Leaf, product: Product, expected: Expected) -> list[Check]:
    reported = security_versions(report.reported_tcb, product)
    checks = [
        compare(
            f"reported TCB: {name}",
            str(value),
            str(leaf.tcb.get(name, "not in the certificate")),
            why="the certificate is of other firmware",
        )
        for name, value in reported.items()
    ]
    for name, least in expected.minimum_tcb.items():
        found = reported.get(name)
        checks.append(
            check(
                f"minimum TCB: {name}",
                "none" if found is None else str(found),
                found is not None and found >= least,
                expected=f"{least} or more",
                why="the host's firmware is older than it should be",
            )
        )
    return checks


def _chip(report: Report, leaf: Leaf) -> Check:
    found = report.chip_id.hex()
    if leaf.chip_id is None:
        why = "the certificate is of a provider's fleet, and names no chip"
        return Check("chip id", Verdict.NOT_COMPARED, found, why=why)
    return compare("chip id", found, leaf.chip_id.hex())


def _policy(report: Report, expected: Expected) -> list[Check]:
    one = report.policy >> PolicyBit.RESERVED_ONE & 1
    field = f"policy: {PolicyBit.RESERVED_ONE.name.lower()}"
    checks = [check(field, str(one), bool(one), expected="1")]
    bits = Bits(
        field="policy",
        known=[bit for bit in PolicyBit if bit is not PolicyBit.RESERVED_ONE],
        opens=_OPEN,
        allowed=expected.allowed,
        expected=expected.policy,
    )
    checks += bits.judge(report.policy & ~_BESIDE_BITS)
    if expected.least_abi is not None:
        versions = (
            f"{word >> 8 & 0xFF}.{word & 0xFF}" for word in (report.policy, expected.least_abi)
        )
        why = f"the whole policy is {report.policy:#x}"
        checks.append(compare("policy: least ABI version", *versions, why=why))
    return checks


def _guest(report: Report, expected: Expected) -> list[Check]:
    """What was launched, for whom, and who asked."""
    values = {
        "measurement": (report.measurement, expected.measurement),
        "host data": (report.host_data, expected.host_data),
        "report data": (report.report_data, expected.report_data),
        "id key digest": (report.id_key_digest, expected.id_key_digest),
        "author key digest": (report.author_key_digest, expected.author_key_digest),
    }
    return [
        check(
            "VMPL",
            str(report.vmpl),
            report.vmpl <= expected.vmpl,
            expected=f"{expected.vmpl}" if expected.vmpl == 0 else f"{expected.vmpl} or less",
            why="a less trusted part of the guest asked for it",
        ),
        *(
            compare(field, found.hex(), None if wanted is None else wanted.hex())
            for field, (found, wanted) in values.items()
        ),
    ]
