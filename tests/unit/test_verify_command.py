"""``verify`` and ``fetch-certs``: what they print, and their exit codes."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli import main, output
from supervisor.tee.evidence import BadEvidence
from supervisor.tee.snp import table
from tests.unit.test_verify_snp import VECTORS

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

GOOD = ("tr-test-report.bin", "tr-test-vcek.der")
VLEK = ("tr-test-vlek-report.bin", "tr-test-vlek.der")
DEBUG = ("go-attestation.bin", "go-vcek.cer")
AT = ("--at", "2025-06-01")


def snp(files: tuple[str, str], *options: str) -> Result:
    report, leaf = (str(VECTORS / file) for file in files)
    return CliRunner().invoke(main, ["verify", "snp", report, "--leaf", leaf, *options])


@pytest.mark.parametrize(
    ("files", "options", "code"),
    [
        (GOOD, AT, 0),
        (("sev-report_milan.hex", "sev-vcek_milan.der"), AT, 0),
        (VLEK, (*AT, "--vmpl", "1"), 0),
        (VLEK, ("--vmpl", "1"), 1),
        (VLEK, AT, 1),
        (DEBUG, AT, 3),
        (DEBUG, (*AT, "--allow-debug"), 0),
        (DEBUG, (*AT, "--nonce", "01020304050000"), 3),
        (DEBUG, (*AT, "--nonce", "0102030406"), 1),
        (GOOD, (*AT, "--minimum-tcb", "snp=8,microcode=115"), 0),
        (GOOD, (*AT, "--minimum-tcb", "snp=9"), 1),
        (GOOD, (*AT, "--policy", "0x3001f"), 0),
        (GOOD, (*AT, "--policy", "0x13001f"), 1),
        (GOOD, (*AT, "--policy", "0x30000"), 1),
        (GOOD, (*AT, "--policy", "no-debug,smt"), 0),
        (GOOD, ("--at", "2025-06-01T00:00:00Z"), 0),
        (GOOD, ("--at", "2030-01-24T19:00:00+02:00"), 0),
        (GOOD, ("--at", "2030-01-24T19:00:00"), 1),
        (GOOD, (*AT, "--measurement", "00" * 48), 1),
        (GOOD, (*AT, "--host-data", "00" * 32), 0),
        (GOOD, (*AT, "--chain", str(VECTORS / "sev-cert_chain_milan")), 0),
    ],
)
def test_exit_codes(files: tuple[str, str], options: tuple[str, ...], code: int) -> None:
    done = snp(files, *options)
    assert done.exit_code == code, done.output
    assert ("not verified: " in done.output) is (code != 0)


@pytest.mark.parametrize(
    "written",
    [
        b"{}",
        b'{"computation": [123, 125]}',
        b'{"computation": "e30=", "ttl": "1h"}',
        b'{\n  "computation": [\n    123,\n    125\n  ]\n}\n',
    ],
)
def test_computation_as_run_takes_it(tmp_path: Path, written: bytes) -> None:
    """A guest is bound to the bytes, however they were sent."""
    (tmp_path / "computation").write_bytes(written)
    done = snp(GOOD, *AT, "--computation", str(tmp_path / "computation"), "--json")
    (host_data,) = [one for one in json.loads(done.output)["checks"] if one["field"] == "host data"]
    assert host_data["expected"] == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--nonce", "xyz"), "'xyz' is not hex"),
        (("--nonce", "00" * 65), "has 65 bytes, not 64"),
        (("--measurement", "00"), "has 1 bytes, not 48"),
        (("--minimum-tcb", "snp"), "'snp' is not NAME=NUMBER"),
        (("--minimum-tcb", "psp=1"), "fmc, bootloader, tee, snp, microcode"),
        (("--policy", "0x30000z"), "no number such as 0x30000"),
        (("--policy", "no-debugging"), "did you mean 'no-debug'?"),
        (("--policy", "no-send"), "SEV-SNP does not know the word 'send'"),
        (("--vmpl", "4"), "4 is not in the range"),
        (("--at", "today"), "does not match the formats"),
        (("--chain", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--chain", str(VECTORS / "README.md")), "README.md: not a certificate"),
        (("--crl", str(VECTORS / GOOD[1])), f"'--crl': {VECTORS / GOOD[1]}: not a revocation list"),
        (("--computation", "/dev/zero"), "/dev/zero: longer than"),
        (("--computation", str(VECTORS / "README.md"), "--host-data", "00" * 32), "in two ways"),
        (("--computation", "/dev/null"), "/dev/null is empty"),
        (("--chain", "/dev/null"), "/dev/null is empty"),
        (("--crl", "/dev/null"), "/dev/null is empty"),
        (("--chain", str(VECTORS / GOOD[0])), "an attestation report, and no certificate"),
        (
            ("--nonce", "00", "--tls-certificate", str(VECTORS / "sev-cert_chain_milan")),
            "there are 2 certificates, and one is meant",
        ),
        (("--measurement", "00" * 48, "--measurement", "11" * 48), "--measurement is said twice"),
        (("--nonce", "00", "--nonce", "00"), "--nonce is said twice"),
        (("--minimum-tcb", "snp=9,snp=8"), "snp is said twice"),
        (("--verbose",), "No such option"),
    ],
)
def test_bad_arguments(options: tuple[str, ...], problem: str) -> None:
    done = snp(GOOD, *options)
    assert (done.exit_code, problem in done.output) == (4, True), done.output


def test_bad_and_unsupported_reports(tmp_path: Path) -> None:
    content = bytearray((VECTORS / GOOD[0]).read_bytes())
    for report, code, problem in (
        (content[:-1], 4, "not an attestation report: it has 1183 bytes, not 1184"),
        (b"\6" + content[1:], 2, "the report has version 6; versions 2 to 5 are known"),
        (content[:0x48] + b"\x1c" + content[0x49:], 2, "not signed by a VCEK or a VLEK"),
    ):
        (tmp_path / "report").write_bytes(report)
        done = snp((str(tmp_path / "report"), GOOD[1]))
        assert (done.exit_code, problem in done.output) == (code, True), done.output


@pytest.mark.parametrize(("words", "right"), [("smt,no-debug", True), ("no-smt", False)])
def test_policy_in_words(words: str, right: bool) -> None:
    """As a run has them; what they leave open is as runs have it."""
    done = snp(GOOD, *AT, "--policy", words, "--json")
    checks = {one["field"]: one for one in json.loads(done.output)["checks"]}
    assert (checks["policy: smt"]["verdict"] == "ok") is right
    assert checks["policy: rapl_dis"]["verdict"] == "ok"


def test_failures_are_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal is, values can be held against each other."""
    monkeypatch.setattr(output, "_PIPE_WIDTH", 80)
    lines = snp(GOOD, *AT, "--measurement", "11" * 48).output.splitlines()
    at = lines.index("measurement: it is not what it should be")
    assert lines[at + 1].startswith("  found:    a1f39304")
    assert [len(line) for line in lines[at + 1 : at + 3]] == [12 + 96] * 2
    assert lines[at + 2] == f"  expected: {'11' * 48}"


def test_computation_is_not_the_reports(tmp_path: Path) -> None:
    (tmp_path / "computation").write_bytes(b"{}")
    done = snp(GOOD, *AT, "--computation", str(tmp_path / "computation"))
    assert done.exit_code == 1
    assert "not verified: host data" in done.output
    assert hashlib.sha256(b"{}").hexdigest() in done.output


def test_what_is_not_compared_is_said() -> None:
    assert "measurement was not compared: say --measurement" in snp(GOOD, *AT).output
    said = snp(GOOD, *AT, "--measurement", "a1f39304" + "00" * 44)
    assert "measurement was not compared" not in said.output


def test_as_json() -> None:
    done = snp(DEBUG, *AT, "--json")
    answer: dict[str, Any] = json.loads(done.output)
    assert (answer["verified"], answer["exit_code"], done.exit_code) == (False, 3, 3)
    assert {
        "field": "policy: debug",
        "verdict": "insecure",
        "found": "1",
        "expected": "0",
        "why": "the host may read and change the guest's memory",
    } in answer["checks"]


@pytest.mark.parametrize(("content", "code"), [(b"short", 4), (b"\7" + bytes(1183), 2)])
def test_evidence_that_cannot_be_read_as_json(tmp_path: Path, content: bytes, code: int) -> None:
    (tmp_path / "report").write_bytes(content)
    leaf = str(VECTORS / GOOD[1])
    done = CliRunner().invoke(
        main, ["verify", "snp", str(tmp_path / "report"), "--leaf", leaf, "--json"]
    )
    answer = json.loads(done.stdout)
    assert (answer["verified"], answer["exit_code"], done.exit_code) == (False, code, code)
    assert "report" in answer["problem"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--chain", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--nonce", "00", "--nonce", "00"), "--nonce is said twice"),
        (("--host-data", "00" * 32, "--computation", str(VECTORS / "README.md")), "in two ways"),
    ],
)
def test_bad_arguments_as_json(options: tuple[str, ...], problem: str) -> None:
    done = snp(GOOD, "--json", *options)
    answer = json.loads(done.stdout)
    assert (answer["verified"], answer["exit_code"], done.exit_code) == (False, 4, 4)
    assert problem in answer["problem"]


def tdx(version: int, *options: str) -> Result:
    quote = str(VECTORS / f"tdx{version}.dat")
    return CliRunner().invoke(main, ["verify", "tdx", quote, *options])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--tcb-info", "/dev/null"), "/dev/null is empty"),
        (("--qe-identity", "/dev/null"), "/dev/null is empty"),
        (("--tcb-signing", str(VECTORS / GOOD[1])), "--tcb-signing needs --tcb-info"),
        (("--allow-tcb-status", "OutOfDate"), "--allow-tcb-status needs --tcb-info"),
        (("--rtmr", "1=" + "00" * 48, "--rtmr", "1=" + "11" * 48), "is said twice"),
    ],
)
def test_what_would_not_be_compared_is_refused(options: tuple[str, ...], problem: str) -> None:
    """Who says what should be compared must not be told that all is well."""
    done = tdx(5, *AT, *options)
    assert (done.exit_code, problem in done.output) == (4, True), done.output


@pytest.mark.parametrize(
    ("version", "options", "code"),
    [
        (5, AT, 0),
        (5, ("--at", "2032-01-01"), 1),
        (4, AT, 3),
        (4, (*AT, "--allow-debug"), 0),
        (4, (*AT, "--mrtd", "00" * 48), 1),
        (5, (*AT, "--attributes", "0x10000000"), 0),
        (5, (*AT, "--attributes", "0"), 1),
        (5, (*AT, "--rtmr", "2=" + "00" * 48, "--rtmr", "3=" + "00" * 48), 0),
        (5, (*AT, "--rtmr", "1=" + "00" * 48), 1),
        (5, (*AT, "--mrconfigid", "00" * 48), 0),
        (5, (*AT, "--computation", str(VECTORS / "README.md")), 1),
        (5, (*AT, "--nonce", "6d6ab13b"), 1),
        (5, (*AT, "--rtmr", "4=00"), 4),
        (5, (*AT, "--rtmr", "1=00"), 4),
        (5, (*AT, "--tcb-info", str(VECTORS / "README.md")), 4),
        (5, (*AT, "--allow-tcb-status", "Revoked"), 4),
    ],
)
def test_exit_codes_of_quotes(version: int, options: tuple[str, ...], code: int) -> None:
    done = tdx(version, *options)
    assert done.exit_code == code, done.output


def test_quote_that_is_none() -> None:
    done = CliRunner().invoke(main, ["verify", "tdx", str(VECTORS / GOOD[0])])
    assert (done.exit_code, "a report of SEV-SNP: see verify snp" in done.output) == (4, True)
    for command in (["verify", "snp"], ["fetch-certs"]):
        done = CliRunner().invoke(main, [*command, str(VECTORS / "tdx5.dat")])
        assert (done.exit_code, "a quote of TDX: see verify tdx" in done.output) == (4, True)
    assert "TCB status was not compared: say --tcb-info" in tdx(5, *AT).output


def fetch(report: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["fetch-certs", str(VECTORS / report), *options])


def test_fetch_certs() -> None:
    done = fetch(GOOD[0], "--product", "Milan")
    chip = "c38427a30d4c7af9d96f7a15b97269825a64cb76a2352ffd5d18115d89ad473f8e8c0bcd9a5d9286"
    chip += "612bad4aadfb4426205a3b9e4fea82301135a170e477524e"
    assert done.output.splitlines()[0] == (
        f"curl -sSf -o vcek.der 'https://kdsintf.amd.com/vcek/v1/Milan/{chip}"
        "?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115'"
    )
    assert [line.split()[3] for line in done.output.splitlines()] == [
        "vcek.der",
        "chain.pem",
        "crl.der",
    ]


def test_certificates_that_cannot_be_fetched() -> None:
    done = fetch(GOOD[0])
    assert (done.exit_code, "say --product" in done.output) == (4, True)
    done = fetch(VLEK[0])
    assert (done.exit_code, "a VLEK comes from the provider" in done.output) == (2, True)


# --- the host's certificates behind a report ------------------------------------------------

VCEK, VLEK_KIND, ASK = (
    UUID(one)
    for one in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    )
)


def extended(report: bytes, *certificates: tuple[bytes, bytes]) -> bytes:
    """As a guest gets it: *certificates* have their GUIDs before them."""
    at = 24 * (len(certificates) + 1)
    entries, contents = b"", b""
    for guid, content in certificates:
        entries += struct.pack("<16sII", guid, at + len(contents), len(content))
        contents += content
    return report + (entries + bytes(24) + contents).ljust(0x4000, b"\0")


def with_leaf(files: tuple[str, str], kind: bytes) -> bytes:
    report, leaf = ((VECTORS / file).read_bytes() for file in files)
    return extended(report, (ASK.bytes, b"another"), (kind, leaf))


@pytest.mark.parametrize(
    ("files", "kind", "options"),
    [
        (GOOD, VCEK.bytes, ()),
        (GOOD, VCEK.bytes_le, ()),
        (VLEK, VLEK_KIND.bytes, ("--vmpl", "1")),
    ],
)
def test_certificate_is_behind_the_report(
    tmp_path: Path, files: tuple[str, str], kind: bytes, options: tuple[str, ...]
) -> None:
    made = with_leaf(files, kind)
    for content in (made, base64.b64encode(made), made.hex().encode()):
        (tmp_path / "report").write_bytes(content)
        arguments = ["verify", "snp", str(tmp_path / "report"), *AT, *options]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("behind", "problem"),
    [
        (b"", "say --leaf"),
        (bytes(0x4000), "say --leaf"),
        (b"\1" * 100, "is no table of certificates"),
        (struct.pack("<16sII", VCEK.bytes, 48, 4) + bytes(24) + b"none", "not a certificate"),
        (struct.pack("<16sII", VCEK.bytes, 48, 5) + bytes(24) + b"none", "is no table"),
        (struct.pack("<16sII", VCEK.bytes, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24), "is no table"),
    ],
)
def test_what_is_behind_a_report_and_is_no_certificate(
    tmp_path: Path, behind: bytes, problem: str
) -> None:
    (tmp_path / "report").write_bytes((VECTORS / GOOD[0]).read_bytes() + behind)
    done = CliRunner().invoke(main, ["verify", "snp", str(tmp_path / "report"), *AT])
    assert done.exit_code == 4
    assert problem in done.output


@given(st.binary(max_size=3000))
def test_any_bytes_behind_a_report_are_read_or_refused(behind: bytes) -> None:
    report = bytes(1184)
    try:
        found, certificates = table.split(report + behind)
    except BadEvidence:
        return
    assert found == report
    assert all(one in behind for one in certificates.values())
