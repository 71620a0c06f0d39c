"""``token``: bearer tokens for callers. The commands change a file; they ask no supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from supervisor import at_start
from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.cli.environment import CommandFailed, env_file, load_config
from supervisor.cli.output import as_json, print_json, stderr, stdout
from supervisor.config.settings import parse_seconds
from supervisor.errors import HostError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


@click.group()
def token() -> None:
    """Create, list and revoke the tokens by which callers say who they are.

    A supervisor that runs knows of each change at once.
    """


def _file(env_file: str | None) -> Path:
    return at_start.access_paths(load_config(env_file)).tokens


def _lifetime(_: object, __: object, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _name(_: object, __: object, text: str) -> str:
    if not tokens.NAME.fullmatch(text):
        raise click.BadParameter("must be 1 to 64 letters, digits, '.', '_', '@' or '-'")
    return text


@token.command()
@click.argument("name", callback=_name)
@click.option(
    "--role",
    type=click.Choice([one.value for one in Role]),
    required=True,
    help="What its owner may.",
)
@click.option("--expires", callback=_lifetime, help="How long it is valid, such as 30d or 12h.")
@env_file
def create(name: str, role: str, expires: float | None, env_file: str | None) -> None:
    """Create a token and print it. It is shown this once; only its hash is stored.

    Runs belong to the NAME: tokens of one name are one owner.
    """
    file = _file(env_file)
    try:
        made, secret = tokens.create(file, name, Role(role), expires, tokens.now())
    except HostError as error:
        raise CommandFailed(str(error)) from error
    until = _shown(made.expires_at) if made.expires_at else "revoked"
    stderr().print(f"token {made.id} of {name}, role {role}, in {file}, is valid until {until}")
    click.echo(secret)


@token.command("list")
@as_json
@env_file
def list_tokens(as_json: bool, env_file: str | None) -> None:
    """List tokens. Those that ended are listed for thirty days."""
    file = _file(env_file)
    try:
        found = tokens.read(file)
    except HostError as error:
        raise CommandFailed(str(error)) from error
    now = tokens.now()
    rows = [
        {
            "id": one.id,
            "name": one.name,
            "role": str(one.role),
            "state": one.state(now),
            "created_at": _shown(one.created_at),
            "expires_at": _shown(one.expires_at) if one.expires_at else None,
        }
        for one in found
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        stderr().print(f"there is no token in {file}")
    table = Table("ID", "NAME", "ROLE", "STATE", "CREATED", "EXPIRES", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(value or "-" for value in row.values()))
    stdout().print(table)


@token.command()
@click.argument("name_or_id")
@env_file
def revoke(name_or_id: str, env_file: str | None) -> None:
    """Revoke the token of this id, or all tokens of this name."""
    file = _file(env_file)
    try:
        revoked = tokens.revoke(file, name_or_id, tokens.now())
    except HostError as error:
        raise CommandFailed(str(error)) from error
    if not revoked:
        raise CommandFailed(f"no valid token in {file} has the id or the name {name_or_id}")
    for one in revoked:
        stderr().print(f"token {one.id} of {one.name} is revoked")


def _shown(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
