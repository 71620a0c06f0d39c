"""``verify`` and ``fetch-certs``: for owners, who have files and no supervisor.

Nothing is fetched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from supervisor.cli.environment import fail
from supervisor.cli.output import as_json, print_json, stdout
from supervisor.errors import SupervisorError
from supervisor.tee import certificate
from supervisor.tee.checks import ExitCode, Verdict, exit_code
from supervisor.tee.evidence import MAX_BYTES, BadEvidence, Unsupported, decoded, from_hex
from supervisor.tee.snp import kds
from supervisor.tee.snp.report import TCB_PARTS, PolicyBit, Product, decode
from supervisor.tee.snp.verify import Expected, host_data_of
from supervisor.tee.snp.verify import verify as verify_snp

if TYPE_CHECKING:
    from supervisor.tee.checks import Check

_STYLES = {Verdict.OK: "green", Verdict.FAILED: "red", Verdict.INSECURE: "red"}

#: How a field that nobody has compared can be.
_OPTIONS = {
    "measurement": "--measurement",
    "host data": "--computation",
    "report data": "--nonce",
}


class _Command(click.Command):
    """Ends with `ExitCode.BAD_ARGUMENT` if it is called wrongly."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.show()
            ctx.exit(ExitCode.BAD_ARGUMENT)


class _File(click.ParamType[bytes]):
    """A file's content."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            with Path(value).open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        if len(content) > MAX_BYTES:
            self.fail(f"{value}: longer than {MAX_BYTES} bytes", param, ctx)
        return content


class _Hex(click.ParamType[bytes]):
    """A value in hex."""

    name = "hex"

    def __init__(self, length: int, *, fill: bool = False) -> None:
        self._length, self._fill = length, fill

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return from_hex(value, self._length, fill=self._fill)
        except BadEvidence as error:
            self.fail(str(error), param, ctx)


class _Tcb(click.ParamType[dict[str, int]]):
    """Security versions, as ``snp=8,microcode=115``."""

    name = "name=n,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        found = {}
        for word in value.split(","):
            name, _, number = word.strip().partition("=")
            if name not in TCB_PARTS or not number.isdecimal():
                known = ", ".join(TCB_PARTS)
                self.fail(f"{word.strip()!r} is not NAME=NUMBER with a NAME of {known}", param, ctx)
            found[name] = int(number)
        return found


class _Number(click.ParamType[int]):
    """A policy, in hex or decimal."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is no number such as 0x30000", param, ctx)


@click.group()
def verify() -> None:
    """Verify what was launched, from files, without a network.

    \b
    Exit codes: 0 verified        1 did not validate   2 unsupported
                3 not secure      4 bad arguments or files
    """


@verify.command(cls=_Command)
@click.argument("report", type=_File())
@click.option(
    "--leaf",
    type=_File(),
    required=True,
    help="Certificate of the key that signed: the chip's VCEK, or a provider's VLEK.",
)
@click.option("--chain", type=_File(), help="Certificates above it, if not those of this package.")
@click.option("--crl", type=_File(), help="AMD's revocation list of the product.")
@click.option("--nonce", type=_Hex(64, fill=True), help="The report data: what you asked with.")
@click.option("--measurement", type=_Hex(48), help="The launch digest that you expect.")
@click.option("--computation", type=_File(), help="Its SHA-256 must be the host data.")
@click.option("--host-data", type=_Hex(32), help="The host data, if not of a computation.")
@click.option("--id-key-digest", type=_Hex(48), help="SHA-384 of the key of the ID block.")
@click.option("--author-key-digest", type=_Hex(48), help="SHA-384 of the author's key.")
@click.option("--policy", type=_Number(), help="The policy that the guest must have, bit for bit.")
@click.option("--vmpl", type=click.IntRange(0, 3), default=0, help="Least trusted level allowed.")
@click.option("--minimum-tcb", type=_Tcb(), help="Such as bootloader=3,snp=8,microcode=115.")
@click.option("--allow-debug", is_flag=True, help="Let a guest pass that the host can read.")
@click.option("--allow-migration", is_flag=True, help="Let one pass that an agent can take over.")
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="When the certificates must be valid; default now. UTC.",
)
@as_json
def snp(report: bytes, leaf: bytes, as_json: bool, **given: Any) -> None:
    """Verify an SEV-SNP attestation report (versions 2 to 5).

    Files may be binary, hex or base64, certificates DER or PEM. A field that you expect nothing of
    is shown, and not compared. Tried with real reports and certificates of Milan, versions 2 and 3.
    """
    at: datetime | None = given["at"]
    try:
        checks = verify_snp(
            decode(decoded(report)),
            certificate.load(leaf)[0],
            certificate.load(given["chain"]) if given["chain"] else (),
            _expected(given),
            at.replace(tzinfo=UTC) if at else datetime.now(UTC),
            revocations=given["crl"],
        )
    except SupervisorError as error:
        _end(_code_of(error), str(error))
    _show(checks, as_json=as_json)


def _expected(given: dict[str, Any]) -> Expected:
    host_data, computation = given["host_data"], given["computation"]
    if computation is not None:
        if host_data is not None:
            raise BadEvidence("--computation and --host-data say the same in two ways")
        host_data = host_data_of(computation)
    allows = {
        PolicyBit.DEBUG: given["allow_debug"],
        PolicyBit.MIGRATE_MA: given["allow_migration"],
    }
    same = ("measurement", "id_key_digest", "author_key_digest", "policy", "vmpl")
    return Expected(
        report_data=given["nonce"],
        host_data=host_data,
        allowed=frozenset(bit for bit, allowed in allows.items() if allowed),
        minimum_tcb=given["minimum_tcb"] or {},
        **{name: given[name] for name in same},
    )


@click.command(cls=_Command)
@click.argument("report", type=_File())
@click.option("--product", type=click.Choice([str(one) for one in Product]), help="If asked for.")
def fetch_certs(report: bytes, product: str | None) -> None:
    """Print where AMD has the certificates for a report, for those who have a network.

    Nothing is fetched. A report of version 2 does not say which processor it is of.
    """
    try:
        urls = kds.urls(decode(decoded(report)), Product(product) if product else None)
    except SupervisorError as error:
        _end(_code_of(error), str(error))
    for file, url in urls.items():
        click.echo(f"curl -sSf -o {file} '{url}'")


def _code_of(error: SupervisorError) -> ExitCode:
    return ExitCode.UNSUPPORTED if isinstance(error, Unsupported) else ExitCode.BAD_ARGUMENT


def _end(code: ExitCode, problem: str) -> Any:
    fail(problem)
    raise SystemExit(code)


def _show(checks: list[Check], *, as_json: bool) -> None:
    code = exit_code(checks)
    if as_json:
        rows = [
            {
                "field": one.field,
                "verdict": str(one.verdict),
                "found": one.found,
                "expected": one.expected or None,
                "why": one.why or None,
            }
            for one in checks
        ]
        print_json({"verified": code is ExitCode.VERIFIED, "exit_code": int(code), "checks": rows})
        raise SystemExit(code)
    table = Table("FIELD", "VERDICT", "FOUND", "EXPECTED", "WHY", box=None, pad_edge=False)
    for one in checks:
        cells = (one.field, str(one.verdict), one.found, one.expected, one.why)
        table.add_row(*(cell or "-" for cell in cells), style=_STYLES.get(one.verdict, ""))
    stdout().print(table)
    bad = [one.field for one in checks if one.verdict in (Verdict.FAILED, Verdict.INSECURE)]
    stdout().print(f"not verified: {', '.join(bad)}" if bad else "verified")
    for field in (one.field for one in checks if one.verdict is Verdict.NOT_COMPARED):
        if option := _OPTIONS.get(field):
            stdout().print(f"{field} was not compared: say {option}")
    raise SystemExit(code)
