"""``scopes``: what runs as root beside a supervisor with a user of its own."""

from __future__ import annotations

import sys

import click

from supervisor import logs
from supervisor import scopes as keeper
from supervisor.cli.environment import fail
from supervisor.errors import HostError


@click.command()
def scopes() -> None:
    """Put QEMUs into systemd scopes; systemd starts it, as root.

    It answers on the socket of qmp-supervisor-scopes.socket, which is for the supervisor's user
    alone. MANAGER_SCOPES tells the supervisor where it is.
    """
    logs.configure("info")
    try:
        keeper.serve()
    except HostError as error:
        fail(error)
        sys.exit(1)
