"""``image build``: a guest image from this machine's packages."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.cli.environment import CommandFailed
from supervisor.cli.output import stderr, update
from supervisor.errors import SupervisorError
from supervisor.image.image import DISK, build

if TYPE_CHECKING:
    from rich.status import Status


@click.group()
def image() -> None:
    """Build guest images."""


def _words(_: click.Context, __: click.Parameter, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@image.command("build")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("img"),
    show_default=True,
    help="Directory to make, or to replace if it holds an image already.",
)
@click.option(
    "--agent",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Agent to put into the guest instead of the reference agent: a Python file, or a program"
    " that needs no shared libraries.",
)
@click.option(
    "--agent-arguments",
    default="",
    callback=_words,
    help="Arguments of the reference agent, as a shell reads them: limits of algorithms, or"
    " --trust-algorithms.",
)
def build_image(output: Path, agent: Path | None, agent_arguments: list[str]) -> None:
    """Build a guest image: guest.qcow2 for MANAGER_QEMU_DISK_IMG_FILE, kernel and initramfs.

    The build takes half a minute to two and does not need root.
    """
    console = stderr()
    began = time.monotonic()
    with console.status("image") as status:
        try:
            manifest = build(
                output,
                agent=agent,
                agent_arguments=agent_arguments,
                progress=lambda line: _step(status, began, line),
            )
        except SupervisorError as error:
            raise CommandFailed(str(error)) from error
    megabytes = manifest.files[DISK].size / 2**20
    console.print(
        f"{output / DISK}: {megabytes:.0f} MiB, kernel {manifest.kernel},"
        f" {manifest.agent} agent; {time.monotonic() - began:.0f} s"
    )
    click.echo(next_line(output / DISK))


def _step(status: Status, began: float, line: str) -> None:
    status.console.print(f"{time.monotonic() - began:5.1f} s  {line}")
    update(status, line)


def next_line(disk: Path) -> str:
    """The shell command that serves with this image."""
    return f"MANAGER_QEMU_DISK_IMG_FILE={shlex.quote(str(disk))} qmp-supervisor serve"
