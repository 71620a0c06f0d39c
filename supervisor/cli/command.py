"""``command``: QEMU's command line, for those who want to run it themselves."""

from __future__ import annotations

import shlex
import uuid
from typing import TYPE_CHECKING

import click
import trio

from supervisor import accel, app, machine
from supervisor.cli.environment import CommandFailed, env_file, load_config
from supervisor.errors import SupervisorError
from supervisor.ports import PortPool
from supervisor.rundir import Rundir, check_tmp

if TYPE_CHECKING:
    from supervisor.config import QemuConfig

#: Stands for a VM that nobody has made. QEMU insists that it is a UUID.
_PLACEHOLDER = "00000000-0000-4000-8000-000000000000"


@click.command()
@env_file
@click.option("--prepare", is_flag=True, help="Make the VM's directory, so that the line runs.")
def command(env_file: str | None, prepare: bool) -> None:
    """Print the command line that starts a VM with the present settings.

    The line alone goes to standard output: it can be pasted into a shell, once the VM's
    directory is there. What that takes goes to standard error.
    """
    config = app.absolute(load_config(env_file)).qemu
    vm_id = str(uuid.uuid4()) if prepare else _PLACEHOLDER
    rundir = Rundir(config.tmp / vm_id)
    try:
        line = _line(config, vm_id, rundir)
        if prepare:
            rundir.path.mkdir(mode=0o700)
            trio.run(rundir.prepare, config.disk, config.firmware)
    except SupervisorError as error:
        raise CommandFailed(str(error)) from error
    if not prepare:
        _explain(
            "make the VM's directory first (--prepare does it):", *_preparation(config, rundir)
        )
    _explain(
        f"the guest's console goes to {rundir.serial_log}, QMP is at {rundir.qmp_socket}",
        "the line:" if prepare else "then run:",
    )
    click.echo(line)


def _line(config: QemuConfig, vm_id: str, rundir: Rundir) -> str:
    check_tmp(config.tmp)
    qemu = accel.find_qemu(config)
    decided, warnings = accel.decide(config, qemu)
    _explain(*warnings)
    with PortPool(config.net).reserve() as forwards:
        made = machine.Machine(
            vm_id=vm_id,
            qemu=qemu,
            accel=decided,
            forwards=forwards,
            overlay=rundir.overlay,
            firmware_vars=rundir.firmware_vars,
            serial_log=rundir.serial_log,
            qmp_socket=rundir.qmp_socket,
        )
        return machine.shell_line(machine.command(config, made))


def _preparation(config: QemuConfig, rundir: Rundir) -> list[str]:
    """What a person types to have what ``Rundir.prepare`` makes."""
    disk = config.disk
    lines = (
        ("mkdir", "-p", rundir.path),
        ("cp", config.firmware.vars_file.absolute(), rundir.firmware_vars),
        (
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.format),
            *("-b", disk.file.resolve(), rundir.overlay),
        ),
    )
    return [f"  {shlex.join(str(word) for word in line)}" for line in lines]


def _explain(*lines: str) -> None:
    for line in lines:
        click.echo(f"# {line}" if not line.startswith(" ") else line, err=True)
