"""``verify`` and ``fetch-certs``: what they print, and their exit codes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from supervisor.cli import main
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
    ("options", "problem"),
    [
        (("--nonce", "xyz"), "'xyz' is not hex"),
        (("--nonce", "00" * 65), "has 65 bytes, not 64"),
        (("--measurement", "00"), "has 1 bytes, not 48"),
        (("--minimum-tcb", "snp"), "'snp' is not NAME=NUMBER"),
        (("--minimum-tcb", "psp=1"), "fmc, bootloader, tee, snp, microcode"),
        (("--policy", "debug"), "no number such as 0x30000"),
        (("--vmpl", "4"), "4 is not in the range"),
        (("--at", "today"), "does not match the formats"),
        (("--chain", "/no/such/file"), "/no/such/file: No such file or directory"),
        (("--chain", str(VECTORS / GOOD[0])), "not a certificate in DER or PEM"),
        (("--crl", str(VECTORS / GOOD[1])), "not a revocation list"),
        (("--computation", "/dev/zero"), "/dev/zero: longer than"),
        (("--computation", "/dev/null", "--host-data", "00" * 32), "in two ways"),
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


def tdx(version: int, *options: str) -> Result:
    quote = str(VECTORS / f"tdx{version}.dat")
    return CliRunner().invoke(main, ["verify", "tdx", quote, *options])


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
    assert (done.exit_code, "the quote has version 2" in done.output) == (2, True)
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
