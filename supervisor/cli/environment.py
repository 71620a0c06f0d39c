"""What the commands share: the settings and the way errors are shown."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, Any

import click
import dotenv
import dotenv.parser

from supervisor import config
from supervisor.errors import ConfigError

if TYPE_CHECKING:
    from supervisor.config import Config

env_file = click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False),
    help="File of NAME=value lines; what the environment sets wins over it.",
)


class CommandFailed(click.ClickException):
    """A command cannot do what it was asked for: one paragraph, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        fail(self.format_message())


def load_config(file: str | None) -> Config:
    """The settings of the file and the environment; exits with 2 and all problems if wrong."""
    from_file = _read(file) if file else {}
    settings = {name: value or "" for name, value in from_file.items()} | os.environ
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
    click.echo(f"qmp-supervisor: {problem}", err=True)
