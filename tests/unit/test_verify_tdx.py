"""Quotes of TDX: real ones, and ones that a stand-in for Intel has signed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.tee import certificate
from supervisor.tee.checks import ExitCode, Verdict, exit_code
from supervisor.tee.evidence import BadEvidence, Unsupported
from supervisor.tee.tdx import collateral, pck
from supervisor.tee.tdx.collateral import ALLOWABLE
from supervisor.tee.tdx.pck import Platform
from supervisor.tee.tdx.quote import Attribute, decode
from supervisor.tee.tdx.verify import Expected, verify
from tests.support.amd import amd
from tests.support.intel import (
    ENCLAVE,
    FMSPC,
    NOW,
    PLATFORM_OID,
    QE_SIGNER,
    SVNS,
    TEE_TCB_SVN,
    intel,
    platform_extension,
)
from tests.unit.test_verify_snp import VECTORS

if TYPE_CHECKING:
    from supervisor.tee.checks import Check

AT = datetime(2025, 6, 1, tzinfo=UTC)
SIGNED = 48 + 584


def real(version: int) -> bytes:
    return (VECTORS / f"tdx{version}.dat").read_bytes()


def wrong(checks: list[Check]) -> list[str]:
    return [one.field for one in checks if one.verdict in (Verdict.FAILED, Verdict.INSECURE)]


def judged(expected: Expected | None = None, **fields: Any) -> list[str]:
    """What is wrong with a quote of the stand-in."""
    quote = decode(intel().quote(**fields))
    return wrong(verify(quote, expected or Expected(), NOW, root=intel().root))


# --- real ones -----------------------------------------------------------------------------------


def test_real_quote_is_verified() -> None:
    checks = verify(decode(real(5)), Expected(), AT)
    assert (wrong(checks), exit_code(checks)) == ([], ExitCode.VERIFIED)


def test_real_quote_of_a_td_that_can_be_debugged_is_not_secure() -> None:
    checks = verify(decode(real(4)), Expected(), AT)
    assert (wrong(checks), exit_code(checks)) == (["attributes: debug"], ExitCode.INSECURE)
    assert wrong(verify(decode(real(4)), Expected(allowed=frozenset(Attribute)), AT)) == []


@pytest.mark.parametrize("version", [4, 5])
def test_certificates_of_a_quote_expire(version: int) -> None:
    allowed = Expected(allowed=frozenset(Attribute))
    checks = verify(decode(real(version)), allowed, datetime(2032, 1, 1, tzinfo=UTC))
    assert wrong(checks) == ["validity of Intel SGX PCK Certificate"]


def test_root_is_intels() -> None:
    fingerprint = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    assert pck.root().fingerprint.hex() == fingerprint
    assert pck.root().signed_by(pck.root())


def test_each_byte_that_is_signed_counts() -> None:
    content = real(4)
    allowed = Expected(allowed=frozenset(Attribute))
    for at in range(SIGNED):
        changed = bytearray(content)
        changed[at] ^= 0x41
        try:
            found = wrong(verify(decode(bytes(changed)), allowed, AT))
            assert "signature of the quote" in found, hex(at)
        except Unsupported:
            assert at < 8, hex(at)


def test_each_byte_of_the_signatures_counts() -> None:
    """Of the quote's, of the key's, of the enclave's report and its data."""
    content = real(4)
    begin = SIGNED + 4
    parts = {
        "signature of the quote": range(begin, begin + 64),
        "attestation key": range(begin + 64, begin + 128),
        "signature of the enclave's report": range(begin + 134, begin + 134 + 448),
    }
    for field, places in parts.items():
        for at in places:
            changed = bytearray(content)
            changed[at] ^= 0x41
            assert field in wrong(verify(decode(bytes(changed)), Expected(), AT)), hex(at)


# --- of the stand-in -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
def test_each_version(version: int) -> None:
    svn = bytes([3, 0, 5, *[0] * 13])
    assert judged(version=version, tee_tcb_svn=svn) == []


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [(0, 3, "version 3"), (0, 6, "version 6"), (4, 0, "TEE type 0x0"), (2, 3, "key of type 3"),
     (48, 1, "kind 1 with 648"), (50, 0, "kind 3 with 512"), (0x2F0 + 22, 9, "")],
)  # fmt: skip
def test_what_is_not_known_is_not_guessed_at(at: int, value: int, problem: str) -> None:
    content = bytearray(intel().quote())
    if problem:
        content[at] = value
    else:  # the kind of certification data
        content[48 + 6 + 648 + 4 + 128] = value
    with pytest.raises(Unsupported, match=problem or "certification data of type 9"):
        decode(bytes(content))


def test_another_root() -> None:
    checks = verify(decode(intel().quote()), Expected(), NOW)
    assert "certificate chain" in wrong(checks)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"mrsigner": QE_SIGNER[::-1]}, "quoting enclave"),
        ({"isvprodid": 1}, "quoting enclave"),
        ({"attributes": b"\x17" + bytes(15)}, "quoting enclave"),
        ({"report_data": bytes(64)}, "attestation key"),
    ],
)
def test_another_enclave(changed: dict[str, Any], field: str) -> None:
    assert judged(enclave={**ENCLAVE, **changed}) == [field]


def test_module_that_is_not_intels() -> None:
    assert judged(mrsignerseam=b"\1") == ["TDX module"]
    assert judged(seamattributes=b"\1") == ["TDX module"]


@pytest.mark.parametrize("bit", Attribute)
def test_each_attribute(bit: Attribute) -> None:
    base = 0 if bit is Attribute.SEPT_VE_DISABLE else 1 << 28
    field, allowed = f"attributes: {bit.name.lower()}", frozenset(Attribute)
    for has, wants in ((base | 1 << bit, base), (base, base | 1 << bit)):
        assert judged(Expected(attributes=wants, allowed=allowed), attributes=has) == [field]
        assert judged(Expected(attributes=has, allowed=allowed), attributes=has) == []


@pytest.mark.parametrize("bit", [1, 7, 27, 32, 62])
def test_attribute_that_nobody_knows_is_refused(bit: int) -> None:
    assert judged(attributes=1 << bit) == ["attributes: reserved bits"]


@pytest.mark.parametrize("bit", [Attribute.DEBUG, Attribute.MIGRATABLE])
def test_td_that_is_open_to_somebody_is_not_secure(bit: Attribute) -> None:
    field = [f"attributes: {bit.name.lower()}"]
    assert judged(attributes=1 << bit) == field
    assert judged(Expected(attributes=1 << bit), attributes=1 << bit) == field


@pytest.mark.parametrize(
    ("member", "field", "length"),
    [
        ("mrtd", "MRTD", 48),
        ("mrconfigid", "MRCONFIGID", 48),
        ("mrowner", "MROWNER", 48),
        ("mrownerconfig", "MROWNERCONFIG", 48),
        ("report_data", "REPORTDATA", 64),
    ],
)
def test_what_was_launched_and_for_whom(member: str, field: str, length: int) -> None:
    says: dict[str, Any] = {member: hashlib.shake_128(member.encode()).digest(length)}
    wants = Expected(**says)
    assert judged(wants, **says) == []
    assert judged(wants) == [field]


@pytest.mark.parametrize("number", range(4))
def test_registers(number: int) -> None:
    value = bytes([number + 1]) * 48
    says: dict[str, Any] = {f"rtmr{number}": value}
    assert judged(Expected(rtmr={number: value}), **says) == []
    assert judged(Expected(rtmr={number: value})) == [f"RTMR{number}"]
    with pytest.raises(BadEvidence, match="no RTMR 4"):
        judged(Expected(rtmr={4: value}))


def test_revoked_platform() -> None:
    quote = decode(intel().quote(serial=99))

    def listed(revocations: bytes) -> list[str]:
        found = certificate.load_list(revocations)
        return wrong(verify(quote, Expected(), NOW, root=intel().root, revocations=[found]))

    assert listed(intel().revocations(5)) == []
    assert listed(intel().revocations(99)) == ["revocation list"]


#: Of the root's certificates, in the order of `intel`.
SIGNING, PLATFORM_CA = 2, 3


@pytest.mark.parametrize(
    ("revoked", "with_info", "problems"),
    [
        (PLATFORM_CA, False, ["revocation list"]),
        (SIGNING, True, ["revocation list"]),
        (SIGNING, False, []),  # nothing here is signed by it
        (99, True, []),
    ],
)
def test_revoked_authorities(revoked: int, with_info: bool, problems: list[str]) -> None:
    root = intel().root
    lists = [intel().revocations(77), intel().revocations(revoked, by_root=True)]
    info = collateral.tcb_info(intel().tcb_info(), [intel().signing], root) if with_info else None
    checks = verify(
        decode(intel().quote()),
        Expected(),
        NOW,
        info=info,
        revocations=[certificate.load_list(one) for one in lists],
        root=root,
    )
    assert wrong(checks) == problems
    assert sum(one.field == "revocation list" for one in checks) == 2


def test_list_of_somebody_else() -> None:
    found = certificate.load_list(amd().revocations(77))
    checks = verify(
        decode(intel().quote()), Expected(), NOW, root=intel().root, revocations=[found]
    )
    assert wrong(checks) == ["revocation list"]


# --- collateral ----------------------------------------------------------------------------------


def with_collateral(
    info: bytes | None = None,
    identity: bytes | None = None,
    allowed: frozenset[str] = frozenset(),
    at: datetime = NOW,
    **fields: Any,
) -> list[str]:
    signers, root = [intel().signing], intel().root
    checks = verify(
        decode(intel().quote(**fields)),
        Expected(allowed_tcb=allowed),
        at,
        info=collateral.tcb_info(info or intel().tcb_info(), signers, root),
        identity=collateral.qe_identity(identity or intel().qe_identity(), signers, root),
        root=root,
    )
    assert not any(one.verdict is Verdict.NOT_COMPARED and "status" in one.field for one in checks)
    return wrong(checks)


def test_platform_of_today() -> None:
    assert with_collateral() == []


def test_documents_by_a_key_whose_time_is_over() -> None:
    old = attrs.evolve(intel().signing, ends_at=NOW - timedelta(days=1))
    info = collateral.tcb_info(intel().tcb_info(), [old], intel().root)
    identity = collateral.qe_identity(intel().qe_identity(), [old], intel().root)
    checks = verify(
        decode(intel().quote()), Expected(), NOW, info=info, identity=identity, root=intel().root
    )
    assert wrong(checks) == ["validity of Intel SGX TCB Signing"]


@pytest.mark.parametrize("status", [*ALLOWABLE, "Revoked"])
@pytest.mark.parametrize("of", ["platform", "module", "enclave"])
def test_what_intel_says_of_each_part(of: str, status: str) -> None:
    info = intel().tcb_info(statuses={of: status}) if of != "enclave" else None
    identity = intel().qe_identity(status=status) if of == "enclave" else None
    field = {"platform": "TCB status", "module": "TDX module status"}.get(
        of, "quoting enclave status"
    )
    assert with_collateral(info, identity) == [field]
    allowed = with_collateral(info, identity, frozenset({status}) & frozenset(ALLOWABLE))
    assert allowed == ([field] if status == "Revoked" else [])


def test_what_needs_more_is_not_secure_and_what_is_old_is_not_valid() -> None:
    signers, root = [intel().signing], intel().root
    for status, code in (("SWHardeningNeeded", 3), ("OutOfDate", 1), ("Revoked", 1)):
        document = intel().tcb_info(statuses={"platform": status})
        info = collateral.tcb_info(document, signers, root)
        checks = verify(decode(intel().quote()), Expected(), NOW, info=info, root=root)
        assert exit_code(checks) == code
        (found,) = [one for one in checks if one.field == "TCB status"]
        assert (found.found, found.why) == (status, "INTEL-SA-00001")


def test_older_parts() -> None:
    older = bytes([4, *TEE_TCB_SVN[1:]])
    assert with_collateral(tee_tcb_svn=older) == ["TDX module status"]
    # Without the module of 1.5 the first two versions are the platform's.
    assert with_collateral(tee_tcb_svn=bytes([4, 0, *TEE_TCB_SVN[2:]])) == ["TCB status"]
    unknown = bytes([1, *TEE_TCB_SVN[1:]])
    assert with_collateral(tee_tcb_svn=unknown) == ["TDX module status"]
    assert with_collateral(enclave={**ENCLAVE, "isvsvn": 5}) == ["quoting enclave status"]
    assert with_collateral(enclave={**ENCLAVE, "isvsvn": 3}) == ["quoting enclave status"]


def test_collateral_of_another_platform() -> None:
    assert with_collateral(intel().tcb_info(fmspc=FMSPC[::-1].hex())) == ["FMSPC"]
    assert with_collateral(intel().tcb_info(pceId="0001")) == ["FMSPC"]
    identity = intel().qe_identity(attributes="ff" * 16)
    assert with_collateral(None, identity) == ["quoting enclave"]


def test_collateral_gets_old() -> None:
    late, early = NOW + timedelta(days=30), NOW - timedelta(days=30)
    for at in (late, early):
        assert with_collateral(at=at) == ["validity of TCB info", "validity of identity"]


@pytest.mark.parametrize("spaces", ["", " ", "\n  "])
def test_collateral_is_signed_to_the_letter(spaces: str) -> None:
    signers, root = [intel().signing], intel().root
    value = {"id": "TDX", "version": 3, "issueDate": "2026-01-01T00:00:00Z", "fmspc": "00",
             "nextUpdate": "2026-01-01T00:00:00Z", "pceId": "00", "tcbLevels": []}  # fmt: skip
    good = intel().document("tcbInfo", value, spaces=spaces)
    assert collateral.tcb_info(good, signers, root).document.fmspc == b"\0"
    other = good.replace(b'"fmspc":"00"', b'"fmspc":"01"')
    for content, by in ((other, signers), (good, []), (good, [root])):
        with pytest.raises(BadEvidence, match="has signed the tcbInfo"):
            collateral.tcb_info(content, by, root)
    with pytest.raises(BadEvidence, match="has signed"):
        collateral.tcb_info(good, signers, pck.root())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"signature":"00","tcbInfo":{}}', b'{"tcbInfo":{}}',
     b'{"tcbInfo":{},"signature":"zz"}', b'{"tcbInfo":[],"signature":""}', b"\xff",
     b"[" * 100_000],
)  # fmt: skip
def test_document_that_is_none(content: bytes) -> None:
    with pytest.raises(BadEvidence):
        collateral.tcb_info(content, [intel().signing], intel().root)


@pytest.mark.parametrize(
    "number",
    [-1, 256, 10**4000, float("inf"), float("nan"), "many", None],
    ids=["negative", "wide", "4001 digits", "infinite", "nan", "text", "null"],
)
def test_numbers_of_documents_have_bounds(number: Any) -> None:
    signers, root = [intel().signing], intel().root
    level = {"tcb": {"sgxtcbcomponents": [{"svn": number}]}, "tcbStatus": "UpToDate"}
    with pytest.raises(BadEvidence, match="tcbInfo cannot be read"):
        collateral.tcb_info(intel().tcb_info(tcbLevels=[level]), signers, root)
    wider = number << 8 if isinstance(number, int) else number
    with pytest.raises(BadEvidence, match="enclaveIdentity cannot be read"):
        collateral.qe_identity(intel().qe_identity(isvprodid=wider), signers, root)
    level = {"tcb": {"isvsvn": wider}, "tcbStatus": "UpToDate"}
    with pytest.raises(BadEvidence, match="enclaveIdentity cannot be read"):
        collateral.qe_identity(intel().qe_identity(tcbLevels=[level]), signers, root)


@pytest.mark.parametrize(
    "said",
    [
        {"svns": (1 << 16_000, *SVNS[1:])},
        {"svns": (*SVNS[:-1], 256)},
        {"svns": (-1, *SVNS[1:])},
        {"pcesvn": 1 << 16},
        {"pcesvn": -1},
        {"pce_id": bytes(3)},
        {"fmspc": FMSPC + b"\0"},
    ],
)
def test_platform_that_cannot_be_is_no_evidence(said: dict[str, Any]) -> None:
    with pytest.raises(BadEvidence, match="is not a PCK's"):
        judged(platform=platform_extension(**said))


def test_document_of_another_kind() -> None:
    signers, root = [intel().signing], intel().root
    for members, problem in (({"id": "SGX"}, "of SGX, version 3"), ({"version": 4}, "version 4")):
        with pytest.raises(Unsupported, match=problem):
            collateral.tcb_info(intel().tcb_info(**members), signers, root)
    with pytest.raises(Unsupported, match="of QE, version 2"):
        collateral.qe_identity(intel().qe_identity(id="QE"), signers, root)


# --- any bytes -----------------------------------------------------------------------------------


@given(st.binary(max_size=800))
def test_any_bytes_are_a_quote_or_an_error(content: bytes) -> None:
    with pytest.raises((BadEvidence, Unsupported)):
        decode(content)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_quote_is_judged_or_refused(data: st.DataObject) -> None:
    """And never believed, but for bytes that nobody signs."""
    content = bytearray(real(5))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))
    try:
        found = decode(bytes(content[:length]))
        checks = verify(found, Expected(), AT)
    except (BadEvidence, Unsupported):
        return
    same = decode(real(5))
    assert wrong(checks) or (found.report, found.qe) == (same.report, same.qe)


_NUMBERS = st.integers() | st.integers(0, 16_000).map(lambda bits: 1 << bits)


@given(st.lists(_NUMBERS, min_size=16, max_size=16), _NUMBERS, st.binary(), st.binary())
def test_a_platform_has_bounds_or_is_an_error(
    svns: list[int], pcesvn: int, pce_id: bytes, fmspc: bytes
) -> None:
    said = platform_extension(svns, pcesvn, pce_id, fmspc)
    leaf = certificate.load(decode(real(5)).pck_chain)[0]
    try:
        found = Platform.of(attrs.evolve(leaf, extensions={PLATFORM_OID: said}))
    except BadEvidence:
        return
    assert max(*found.svns, 0) < 256
    assert found.pcesvn < 1 << 16
    assert (len(found.pce_id), len(found.fmspc)) == (2, 6)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_an_error(content: bytes) -> None:
    with pytest.raises(BadEvidence):
        collateral.qe_identity(content, [intel().signing], intel().root)
