"""``command``: QEMU's command line, for a person who wants to run QEMU by hand."""

from __future__ import annotations

import shlex
import uuid
from typing import TYPE_CHECKING

import click
import trio

from supervisor import at_start
from supervisor.cli.environment import CommandFailed, env_file, load_config
from supervisor.errors import SupervisorError
from supervisor.qemu import accel, cmdline, measured, trial
from supervisor.qemu.ports import PortPool
from supervisor.state.tmp_dir import check_tmp
from supervisor.state.vm_dir import VmDir
from supervisor.tee import policy

if TYPE_CHECKING:
    from supervisor.config import QemuConfig
    from supervisor.qemu.confidential import Confidential
    from supervisor.qemu.version import Binary

#: The id of a VM that does not exist. QEMU insists on a UUID.
_PLACEHOLDER = "00000000-0000-4000-8000-000000000000"


@click.command()
@env_file
@click.option("--prepare", is_flag=True, help="Make the VM's directory, so that the line can run.")
def command(env_file: str | None, prepare: bool) -> None:
    """Print the command line that starts a VM with the present settings.

    Only the line goes to standard output. It can be pasted into a shell once the VM's directory
    exists. The commands that make the directory go to standard error.
    """
    config = at_start.on_this_host(load_config(env_file)).qemu
    vm_id = str(uuid.uuid4()) if prepare else _PLACEHOLDER
    vm_dir = VmDir(config.tmp / vm_id)
    try:
        line = _line(config, vm_id, vm_dir)
        if prepare:
            vm_dir.path.mkdir(mode=0o700)
            trio.run(vm_dir.prepare, config.disk, config.firmware)
    except SupervisorError as error:
        raise CommandFailed(str(error)) from error
    if not prepare:
        _explain(
            "make the VM's directory first (--prepare does it):", *_preparation(config, vm_dir)
        )
    _explain(
        f"the guest's console goes to {vm_dir.serial_log}, QMP is at {vm_dir.qmp_socket}",
        "the line:" if prepare else "then run:",
    )
    click.echo(line)


def _line(config: QemuConfig, vm_id: str, vm_dir: VmDir) -> str:
    check_tmp(config.tmp)
    qemu = accel.find_qemu(config)
    decided, warnings = accel.decide(config, qemu)
    _explain(*warnings)
    if config.net.dials:
        _explain("with MANAGER_AGENT_DIALS a run's QEMU has shares, a namespace and no restrict=on")
    trial.check(config, qemu, decided)
    binary = trial.look_at(qemu, sudo=config.use_sudo)
    with PortPool(config.net).reserve() as forwards:
        made = cmdline.Machine(
            vm_id=vm_id,
            qemu=binary,
            accel=decided,
            forwards=forwards,
            overlay=vm_dir.overlay,
            firmware_vars=vm_dir.firmware_vars,
            serial_log=vm_dir.serial_log,
            qmp_socket=vm_dir.qmp_socket,
            confidential=_confidential(config, binary, decided),
        )
        return cmdline.shell_line(cmdline.command(config, made))


def _confidential(
    config: QemuConfig, binary: Binary, decided: cmdline.Accel
) -> Confidential | None:
    """Bound to no computation, for there is none."""
    if decided.tee is None:
        return None
    number = policy.encode(decided.tee, config.tee.policy)
    return measured.choose(config, binary, decided.tee, number, b"")


def _preparation(config: QemuConfig, vm_dir: VmDir) -> list[str]:
    """The shell commands that make what ``VmDir.prepare`` makes."""
    disk = config.disk
    lines = (
        ("mkdir", "-p", vm_dir.path),
        ("cp", config.firmware.vars_file.absolute(), vm_dir.firmware_vars),
        (
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.format),
            *("-b", disk.file.resolve(), vm_dir.overlay),
        ),
    )
    return [f"  {shlex.join(str(word) for word in line)}" for line in lines]


def _explain(*lines: str) -> None:
    for line in lines:
        click.echo(f"# {line}" if not line.startswith(" ") else line, err=True)
