"""``verify`` and ``fetch-certs``: for owners, who have files and no supervisor.

Nothing is fetched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Column, Table

from supervisor.cli.output import as_json, print_json, stdout
from supervisor.cli.parameters import (
    Command,
    Computation,
    FileContent,
    Hex,
    Number,
    Parsed,
    Registers,
    SecurityVersions,
    SnpPolicy,
    Version,
)
from supervisor.config import PolicyWord
from supervisor.tee import binding, certificate, sev
from supervisor.tee.checks import Verdict, document, exit_code
from supervisor.tee.evidence import BadEvidence, decoded
from supervisor.tee.facts import Technology
from supervisor.tee.measure import Measured, measure
from supervisor.tee.snp import kds, table
from supervisor.tee.snp import report as snp_report
from supervisor.tee.snp import verify as verify_snp
from supervisor.tee.snp.report import PolicyBit, Product
from supervisor.tee.tdx import collateral, pck
from supervisor.tee.tdx import quote as tdx_quote
from supervisor.tee.tdx import verify as verify_tdx
from supervisor.tee.tdx.quote import Attribute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.tee.certificate import Certificate
    from supervisor.tee.checks import Check
    from supervisor.tee.snp.report import Report
    from supervisor.tee.tdx.quote import Quote

T = TypeVar("T")

_STYLES = {Verdict.OK: "green", Verdict.FAILED: "red", Verdict.INSECURE: "red"}

#: How fields that nobody has compared can be.
_OPTIONS = {
    "measurement": "--measurement",
    "host data": "--computation",
    "report data": "--nonce",
    "TCB status": "--tcb-info",
    "quoting enclave status": "--qe-identity",
    "MRTD": "--mrtd",
    "MRCONFIGID": "--computation",
    "REPORTDATA": "--nonce",
}

_certificates = Parsed(certificate.load)
_list = Parsed(certificate.load_list)
_certificate = Parsed(certificate.load_one)


def _snp_report(content: bytes) -> tuple[Report, Mapping[str, bytes]]:
    """With the host's certificates, if there are any behind it."""
    content = decoded(content)
    if tdx_quote.is_one(content):
        raise BadEvidence("this is a quote of TDX: see verify tdx")
    found, at_hand = table.split(content)
    return snp_report.decode(found), at_hand


def _tdx_quote(content: bytes) -> Quote:
    content = decoded(content)
    if len(content) == snp_report.LENGTH:
        raise BadEvidence("this looks like a report of SEV-SNP: see verify snp")
    return tdx_quote.decode(content)


#: Of both kinds of evidence.
_nonce = click.option("--nonce", type=Hex(64, fill=True), help="What you asked with.")
_tls_certificate = click.option(
    "--tls-certificate",
    type=_certificate,
    help="What the agent showed you over TLS: the evidence must be of its key and --nonce.",
)
_allow_debug = click.option("--allow-debug", is_flag=True, help="Let one pass that can be read.")
_allow_migration = click.option(
    "--allow-migration", is_flag=True, help="Let one pass that an agent can take over."
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_at = click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]),
    metavar="DATE",
    help="When all that is signed must be valid, such as 2026-05-01 or 2026-05-01T12:00:00Z;"
    " default now. UTC, if it names no zone.",
)


@click.group()
def verify() -> None:
    """Verify what was launched, from files, without a network.

    Files may be binary, hex or base64, certificates DER or PEM. A field that you expect nothing of
    is shown, and not compared.

    \b
    Exit codes: 0 verified        1 did not validate   2 unsupported
                3 not secure      4 bad arguments or files
    """


@verify.command("snp", cls=Command)
@click.argument("report", type=Parsed(_snp_report))
@click.option(
    "--leaf",
    type=_certificate,
    help="Certificate of the key that signed, if it is not in REPORT: a VCEK or a VLEK.",
)
@click.option("--chain", type=_certificates, help="Certificates above it, if not those shipped.")
@click.option("--measurement", type=Hex(48), help="The launch digest that you expect.")
@click.option(
    "--computation", type=Computation(), help="Its SHA-256 must be the host data. As run takes it."
)
@click.option("--host-data", type=Hex(32), help="The host data, if not of a computation.")
@click.option("--id-key-digest", type=Hex(48), help="SHA-384 of the key of the ID block.")
@click.option("--author-key-digest", type=Hex(48), help="SHA-384 of the author's key.")
@click.option(
    "--policy",
    type=SnpPolicy(),
    help="The policy that the guest must have, bit for bit; or as a run has it, such as no-smt.",
)
@click.option("--vmpl", type=click.IntRange(0, 3), default=0, help="Least trusted level allowed.")
@click.option(
    "--minimum-tcb", type=SecurityVersions(), help="Such as bootloader=3,snp=8,microcode=115."
)
@_nonce
@_tls_certificate
@_allow_debug
@_allow_migration
@click.option("--crl", type=_list, help="AMD's revocation list of the product.")
@_at
@as_json
def of_snp(
    report: tuple[Report, Mapping[str, bytes]],
    leaf: Certificate | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Verify an SEV-SNP attestation report (versions 2 to 5).

    REPORT may have the host's table of certificates behind it, as guests get it.

    Tried with real reports and certificates of Milan, versions 2 and 3.
    """
    found, at_hand = report
    checks = verify_snp.verify(
        found,
        leaf or table.leaf(at_hand),
        given["chain"] or (),
        _expected_of_report(given),
        _time(given),
        revocations=given["crl"],
    )
    _show(checks, as_json=as_json)


def _expected_of_report(given: dict[str, Any]) -> verify_snp.Expected:
    same = ("measurement", "id_key_digest", "author_key_digest", "vmpl")
    policy = given["policy"]
    return verify_snp.Expected(
        policy=policy and policy.number,
        least_abi=policy and policy.least_abi,
        report_data=_report_data(given),
        host_data=_bound(given, "host_data", Technology.SEV_SNP),
        allowed=_allowed(given, PolicyBit.DEBUG, PolicyBit.MIGRATE_MA),
        minimum_tcb=given["minimum_tcb"] or {},
        **{name: given[name] for name in same},
    )


@verify.command("tdx", cls=Command)
@click.argument("quote", type=Parsed(_tdx_quote))
@click.option("--mrtd", type=Hex(48), help="The launch digest that you expect.")
@click.option("--rtmr", type=Registers(), multiple=True, help="A register, such as 1=HEX.")
@click.option(
    "--computation", type=Computation(), help="Its SHA-256 must be MRCONFIGID. As run takes it."
)
@click.option("--mrconfigid", type=Hex(48), help="MRCONFIGID, if not of a computation.")
@click.option("--mrowner", type=Hex(48), help="MROWNER.")
@click.option("--mrownerconfig", type=Hex(48), help="MROWNERCONFIG.")
@click.option("--attributes", type=Number(), help="The TD's attributes, bit for bit.")
@click.option("--tcb-info", type=FileContent(), help="Intel's TCB info of such platforms.")
@click.option("--qe-identity", type=FileContent(), help="Intel's identity of the quoting enclave.")
@click.option("--tcb-signing", type=_certificates, help="Certificate that signed these two.")
@click.option(
    "--allow-tcb-status",
    type=click.Choice(collateral.ALLOWABLE),
    multiple=True,
    help="Let a platform pass of which Intel says this.",
)
@_nonce
@_tls_certificate
@_allow_debug
@_allow_migration
@click.option(
    "--crl",
    type=_list,
    multiple=True,
    help="A revocation list of Intel's: of the root, or of the platforms' authority.",
)
@_at
@as_json
def of_tdx(quote: Quote, as_json: bool, **given: Any) -> None:
    """Verify an Intel TDX quote (versions 4 and 5).

    Tried with real quotes, one of each version; collateral was tried with what the tests sign.
    """
    signers = given["tcb_signing"] or ()
    info, identity = given["tcb_info"], given["qe_identity"]
    if signers and not (info or identity):
        raise BadEvidence("--tcb-signing needs --tcb-info or --qe-identity, which it signed")
    if given["allow_tcb_status"] and not info:
        raise BadEvidence("--allow-tcb-status needs --tcb-info, which says the status")
    checks = verify_tdx.verify(
        quote,
        _expected_of_quote(given),
        _time(given),
        info=collateral.tcb_info(info, signers, pck.root()) if info else None,
        identity=collateral.qe_identity(identity, signers, pck.root()) if identity else None,
        revocations=given["crl"],
    )
    _show(checks, as_json=as_json)


def _expected_of_quote(given: dict[str, Any]) -> verify_tdx.Expected:
    registers = [number for number, _ in given["rtmr"]]
    if len(registers) != len(set(registers)):
        raise BadEvidence("a register of --rtmr is said twice")
    same = ("mrtd", "mrowner", "mrownerconfig", "attributes")
    return verify_tdx.Expected(
        report_data=_report_data(given),
        mrconfigid=_bound(given, "mrconfigid", Technology.TDX),
        rtmr=dict(given["rtmr"]),
        allowed=_allowed(given, Attribute.DEBUG, Attribute.MIGRATABLE),
        allowed_tcb=frozenset(given["allow_tcb_status"]),
        **{name: given[name] for name in same},
    )


@verify.command("sev", cls=Command)
@click.argument("measurement", type=Parsed(sev.read_measurement))
@click.option(
    "--tik", type=Parsed(sev.read_key), required=True, help="Your transport integrity key."
)
@click.option("--policy", type=Number(), required=True, help="The policy that the guest has.")
@click.option(
    "--api", type=Version(), required=True, help="Of the SEV firmware, MAJOR.MINOR, by query-sev."
)
@click.option("--build-id", type=click.IntRange(0, 255), required=True, help="Of the firmware.")
@click.option("--digest", type=Hex(32), help="The launch digest, if not of files.")
@click.option("--firmware", type=_FILE, help="OVMF, as it was launched.")
@click.option("--kernel", type=_FILE, help="A kernel that is booted directly.")
@click.option("--initrd", type=_FILE, help="Its initramfs.")
@click.option("--cmdline", default="", help="Its command line.")
@click.option("--vcpus", type=click.IntRange(1), help="For SEV-ES: how many CPUs the guest has.")
@click.option("--cpu", help="For SEV-ES: their model, such as EPYC.")
@click.option(
    "--legacy-vm-type",
    is_flag=True,
    help="For SEV-ES: the guest was started by QEMU before 9.1 or Linux before 6.10.",
)
@_allow_debug
@click.option("--allow-send", is_flag=True, help="Let one pass that another machine may get.")
@click.option("--allow-key-sharing", is_flag=True, help="Let one pass that shares its key.")
@as_json
def of_sev(measurement: sev.LaunchMeasurement, tik: bytes, as_json: bool, **given: Any) -> None:
    """Verify the launch measurement of an SEV or SEV-ES guest.

    Held against libvirt's virt-qemu-sev-validate. No measurement of a real processor was at hand.
    """
    words = (PolicyWord.DEBUG, PolicyWord.SEND, PolicyWord.KEY_SHARING)
    major, minor = given["api"]
    allowed = (word for word in words if given[f"allow_{word.replace('-', '_')}"])
    checks = sev.verify(
        measurement,
        tik,
        sev.Platform(major, minor, given["build_id"]),
        given["policy"],
        _launch_digest(given),
        frozenset(allowed),
    )
    _show(checks, as_json=as_json)


def _launch_digest(given: dict[str, Any]) -> bytes:
    digest: bytes | None = given["digest"]
    if (digest is None) == (given["firmware"] is None):
        raise BadEvidence("say either --digest or --firmware")
    technology = sev.technology_of(given["policy"])
    registers = given["vcpus"] or given["cpu"] or given["legacy_vm_type"]
    if digest is not None:
        if registers or given["kernel"] or given["initrd"] or given["cmdline"]:
            raise BadEvidence("--digest is of everything: say no file, --cmdline, --vcpus or --cpu")
        return digest
    if registers and technology is not Technology.SEV_ES:
        raise BadEvidence(
            "--vcpus, --cpu and --legacy-vm-type are for SEV-ES, and the policy is of SEV"
        )
    if technology is Technology.SEV_ES and not (given["vcpus"] and given["cpu"]):
        raise BadEvidence("the policy is of SEV-ES: say --vcpus and --cpu, which are measured")
    if not given["kernel"] and (given["initrd"] or given["cmdline"]):
        raise BadEvidence("--initrd and --cmdline need --kernel")
    found = measure(
        technology,
        Measured(
            vcpus=given["vcpus"] or 1,
            cpu=given["cpu"] or "",
            **{name: given[name] for name in ("firmware", "kernel", "initrd", "cmdline")},
        ),
    )
    if found.problem:
        raise BadEvidence(found.problem)
    legacy = technology is Technology.SEV_ES and given["legacy_vm_type"]
    return bytes.fromhex(found.legacy_digest if legacy else found.digest)


def _report_data(given: dict[str, Any]) -> bytes | None:
    nonce: bytes | None = given["nonce"]
    if given["tls_certificate"] is None:
        return nonce
    if nonce is None:
        raise BadEvidence("--tls-certificate needs the --nonce that you asked with")
    return binding.report_data(given["tls_certificate"].public_key, nonce)


def _bound(given: dict[str, Any], member: str, technology: Technology) -> bytes | None:
    """What binds the guest to its computation."""
    value: bytes | None = given[member]
    if given["computation"] is None:
        return value
    if value is not None:
        option = member.replace("_", "-")
        raise BadEvidence(f"--computation and --{option} say the same in two ways")
    return binding.field(technology, given["computation"])


def _allowed(given: dict[str, Any], debug: T, migration: T) -> frozenset[T]:
    allows = {debug: given["allow_debug"], migration: given["allow_migration"]}
    return frozenset(bit for bit, allowed in allows.items() if allowed)


def _time(given: dict[str, Any]) -> datetime:
    at: datetime | None = given["at"]
    if at is None:
        return datetime.now(UTC)
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


@click.command(cls=Command)
@click.argument("report", type=Parsed(_snp_report))
@click.option("--product", type=click.Choice([str(one) for one in Product]), help="If asked for.")
def fetch_certs(report: tuple[Report, Mapping[str, bytes]], product: str | None) -> None:
    """Print where AMD has the certificates for a report, for those who have a network.

    Nothing is fetched. A report of version 2 does not say which processor it is of.
    """
    urls = kds.urls(report[0], Product(product) if product else None)
    for file, url in urls.items():
        click.echo(f"curl -sSf -o {file} '{url}'")


def _show(checks: list[Check], *, as_json: bool) -> None:
    code = exit_code(checks)
    if as_json:
        print_json(document(checks))
        raise SystemExit(code)
    console = stdout()
    rows = Table("FIELD", "VERDICT", Column("FOUND", overflow="fold"), box=None, pad_edge=False)
    for one in checks:
        rows.add_row(one.field, one.verdict, one.found or "-", style=_STYLES.get(one.verdict, ""))
    console.print(rows)
    bad = [one for one in checks if one.verdict in (Verdict.FAILED, Verdict.INSECURE)]
    console.print(f"not verified: {', '.join(one.field for one in bad)}" if bad else "verified")
    for one in bad:
        # In lines of their own, so that values of any length can be held against each other.
        console.print(f"{one.field}: {one.why or 'it is not what it should be'}")
        console.print(f"  found:    {one.found}", soft_wrap=True)
        if one.expected:
            console.print(f"  expected: {one.expected}", soft_wrap=True)
    for one in (one for one in checks if one.verdict is Verdict.NOT_COMPARED):
        advice = f"say {option}" if (option := _OPTIONS.get(one.field)) else one.why
        if advice:
            console.print(f"{one.field} was not compared: {advice}")
    raise SystemExit(code)
