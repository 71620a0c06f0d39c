"""A VM's disk: a qcow2 overlay on the base image, which is never written to."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from supervisor.errors import ImageError, LaunchError
from supervisor.qemu import confine
from supervisor.state import file_errors
from supervisor.state.record import BaseImage

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import DiskConfig

#: qemu-img reads a header and writes 200 kB, which takes some milliseconds.
_QEMU_IMG_S = 60.0


def base_image(file: Path) -> BaseImage:
    """Identify a base image without reading its content. Blocking.

    :raises OSError: if there is no such file
    """
    real = file.resolve(strict=True)
    stat = real.stat()
    return BaseImage(str(real), stat.st_ino, stat.st_size, stat.st_mtime_ns)


def check_image(disk: DiskConfig) -> None:
    """Check that the base image exists and has content. Blocking.

    :raises ImageError: if it does not
    """
    advice = "build one with 'qmp-supervisor image build', or set MANAGER_QEMU_DISK_IMG_FILE"
    if not disk.file.exists():
        raise ImageError(f"base image {disk.file.absolute()} is missing", advice=advice)
    if not disk.file.stat().st_size:
        raise ImageError(f"base image {disk.file.absolute()} is empty", advice=advice)


def make_overlay(disk: DiskConfig, overlay: Path) -> None:
    """Make a qcow2 overlay on the base image. The VM's writes go to the overlay. Blocking.

    :raises ImageError: if the image is missing, or does not have the format of the setting
    :raises LaunchError: if qemu-img is missing
    :raises OSError: if the overlay cannot be written
    """
    check_image(disk)
    command = [
        *("qemu-img", "create", "-q", "-f", "qcow2"),
        *("-F", disk.format, "-b", str(disk.file.resolve()), str(overlay)),
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_QEMU_IMG_S,
            env=confine.environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"qemu-img did not finish reading {disk.file} within {_QEMU_IMG_S:g} s",
            advice="check the file system that the image is on",
            argv=command,
        ) from error
    except FileNotFoundError as error:
        raise LaunchError(
            "qemu-img is not on the PATH", advice="install the package qemu-utils"
        ) from error
    if done.returncode and (number := file_errors.in_words(done.stderr)) is not None:
        raise OSError(number, os.strerror(number), str(overlay))
    if done.returncode:
        raise ImageError(
            f"base image {disk.file} cannot be used as {disk.format}",
            advice=f"check it with 'qemu-img check {disk.file}', and MANAGER_QEMU_DISK_IMG_FORMAT",
            argv=command,
            exit_code=done.returncode,
            log_tail=done.stderr.strip(),
        )
