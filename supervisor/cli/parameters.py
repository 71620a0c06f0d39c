"""What owners give to ``verify``: files and values, each in the form that it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import attrs
import click

from supervisor.cli.computations import computation
from supervisor.cli.environment import fail
from supervisor.cli.output import print_json
from supervisor.config import MAX_COMPUTATION, Policy
from supervisor.errors import InvalidRequest, SupervisorError
from supervisor.tee import policy
from supervisor.tee.checks import ExitCode
from supervisor.tee.evidence import MAX_BYTES, BadEvidence, Unsupported, from_hex
from supervisor.tee.facts import Technology
from supervisor.tee.snp.report import TCB_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: As an array, a byte takes up to five characters, and more if it is laid out.
_LONGEST_REQUEST = 8 * MAX_COMPUTATION


class Command(click.Command):
    """Ends with an `ExitCode` if it is called wrongly, or of what it cannot read.

    With ``--json`` a program is told so in the form of a verdict. What is said twice is wrong, too:
    of two expectations one would be dropped.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        as_json = "--json" in args
        try:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for param in self.params:
                if order.count(param) > 1 and not (param.multiple or param.nargs != 1):
                    raise click.UsageError(f"{param.opts[-1]} is said twice", ctx)
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not as_json:
                error.show()
                ctx.exit(ExitCode.BAD_ARGUMENT)
            _end(ctx, error.format_message(), ExitCode.BAD_ARGUMENT, as_json=True)
        except Unsupported as error:
            _end(ctx, str(error), ExitCode.UNSUPPORTED, as_json=as_json)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SupervisorError as error:
            unknown = isinstance(error, Unsupported)
            code = ExitCode.UNSUPPORTED if unknown else ExitCode.BAD_ARGUMENT
            _end(ctx, str(error), code, as_json=bool(ctx.params.get("as_json")))


def _end(ctx: click.Context, problem: str, code: ExitCode, *, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"verified": False, "exit_code": int(code), "checks": [], "problem": problem})
    else:
        fail(problem)
    ctx.exit(code)


class FileContent(click.ParamType[bytes]):
    """A file's content, of which no more than that many bytes are read."""

    name = "file"

    def __init__(self, most: int = MAX_BYTES) -> None:
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            with Path(value).open("rb") as opened:
                content = opened.read(self._most + 1)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)
        if not content:
            self.fail(f"{value} is empty", param, ctx)  # as a download that failed is
        if len(content) > self._most:
            self.fail(f"{value}: longer than {self._most} bytes", param, ctx)
        return content


class Parsed(click.ParamType[T]):
    """What a file's content is read into.

    :param read: raises `BadEvidence` or `Unsupported`
    """

    name = "file"

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        content = FileContent().convert(value, param, ctx)
        try:
            return self._read(content)
        except BadEvidence as error:
            self.fail(f"{value}: {error}", param, ctx)


class Computation(FileContent):
    """What a guest was started for. As ``run``, it takes a request for one, too."""

    def __init__(self) -> None:
        super().__init__(_LONGEST_REQUEST)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        content = super().convert(value, param, ctx)
        if isinstance(value, bytes):
            return content
        try:
            found = computation(content)
        except InvalidRequest as error:
            self.fail(f"{value}: {error}", param, ctx)
        if len(found) > MAX_COMPUTATION:
            self.fail(f"{value}: longer than {MAX_COMPUTATION} bytes", param, ctx)
        return found


class Hex(click.ParamType[bytes]):
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


class SecurityVersions(click.ParamType[dict[str, int]]):
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
            if name in found:
                self.fail(f"{name} is said twice", param, ctx)
            found[name] = int(number)
        return found


class Number(click.ParamType[int]):
    """A policy, in hex or decimal."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is no number such as 0x30000", param, ctx)


@attrs.frozen
class GuestPolicy:
    """A policy that an owner expects.

    :param least_abi: None if he spoke of bits alone, in words
    """

    number: int
    least_abi: int | None


class SnpPolicy(click.ParamType[GuestPolicy]):
    """A policy of SEV-SNP, in hex or decimal, or in words as a run has it."""

    name = "number|words"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> GuestPolicy:
        if isinstance(value, GuestPolicy):
            return value
        if value[:1].isdigit():
            number = Number().convert(value, param, ctx)
            return GuestPolicy(number, number)
        try:
            return GuestPolicy(policy.encode(Technology.SEV_SNP, Policy.read(value)), None)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Version(click.ParamType[tuple[int, int]]):
    """Two numbers of a byte each, as ``1.55``."""

    name = "major.minor"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", value)
        if not found or max(map(int, found.groups())) > 255:
            self.fail(f"{value!r} is not MAJOR.MINOR such as 1.55", param, ctx)
        return int(found[1]), int(found[2])


class Registers(click.ParamType[tuple[int, bytes]]):
    """A register's number and value, as ``1=HEX``."""

    name = "n=hex"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, bytes]:
        if isinstance(value, tuple):
            return value
        number, _, text = value.partition("=")
        if number not in ("0", "1", "2", "3"):
            self.fail(f"{value!r} is not NUMBER=HEX with a NUMBER from 0 to 3", param, ctx)
        return int(number), Hex(48).convert(text, param, ctx)
