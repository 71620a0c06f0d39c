"""Where AMD has the certificates for a report. Pure: nothing is fetched.

Source: AMD's VCEK Certificate and KDS Interface Specification (57230), "KDS Interface".
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from supervisor.tee.evidence import BadEvidence, Unsupported
from supervisor.tee.snp.report import Product, SigningKey, security_versions

if TYPE_CHECKING:
    from supervisor.tee.snp.report import Report

_SERVER = "https://kdsintf.amd.com"
_NAMES = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
#: Of a Turin's chip id, which the report fills with zeros.
_TURIN_CHIP_ID_BYTES = 8


def urls(report: Report, product: Product | None) -> dict[str, str]:
    """The URL of each file: the VCEK, the certificates above it, the revocation list.

    :param product: None to take what the report says
    :raises BadEvidence: if neither says which product it is
    :raises Unsupported: if AMD has no certificate for it
    """
    product = product or report.product
    if product is None:
        raise BadEvidence(
            "the report does not say of which processor it is", advice="say --product"
        )
    if report.signing_key is not SigningKey.VCEK:
        raise Unsupported(
            "the report is not signed by a VCEK",
            advice="a VLEK comes from the provider, with the report",
        )
    chip_id = report.chip_id
    if not any(chip_id):
        raise Unsupported("the host masks its chip id, so that nobody can ask for its VCEK")
    if product is Product.TURIN:
        chip_id = chip_id[:_TURIN_CHIP_ID_BYTES]
    versions = security_versions(report.reported_tcb, product)
    asked = urlencode({_NAMES[name]: f"{number:02}" for name, number in versions.items()})
    base = f"{_SERVER}/vcek/v1/{product}"
    return {
        "vcek.der": f"{base}/{chip_id.hex()}?{asked}",
        "chain.pem": f"{base}/cert_chain",
        "crl.der": f"{base}/crl",
    }
