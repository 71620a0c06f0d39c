"""The command ``qmp-supervisor``."""

from __future__ import annotations

import click

from supervisor.cli import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qmp-supervisor")
def main() -> None:
    """Starts QEMU virtual machines, speaks QMP with them, relays computations to their agents."""


main.add_command(serve.serve)
