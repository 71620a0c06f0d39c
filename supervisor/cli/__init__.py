"""The command ``qmp-supervisor``."""

from __future__ import annotations

import click

from supervisor.cli import (
    command,
    compute,
    doctor,
    evidence,
    image,
    run,
    serve,
    templates,
    token,
    verify,
    vms,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qmp-supervisor")
def main() -> None:
    """Start QEMU virtual machines, control them over QMP, relay computations to their agents."""


for _command in (
    serve.serve,
    run.run,
    compute.compute,
    compute.send,
    compute.result,
    vms.list_vms,
    vms.show,
    vms.reply,
    vms.shutdown,
    vms.remove,
    vms.pause,
    vms.resume,
    vms.reset,
    vms.computation,
    vms.logs,
    vms.events,
    templates.templates,
    token.token,
    image.image,
    doctor.doctor,
    evidence.evidence,
    verify.verify,
    verify.fetch_certs,
    command.command,
):
    main.add_command(_command)
