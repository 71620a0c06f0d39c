"""Expected values as CoRIM, read by a reader that shares no code with what wrote them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from supervisor.errors import Busy, HostError
from supervisor.tee import corim
from supervisor.tee.expected import Claims, Measurement
from supervisor.tee.facts import Technology

VM_ID = "3f0f6c1e-7d0b-4a52-9f2e-0d6f5f9a1c11"
SNP = Claims(
    vm_id=VM_ID,
    technology=Technology.SEV_SNP,
    number=0x30000,
    bound_to="ab" * 32,
    measurement=Measurement("cd" * 48),
)


@attrs.frozen
class Tag:
    number: int
    content: Any


class Reader:
    """RFC 8949, as far as a CoRIM needs it."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def take(self, count: int) -> bytes:
        found, self.rest = self.rest[:count], self.rest[count:]
        assert len(found) == count
        return found

    def item(self) -> Any:
        head = self.take(1)[0]
        kind, number = head >> 5, head & 31
        if number >= 24:
            assert number < 28, "of indefinite length"
            number = int.from_bytes(self.take(1 << number - 24), "big")
        match kind:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self.take(number)
            case 3:
                return self.take(number).decode()
            case 4:
                return [self.item() for _ in range(number)]
            case 5:
                return {self.item(): self.item() for _ in range(number)}
            case 6:
                return Tag(number, self.item())
        raise AssertionError(kind)


def read(content: bytes) -> Any:
    reader = Reader(content)
    found = reader.item()
    assert not reader.rest
    return found


def head(kind: int, length: int) -> bytes:
    if length < 24:
        return bytes([kind << 5 | length])
    size = 0 if length < 256 else 1 if length < 65536 else 2
    return bytes([kind << 5 | 24 + size]) + length.to_bytes(1 << size, "big")


def verified(signed: bytes, key: ec.EllipticCurvePublicKey) -> bytes:
    """The payload of a COSE_Sign1, if the key has signed it: RFC 9052, 4.4."""
    made = read(signed)
    assert made.number == 18
    protected, _, payload, signature = made.content
    context = b"Signature1"
    said = b"\x84" + head(3, len(context)) + context
    for part in (protected, b"", payload):
        said += head(2, len(part)) + part
    half = len(signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    digest = SHA384() if key.key_size == 384 else SHA256()
    key.verify(encode_dss_signature(r, s), said, ec.ECDSA(digest))
    return bytes(payload)


def measurements(encoded: bytes) -> dict[Any, Any]:
    """By their keys, of the one triple that there is."""
    rim = read(encoded)
    assert rim.number == 501
    (comid,) = rim.content[1]
    assert comid.number == 506
    ((_, found),) = read(comid.content)[4][0]
    return {one[0]: one[1] for one in found}


def test_corim_of_sev_snp() -> None:
    rim = read(corim.encode(SNP)).content
    assert (rim[0], rim[3]) == (VM_ID, Tag(32, "tag:amd.com,2024:snp-corim-profile"))
    comid = read(rim[1][0].content)
    assert comid[1] == {0: uuid.UUID(VM_ID).bytes, 1: 0}
    ((environment, _),) = comid[4][0]
    # 1.3.6.1.4.1.3704.3.1
    assert environment == {0: {0: Tag(111, bytes.fromhex("2b060104019c780301"))}}
    assert measurements(corim.encode(SNP)) == {
        2: {4: Tag(560, bytes.fromhex("0000000000030000"))},
        5: {4: Tag(560, bytes(4))},
        641: {2: [[7, b"\xcd" * 48]]},
        642: {4: Tag(560, b"\xab" * 32)},
    }


@pytest.mark.parametrize("technology", [Technology.SEV, Technology.SEV_ES])
def test_corim_of_sev(technology: Technology) -> None:
    policy = attrs.evolve(
        SNP, technology=technology, number=0xB, bound_to="", measurement=Measurement("ef" * 32)
    )
    assert measurements(corim.encode(policy)) == {
        "LAUNCH_DIGEST": {2: [[1, b"\xef" * 32]]},
        "POLICY": {4: Tag(560, bytes.fromhex("0000000b"))},
    }
    assert 3 not in read(corim.encode(policy)).content


@pytest.mark.parametrize("technology", Technology)
def test_none_is_sent_that_expects_nothing(technology: Technology) -> None:
    """A verifier would take it for one that everything fits."""
    unknown = attrs.evolve(SNP, technology=technology, measurement=Measurement(problem="because"))
    with pytest.raises(Busy, match="its measurement is not known: because"):
        corim.encode(unknown)


@pytest.fixture(params=[ec.SECP256R1, ec.SECP384R1], ids=["P-256", "P-384"])
def key(request: pytest.FixtureRequest) -> ec.EllipticCurvePrivateKey:
    made: ec.EllipticCurvePrivateKey = ec.generate_private_key(request.param())
    return made


def pem(key: Any, file: Path) -> Path:
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


def test_signature(key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    signed = corim.sign(corim.encode(SNP), corim.load_key(pem(key, tmp_path / "key.pem")))
    assert verified(signed, key.public_key()) == corim.encode(SNP)
    protected = read(read(signed).content[0])
    assert protected[1] == {256: -7, 384: -35}[key.key_size]
    assert protected[3] == "application/rim+cbor"
    assert read(protected[8]) == {0: {0: "qmp-supervisor"}}
    at = signed.index(b"\xab" * 32)
    with pytest.raises(InvalidSignature):
        verified(signed[:at] + b"\0" + signed[at + 1 :], key.public_key())


def test_what_is_no_key(key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text").write_text("text")
    for file in (public, tmp_path / "text", Path("/dev/null")):
        with pytest.raises(HostError, match="is no key to sign with"):
            corim.load_key(file)
    with pytest.raises(HostError, match="cannot be read: No such file"):
        corim.load_key(tmp_path / "nowhere")
