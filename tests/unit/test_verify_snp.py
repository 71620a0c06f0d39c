"""Attestation reports of SEV-SNP: real ones, and ones that a stand-in for AMD has signed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from asn1crypto import core, x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.tee import certificate
from supervisor.tee.checks import ExitCode, Verdict, exit_code
from supervisor.tee.evidence import BadEvidence, Unsupported, decoded
from supervisor.tee.snp import endorsement, report
from supervisor.tee.snp.report import LENGTH, SIGNED, PolicyBit, Product, decode
from supervisor.tee.snp.verify import Expected, verify
from tests.support.amd import CHIP_ID, NOW, TCB, Chip, amd

if TYPE_CHECKING:
    from supervisor.tee.checks import Check
    from supervisor.tee.snp.report import Report

VECTORS = Path(__file__).parents[1] / "vectors"
#: A day on which all of them are valid.
AT = datetime(2025, 6, 1, tzinfo=UTC)
#: Report, leaf, what else is expected.
REAL: dict[str, tuple[str, str, Expected]] = {
    "version 2, VCEK": ("tr-test-report.bin", "tr-test-vcek.der", Expected()),
    "version 2, in hex": ("sev-report_milan.hex", "sev-vcek_milan.der", Expected()),
    "version 3, VLEK": ("tr-test-vlek-report.bin", "tr-test-vlek.der", Expected(vmpl=1)),
    "debug": (
        "go-attestation.bin",
        "go-vcek.cer",
        Expected(allowed=frozenset({PolicyBit.DEBUG})),
    ),
}


def read(name: str) -> bytes:
    return decoded((VECTORS / name).read_bytes())


def leaf_of(name: str) -> certificate.Certificate:
    return certificate.load(read(name))[0]


def real(name: str) -> tuple[Report, certificate.Certificate, Expected]:
    file, leaf, expected = REAL[name]
    return decode(read(file)), leaf_of(leaf), expected


def wrong(checks: list[Check]) -> list[str]:
    return [one.field for one in checks if one.verdict in (Verdict.FAILED, Verdict.INSECURE)]


def judged(chip: Chip, expected: Expected | None = None, **fields: Any) -> list[str]:
    """What is wrong with a report of a chip of the stand-in."""
    found = decode(chip.report(**fields))
    return wrong(verify(found, chip.leaf, (), expected or Expected(), NOW, trusted=[amd().roots]))


# --- real ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_real_report_is_verified(name: str) -> None:
    found, leaf, expected = real(name)
    checks = verify(found, leaf, (), expected, AT)
    assert (wrong(checks), exit_code(checks)) == ([], ExitCode.VERIFIED)


def test_report_whose_policy_allows_debugging_is_refused() -> None:
    found, leaf, _ = real("debug")
    checks = verify(found, leaf, (), Expected(), AT)
    assert (wrong(checks), exit_code(checks)) == (["policy: debug"], ExitCode.INSECURE)


@pytest.mark.parametrize(
    ("at", "problem"), [(datetime(2025, 12, 11, tzinfo=UTC), "expired"), (NOW, "expired"),
                        (datetime(2024, 12, 10, tzinfo=UTC), "not valid yet")]
)  # fmt: skip
def test_vlek_is_valid_for_a_year(at: datetime, problem: str) -> None:
    found, leaf, expected = real("version 3, VLEK")
    (bad,) = [one for one in verify(found, leaf, (), expected, at) if one.verdict is Verdict.FAILED]
    assert (bad.field, bad.why) == ("validity of SEV-VLEK", problem)


def test_certificates_that_came_along_are_believed_if_a_root_signed_them() -> None:
    found, leaf, expected = real("version 2, in hex")
    given = certificate.load((VECTORS / "sev-cert_chain_milan").read_bytes())
    assert len(given) == 2
    bare = [endorsement.Roots(one.product, one.ark, ()) for one in endorsement.roots()]
    assert wrong(verify(found, leaf, given, expected, AT, trusted=bare)) == []
    others = certificate.load((VECTORS / "sev-cert_chain_turin").read_bytes())
    checks = verify(found, leaf, others, expected, AT, trusted=bare)
    assert wrong(checks) == ["certificate chain"]


def test_vcek_of_turin() -> None:
    leaf = leaf_of("sev-vcek_turin.der")
    way, checks = endorsement.chain(leaf, (), endorsement.roots(), AT)
    assert way
    assert (way.root.product, wrong(checks)) == (Product.TURIN, [])
    known = endorsement.Leaf.of(leaf)
    assert set(known.tcb) == {"fmc", "bootloader", "tee", "snp", "microcode"}
    assert known.chip_id == bytes.fromhex("1e550a8ee5cf9f4d").ljust(64, b"\0")


def test_another_chips_certificate_is_refused() -> None:
    found, _, expected = real("version 2, VCEK")
    checks = verify(found, leaf_of("sev-vcek_milan.der"), (), expected, AT)
    assert wrong(checks) == ["signature", "chip id"]


def test_each_byte_that_is_signed_counts() -> None:
    """Also each byte of the signature's two numbers."""
    _, leaf, expected = real("version 2, VCEK")
    content = read("tr-test-report.bin")
    for at in range(SIGNED + 2 * 72):
        changed = bytearray(content)
        changed[at] ^= 0x41
        try:
            found = decode(bytes(changed))
            assert "signature" in wrong(verify(found, leaf, (), expected, AT)), hex(at)
        except Unsupported:
            assert at in (*range(4), *range(0x34, 0x38), 0x48), hex(at)


#: SHA-256 of the DER of each root, as AMD's key server gives it.
ROOTS = {
    "Milan": "69d063b45344d26a",
    "Genoa": "4c6598d19c18719c",
    "Turin": "1f084161a44bb6d9",
}


def test_roots_are_amds() -> None:
    for one in endorsement.roots():
        assert one.ark.subject == f"ARK-{one.product}"
        assert {signer.subject for signer in one.signers} == {
            f"SEV-{one.product}",
            f"SEV-VLEK-{one.product}",
        }
        assert all(signer.signed_by(one.ark) for signer in (*one.signers, one.ark))
        assert one.ark.fingerprint.hex().startswith(ROOTS[one.product])


@pytest.mark.parametrize("name", REAL)
def test_openssl_agrees(name: str, tmp_path: Path) -> None:
    """An implementation that shares nothing with ours but the layout."""
    found, leaf, _ = real(name)
    files = {
        "key": b"-----BEGIN PUBLIC KEY-----\n"
        + base64.encodebytes(leaf.public_key)
        + b"-----END PUBLIC KEY-----\n",
        "signature": encode_dss_signature(*found.signature),
        "signed": found.signed,
        "changed": found.signed[:-1] + b"\xff",
    }
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    openssl = shutil.which("openssl")
    assert openssl, "install openssl"
    words = [openssl, "dgst", "-sha384", "-verify", "key", "-signature", "signature"]
    for file, said in (("signed", "Verified OK"), ("changed", "Verification failure")):
        done = subprocess.run(
            [*words, file], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines()[0] == said


# --- of the stand-in -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chip() -> Chip:
    return amd().vcek()


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_each_version(chip: Chip, version: int) -> None:
    assert judged(chip, version=version) == []


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_other_versions_are_not_guessed_at(chip: Chip, version: int) -> None:
    with pytest.raises(Unsupported, match=rf"version {version}; versions 2 to 5 are known"):
        decode(chip.report(version=version))


def test_a_root_that_is_not_amds_is_nobodys(chip: Chip) -> None:
    checks = verify(
        decode(chip.report()), chip.leaf, certificate.load(amd().chain), Expected(), NOW
    )
    assert wrong(checks) == ["certificate chain"]
    assert exit_code(checks) is ExitCode.NOT_VALID


@pytest.mark.parametrize("bit", [bit for bit in PolicyBit if bit is not PolicyBit.RESERVED_ONE])
def test_each_bit_of_the_policy(chip: Chip, bit: PolicyBit) -> None:
    """The report has the bit and should not, or has it not and should."""
    with_bit, without = 0x30000 | 1 << bit, 0x30000 & ~(1 << bit)
    field = f"policy: {bit.name.lower()}"
    allowed = frozenset(PolicyBit)
    for has, wants in ((with_bit, without), (without, with_bit)):
        assert judged(chip, Expected(policy=wants, allowed=allowed), policy=has) == [field]
        assert judged(chip, Expected(policy=has, allowed=allowed), policy=has) == []


def test_bit_that_must_be_one(chip: Chip) -> None:
    assert judged(chip, policy=0x10000) == ["policy: reserved_one"]


def test_bit_that_nobody_knows_is_refused(chip: Chip) -> None:
    assert judged(chip, policy=0x30000 | 1 << 26) == ["policy: reserved bits"]
    assert judged(chip, policy=0x30000 | 1 << 63) == ["policy: reserved bits"]


def test_least_abi_version(chip: Chip) -> None:
    assert judged(chip, Expected(policy=0x30137, least_abi=0x30137), policy=0x30136) == [
        "policy: least ABI version"
    ]


@pytest.mark.parametrize("bit", [PolicyBit.DEBUG, PolicyBit.MIGRATE_MA])
def test_guest_that_is_open_to_somebody_is_not_secure(chip: Chip, bit: PolicyBit) -> None:
    field = f"policy: {bit.name.lower()}"
    policy = 0x30000 | 1 << bit
    assert judged(chip, policy=policy) == [field]
    # Also for an owner who wrote that policy down, and does not say that he knows what it means.
    assert judged(chip, Expected(policy=policy), policy=policy) == [field]
    assert judged(chip, Expected(allowed=frozenset({bit})), policy=policy) == []


@pytest.mark.parametrize(
    ("field", "member", "length"),
    [
        ("measurement", "measurement", 48),
        ("host data", "host_data", 32),
        ("report data", "report_data", 64),
    ],
)
def test_what_was_launched_and_for_whom(chip: Chip, field: str, member: str, length: int) -> None:
    value = hashlib.shake_128(member.encode()).digest(length)
    says: dict[str, Any] = {member: value}
    wants = Expected(**says)
    assert judged(chip, wants, **says) == []
    assert judged(chip, wants) == [field]
    assert judged(chip, wants, **{member: value[:-1] + bytes([value[-1] ^ 1])}) == [field]


def test_keys_of_the_id_block(chip: Chip) -> None:
    assert judged(chip, Expected(id_key_digest=b"\1" * 48)) == ["id key digest"]
    assert judged(chip, Expected(author_key_digest=b"\1" * 48)) == ["author key digest"]


def test_least_trusted_level(chip: Chip) -> None:
    assert judged(chip, vmpl=1) == ["VMPL"]
    assert judged(chip, Expected(vmpl=1), vmpl=1) == []
    assert judged(chip, Expected(vmpl=1), vmpl=2) == ["VMPL"]


@pytest.mark.parametrize("part", ["bootloader", "snp", "microcode"])
def test_older_firmware_than_wanted(chip: Chip, part: str) -> None:
    has = {"bootloader": 3, "snp": 8, "microcode": 115}[part]
    assert judged(chip, Expected(minimum_tcb={part: has})) == []
    assert judged(chip, Expected(minimum_tcb={part: has + 1})) == [f"minimum TCB: {part}"]
    # Milan has no such part: what is not there is not new enough.
    assert judged(chip, Expected(minimum_tcb={"fmc": 0})) == ["minimum TCB: fmc"]


@pytest.mark.parametrize(
    ("oid", "part"), [("3.1", "bootloader"), ("3.2", "tee"), ("3.3", "snp"), ("3.8", "microcode")]
)
def test_certificate_of_other_firmware(oid: str, part: str) -> None:
    field = [f"reported TCB: {part}"]
    assert judged(amd().vcek(tcb={**TCB, oid: TCB[oid] + 1})) == field
    assert judged(amd().vcek(tcb={one: TCB[one] for one in TCB if one != oid})) == field


@pytest.mark.parametrize("value", [256, 1 << 900])
def test_security_version_that_cannot_be_is_none(value: int) -> None:
    other = amd().vcek(tcb=TCB | {"3.3": value})
    assert judged(other) == ["reported TCB: snp"]


HOSTILE = ["SEV-VCEK\x1b[2J\x1b[Hverified", "SEV-VCEK\nverified", "\u202eKECV"]


@pytest.mark.parametrize("name", HOSTILE)
def test_common_name_that_cannot_be_shown_is_none(name: str) -> None:
    chip = amd().vcek(subject=name)
    assert chip.leaf.subject == ""
    assert judged(chip) == ["signing key"]


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 65])
def test_product_that_cannot_be_shown_is_none(name: str) -> None:
    chip = amd().vcek(product=name)
    assert endorsement.Leaf.of(chip.leaf).product == ""
    assert judged(chip) == ["product"]


@pytest.mark.parametrize("time", [b"00000101000000Z", b"20250101000000"])
def test_certificate_of_no_time_is_none(chip: Chip, time: bytes) -> None:
    parsed = x509.Certificate.load(chip.der)
    validity = parsed["tbs_certificate"]["validity"]
    validity["not_before"] = x509.Time("general_time", core.GeneralizedTime(contents=time))
    with pytest.raises(BadEvidence, match="not a certificate"):
        certificate.load(parsed.dump())


def test_certificate_of_another_chip() -> None:
    assert judged(amd().vcek(chip_id=CHIP_ID[::-1])) == ["chip id"]
    assert judged(amd().vcek(), chip_id=bytes(64)) == ["chip id"]


@pytest.mark.parametrize("product", ["Genoa-B1", "Turin", "Mila", ""])
def test_certificate_of_another_product(product: str) -> None:
    assert judged(amd().vcek(product=product)) == ["product"]


@pytest.mark.parametrize("cpuid", [(0x19, 0x10, 0), (0x1A, 0, 0), (0x17, 1, 0), (0, 0, 0)])
def test_report_of_another_product(chip: Chip, cpuid: tuple[int, int, int]) -> None:
    assert judged(chip, cpuid=cpuid) == ["product"]


def test_turins_security_versions_are_elsewhere() -> None:
    turin = amd(Product.TURIN)
    chip = turin.vcek(
        product="Turin-B0", chip_id=CHIP_ID[:8],
        tcb={"3.9": 1, "3.1": 2, "3.2": 3, "3.3": 4, "3.8": 5},
    )  # fmt: skip
    made = chip.report(
        cpuid=(0x1A, 2, 1),
        tcb=bytes([1, 2, 3, 4, 0, 0, 0, 5]),
        chip_id=CHIP_ID[:8].ljust(64, b"\0"),
    )
    expected = Expected(minimum_tcb={"fmc": 1, "snp": 4})
    assert wrong(verify(decode(made), chip.leaf, (), expected, NOW, trusted=[turin.roots])) == []


def test_report_by_a_key_of_another_kind(chip: Chip) -> None:
    assert judged(chip, key_info=1 << 2) == ["signing key"]
    assert judged(amd().vcek(subject="SEV-VLEK", chip_id=None)) == ["signing key"]
    assert judged(amd().vcek(subject="SEV-VLEK", chip_id=None), key_info=1 << 2) == []
    for nobody in (7, 2):
        with pytest.raises(Unsupported, match="not signed by a VCEK or a VLEK"):
            judged(chip, key_info=nobody << 2)


def test_key_of_another_kind_signs_nothing(chip: Chip) -> None:
    found = decode(chip.report())
    checks = verify(found, amd().roots.ark, (), Expected(), NOW, trusted=[amd().roots])
    assert "signature" in wrong(checks)


def test_revoked_signer(chip: Chip) -> None:
    found = decode(chip.report())

    def listed(revocations: bytes) -> list[str]:
        return wrong(verify(found, chip.leaf, (), Expected(), NOW, trusted=[amd().roots],
                            revocations=certificate.load_list(revocations)))  # fmt: skip

    assert listed(amd().revocations(5)) == []
    assert listed(amd().revocations(77)) == ["revocation list"]
    assert listed(amd().revocations(until=NOW - timedelta(days=1))) == ["revocation list"]
    assert listed(amd(Product.TURIN).revocations(5)) == ["revocation list"]
    with pytest.raises(BadEvidence, match="not a revocation list"):
        listed(chip.der)


# --- files ---------------------------------------------------------------------------------------


def test_files_in_any_form(chip: Chip) -> None:
    made = chip.report()
    folded = base64.encodebytes(made)
    for form in (made, made.hex().encode(), b"0x" + made.hex().upper().encode() + b"\n", folded):
        assert decoded(form) == made


@pytest.mark.parametrize("length", [0, 1, LENGTH - 1, LENGTH + 1])
def test_file_of_another_length_is_no_report(length: int) -> None:
    with pytest.raises(BadEvidence, match=f"has {length} bytes"):
        decode(bytes(length))


@given(st.binary(max_size=2 * LENGTH) | st.binary(min_size=LENGTH, max_size=LENGTH))
def test_any_bytes_are_a_report_or_an_error(content: bytes) -> None:
    try:
        found = decode(content)
    except (BadEvidence, Unsupported):
        return
    assert len(found.signed) == SIGNED
    assert found.version in report.VERSIONS


@given(st.binary(max_size=4096))
def test_any_bytes_are_certificates_or_an_error(content: bytes) -> None:
    with contextlib.suppress(BadEvidence):
        certificate.load(content)


@settings(max_examples=400)
@given(st.data())
def test_a_changed_certificate_is_read_or_refused(data: st.DataObject) -> None:
    """And never believed."""
    content = bytearray(read("tr-test-vcek.der"))
    whole = bytes(content)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    try:
        (found,) = certificate.load(bytes(content))
    except BadEvidence:
        return
    endorsement.Leaf.of(found)
    way, _ = endorsement.chain(found, (), endorsement.roots(), AT)
    assert way is None or found == certificate.load(whole)[0]
