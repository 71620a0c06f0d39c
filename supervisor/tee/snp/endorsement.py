"""Who vouches for the key that signed a report: the certificates from it up to AMD. Pure but for
reading the roots of this package.

Source: AMD's Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification
(57230) and Versioned Loaded Endorsement Key (VLEK) Certificate Definition (58369).
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

import attrs

from supervisor.tee import certificate
from supervisor.tee.checks import Check, Verdict, check
from supervisor.tee.snp.report import TCB_PARTS, Product, SigningKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from supervisor.tee.certificate import Certificate

_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HARDWARE_ID = f"{_OID}2", f"{_OID}4"
_TCB = {
    "bootloader": f"{_OID}3.1",
    "tee": f"{_OID}3.2",
    "snp": f"{_OID}3.3",
    "microcode": f"{_OID}3.8",
    "fmc": f"{_OID}3.9",
}
_CHIP_ID_BYTES = 64


@attrs.frozen
class Leaf:
    """A VCEK or a VLEK, with what AMD says of its chip.

    :param kind: None if its name is of neither
    :param product: the name in the certificate, such as ``Milan-B0``
    :param tcb: the parts that the certificate names
    :param chip_id: None if it names no chip, as a VLEK
    """

    certificate: Certificate
    kind: SigningKey | None
    product: str
    tcb: Mapping[str, int]
    chip_id: bytes | None

    @classmethod
    def of(cls, found: Certificate) -> Leaf:
        kinds = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}
        parts = {name: found.integer(_TCB[name]) for name in TCB_PARTS}
        hardware_id = found.extensions.get(_HARDWARE_ID)
        return cls(
            certificate=found,
            kind=kinds.get(found.subject),
            product=found.text(_PRODUCT_NAME),
            tcb={name: value for name, value in parts.items() if value is not None},
            # Turin's have eight bytes.
            chip_id=hardware_id.ljust(_CHIP_ID_BYTES, b"\0") if hardware_id else None,
        )


@attrs.frozen
class Roots:
    """What AMD has published of one product.

    :param ark: the root, which is trusted because it is here
    :param signers: of VCEKs and VLEKs: the ASK and the ASVK
    """

    product: Product
    ark: Certificate
    signers: tuple[Certificate, ...]


@functools.cache
def roots() -> tuple[Roots, ...]:
    """Of this package: AMD's certificates, unchanged; SHA-256 of each root's DER in the tests."""
    found = []
    for product in Product:
        file = resources.files("supervisor.tee") / "roots" / f"amd-{product.lower()}.pem"
        loaded = certificate.load(file.read_bytes())
        (ark,) = [one for one in loaded if one.subject == one.issuer]
        found.append(Roots(product, ark, tuple(one for one in loaded if one is not ark)))
    return tuple(found)


@attrs.frozen
class Way:
    """The certificates from a leaf to AMD's root."""

    leaf: Certificate
    signer: Certificate
    root: Roots


def chain(
    leaf: Certificate, given: Iterable[Certificate], trusted: Iterable[Roots], at: datetime
) -> tuple[Way | None, list[Check]]:
    """Check the way from a leaf to a root, with the dates of all that is on it.

    :param given: certificates that came with the evidence; they are believed if a root signed them
    :returns: None if there is no way
    """
    given = tuple(given)
    for one in trusted:
        for signer in (*one.signers, *given):
            if leaf.signed_by(signer) and signer.signed_by(one.ark) and one.ark.signed_by(one.ark):
                way = f"{leaf.subject} < {signer.subject} < {one.ark.subject}"
                dates = [certificate.validity(found, at) for found in (leaf, signer, one.ark)]
                return Way(leaf, signer, one), [Check("certificate chain", Verdict.OK, way), *dates]
    failed = check(
        "certificate chain",
        f"{leaf.subject} < {leaf.issuer}",
        good=False,
        expected=f"a way to {', '.join(one.ark.subject for one in trusted)}",
        why="it is not of AMD, or not the certificate of the key that AMD has signed",
    )
    return None, [failed, certificate.validity(leaf, at)]
