"""``serve``: the supervisor itself."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import trio

from supervisor import app, config, logs
from supervisor.cli.environment import env_file, fail, load_config
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.config import Config


class _SettingsHelp(click.Command):
    """Help that ends with every setting. The text comes from the settings' declarations."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Settings, from the environment or the file"):
            formatter.write_dl(config.help_rows(), col_max=44)


@click.command(cls=_SettingsHelp)
@env_file
def serve(env_file: str | None) -> None:
    """Adopt the VMs that an earlier supervisor left, and serve HTTP and gRPC.

    SIGINT ends all VMs gracefully, then the supervisor; a second signal does not wait for the
    guests. SIGTERM ends the supervisor and leaves the VMs running. See MANAGER_ON_SIGINT and
    MANAGER_ON_SIGTERM.
    """
    _run(app.main, env_file)


@click.command("power-off")
@env_file
def power_off(env_file: str | None) -> None:
    """End the VMs that a supervisor has left running, gracefully; it must not run itself.

    For the host's shutdown: VMs with a restart policy are then left to it, and are booted again
    by the next supervisor.
    """
    _run(app.power_off, env_file)


def _run(main: Callable[[Config], Awaitable[None]], env_file: str | None) -> None:
    settings = load_config(env_file)
    logs.configure(settings.log_level)
    # grpc's own log lines are not JSON; its problems arrive as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    problems: list[SupervisorError] = []
    try:
        trio.run(main, settings, strict_exception_groups=True)
    except* SupervisorError as group:
        problems = _leaves(group)
    for problem in problems:
        fail(problem)
    if problems:
        sys.exit(1)


def _leaves(group: BaseExceptionGroup[SupervisorError]) -> list[SupervisorError]:
    found: list[SupervisorError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
