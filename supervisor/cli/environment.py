"""For all commands: read the settings, show errors."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, Any

import click
import dotenv
import dotenv.parser

from supervisor import config
from supervisor.cli.output import echo
from supervisor.errors import ConfigError

if TYPE_CHECKING:
    from supervisor.config import Config

env_file = click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False),
    help="File of NAME=value lines. A variable that is not empty wins over the file.",
)


class CommandFailed(click.ClickException):
    """A command failed: one paragraph on standard error, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        fail(self.format_message())


def load_config(file: str | None) -> Config:
    """The settings of the file and the environment. If any is wrong, show all and exit with 2."""
    from_file = _read(file) if file else {}
    # An empty variable is one that is not set, as everywhere: it hides nothing.
    given = {name: value for name, value in os.environ.items() if value}
    settings = os.environ | {name: value or "" for name, value in from_file.items()} | given
    try:
        return config.load(settings)
    except ConfigError as error:
        for problem in error.problems:
            fail(problem)
        sys.exit(2)


def _read(file: str) -> dict[str, str | None]:
    with open(file) as lines:
        bad = [one.original.line for one in dotenv.parser.parse_stream(lines) if one.error]
    for line in bad:
        fail(f"{file}, line {line}: not NAME=value")
    if bad:
        sys.exit(2)
    return dotenv.dotenv_values(file, interpolate=False)


def fail(problem: object) -> None:
    echo(f"qmp-supervisor: {problem}", err=True)
