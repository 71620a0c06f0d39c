"""Expected values as a CoRIM, which verifiers of other makers read.

SEV-SNP has a profile, which Veraison's verifier implements. For the others the measurements are
keyed by the fields' names. What is not known is not in it: a verifier takes what is there for all
that must fit, so a policy that expects nothing is refused here and not sent empty.

Sources: draft-ietf-rats-corim; draft-deeglaze-amd-sev-snp-corim-profile-02 (a later draft has other
keys); RFC 9052 for COSE, by the package cwt, which is slow to import.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import cbor2

from supervisor.errors import Busy, HostError
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cwt.cose_key_interface import COSEKeyInterface

    from supervisor.tee.expected import Claims

PLAIN, SIGNED = "application/rim+cbor", "application/rim+cose"

_PROFILE = "tag:amd.com,2024:snp-corim-profile"
#: Keys of the profile.
_POLICY, _VMPL, _MEASUREMENT, _HOST_DATA = 2, 5, 641, 642
#: 1.3.6.1.4.1.3704.3.1, a guest that a chip's key attests, as BER has it without its header.
_BY_CHIP = bytes.fromhex("2b060104019c780301")

#: Tags of the draft, and of RFC 8949.
_CORIM, _COMID, _OID, _BYTES, _URI = 501, 506, 111, 560, 32
#: IANA's "Named Information Hash Algorithm Registry".
_HASHES = {32: 1, 48: 7}
_DIGESTS, _RAW = 2, 4

#: Header parameters: COSE's content type, and the draft's corim-meta.
_CONTENT_TYPE, _META = 3, 8
_SIGNER = "qmp-supervisor"


def encode(claims: Claims) -> bytes:
    """An unsigned CoRIM.

    :raises Busy: if the measurement is not known
    """
    if not claims.measurement.digest:
        problem = claims.measurement.problem or "it was not computed"
        raise Busy(
            f"VM {claims.vm_id} has no CoRIM, for its measurement is not known: {problem}",
            advice="ask for application/json, which has the rest",
        )
    snp = claims.technology is Technology.SEV_SNP
    tag = uuid.UUID(claims.vm_id)
    where = {0: cbor2.CBORTag(_OID, _BY_CHIP)} if snp else {1: "AMD", 2: claims.technology.label}
    found = [{0: key, 1: value} for key, value in (_snp(claims) if snp else _sev(claims))]
    comid = {1: {0: tag.bytes, 1: 0}, 4: {0: [[{0: where}, found]]}}
    members: dict[int, Any] = {
        0: claims.vm_id,
        1: [cbor2.CBORTag(_COMID, cbor2.dumps(comid, canonical=True))],
    }
    if snp:
        members[3] = cbor2.CBORTag(_URI, _PROFILE)
    made: bytes = cbor2.dumps(cbor2.CBORTag(_CORIM, members), canonical=True)
    return made


def _snp(claims: Claims) -> Iterator[tuple[int, dict[int, Any]]]:
    if claims.number is not None:
        yield _POLICY, _raw(claims.number.to_bytes(8, "big"))
    yield _VMPL, _raw(bytes(4))
    yield _MEASUREMENT, _digest(claims.measurement.digest)
    yield _HOST_DATA, _raw(bytes.fromhex(claims.bound_to))


def _sev(claims: Claims) -> Iterator[tuple[str, dict[int, Any]]]:
    yield "LAUNCH_DIGEST", _digest(claims.measurement.digest)
    if claims.number is not None:
        yield "POLICY", _raw(claims.number.to_bytes(4, "big"))


def _raw(content: bytes) -> dict[int, Any]:
    return {_RAW: cbor2.CBORTag(_BYTES, content)}


def _digest(digest: str) -> dict[int, Any]:
    content = bytes.fromhex(digest)
    return {_DIGESTS: [[_HASHES[len(content)], content]]}


def sign(corim: bytes, key: COSEKeyInterface) -> bytes:
    """A COSE_Sign1 of it."""
    from cwt import COSE

    meta = cbor2.dumps({0: {0: _SIGNER}}, canonical=True)
    protected = {_CONTENT_TYPE: PLAIN, _META: meta}
    signed: bytes = COSE.new(alg_auto_inclusion=True).encode(corim, key, protected=protected)
    return signed


def load_key(file: Path) -> COSEKeyInterface:
    """A private key of an elliptic curve, in PEM. Blocking.

    :raises HostError: if there is none in the file
    """
    from cwt import COSE, COSEKey

    try:
        key = COSEKey.from_pem(file.read_bytes())
        COSE.new(alg_auto_inclusion=True).encode(b"", key)
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror}", advice=_ADVICE) from error
    except (ValueError, TypeError) as error:
        raise HostError(f"{file} is no key to sign with: {error}", advice=_ADVICE) from error
    return key


_ADVICE = "set MANAGER_CORIM_SIGNING_KEY to a PEM file with a private key of P-256 or P-384"
