"""``fleet``: the files that make hosts members of a fleet. The command asks no supervisor."""

from __future__ import annotations

from pathlib import Path

import click

from supervisor.cli.environment import CommandFailed
from supervisor.cli.output import stderr, stdout
from supervisor.config import Address
from supervisor.config.fleet import read_address
from supervisor.errors import SupervisorError
from supervisor.fleet import authority
from supervisor.fleet.authority import Member

_PORT = 9022


def _member(_: object, __: object, given: tuple[str, ...]) -> list[Member]:
    return [_one(text) for text in given]


def _one(text: str) -> Member:
    name, _, where = text.partition("=")
    if not authority.NAME.fullmatch(name) or not where:
        raise click.BadParameter(f"{text!r} is not NAME=HOST, such as a=10.0.0.1")
    try:
        return Member(name, read_address(where))
    except ValueError:
        return Member(name, Address(where.strip("[]"), _PORT))


@click.group()
def fleet() -> None:
    """Make the files of a fleet: its authority, and for each member what its host needs."""


@fleet.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--member",
    "members",
    multiple=True,
    required=True,
    callback=_member,
    metavar="NAME=HOST[:PORT]",
    help="A host, and where the others reach it; all of them, each time. The first three, or the"
    " first of less than three, run NATS as well.",
)
@click.option(
    "--installed",
    type=click.Path(path_type=Path),
    default="/etc/qmp-supervisor/fleet",
    show_default=True,
    help="Where a member's directory is copied to on its host.",
)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default="/var/lib/nats",
    show_default=True,
    help="Where NATS keeps its data there.",
)
def init(directory: Path, members: list[Member], installed: Path, store: Path) -> None:
    """Make DIRECTORY/NAME for each member, to be copied to its host.

    Call it again with one member more, or less: keys and certificates stay, settings are written
    anew. DIRECTORY/ca-key.pem makes members: keep it where no member is.
    """
    try:
        changed = authority.make(directory, members, installed=installed, store=store)
    except SupervisorError as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from error
    for name, files in changed.items():
        words = ", ".join(file.name for file in files) or "nothing new"
        stdout().print(f"{directory / name}: {words}")
    stderr().print(f"copy each member's directory to {installed} on its host, and nothing else")
