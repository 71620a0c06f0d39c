"""The command ``qmp-supervisor``."""

from __future__ import annotations

import importlib
from collections import UserDict
from typing import Any

import click

#: Where each command is, below this package. A module is imported when its command is called: those
#: of the supervisor itself take longer than most commands.
_COMMANDS = {
    "serve": "serve:serve",
    "run": "run:run",
    "compute": "compute:compute",
    "send": "compute:send",
    "result": "compute:result",
    "ls": "vms:list_vms",
    "top": "top:top",
    "show": "vms:show",
    "reply": "vms:reply",
    "shutdown": "vms:shutdown",
    "rm": "vms:remove",
    "pause": "vms:pause",
    "resume": "vms:resume",
    "reset": "vms:reset",
    "computation": "vms:computation",
    "logs": "vms:logs",
    "console": "console:console",
    "events": "vms:events",
    "templates": "templates:templates",
    "host": "host:host",
    "fleet": "fleet:fleet",
    "token": "token:token",
    "image": "image:image",
    "doctor": "doctor:doctor",
    "evidence": "evidence:evidence",
    "verify": "verify:verify",
    "fetch-certs": "verify:fetch_certs",
    "command": "command:command",
    "power-off": "serve:power_off",
    "scopes": "scopes:scopes",
}


class _Commands(UserDict[str, Any]):
    """The commands by their names, each imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = super().__getitem__(name).partition(":")
        found: click.Command = getattr(
            importlib.import_module(f"supervisor.cli.{module}"), attribute
        )
        return found


@click.group(
    commands=_Commands(_COMMANDS), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="qmp-supervisor")
def main() -> None:
    """Start QEMU virtual machines, control them over QMP, relay computations to their agents."""
