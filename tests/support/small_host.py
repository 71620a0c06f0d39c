"""What a supervisor needs of a host, in small files, and a QEMU that needs no more."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DISK = "base.qcow2"
_FIRMWARE_BYTES = 4096

#: QEMU without a machine: the whole of its monitor, 10 MB, its network back end with the forwards,
#: memory that no guest has, no guest. It can be frozen, and started from what that wrote, all the
#: same. What says which VM it is stays, its directory in -serial among it.
_NO_MACHINE = """\
#!/bin/sh
kept=
while [ $# -gt 0 ]; do
    case $1 in
    -chardev | -mon | -name | -uuid | -serial | -netdev | -object | -incoming | -qmp)
        kept="$kept $1 $2"; shift ;;
    esac
    shift
done
exec {qemu} -machine none -nodefaults -display none -S $kept
"""


def write_machineless(program: Path) -> None:
    """A program that is QEMU without a machine, whatever machine it is asked for."""
    program.write_text(_NO_MACHINE.format(qemu=shutil.which("qemu-system-x86_64")))
    program.chmod(0o755)


def write_files(directory: Path) -> None:
    """Firmware, and an empty disk."""
    write_firmware(directory)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(directory / DISK), "1M"]
    subprocess.run(command, check=True)


def write_firmware(directory: Path) -> None:
    for name in ("CODE.fd", "VARS.fd"):
        (directory / name).write_bytes(bytes(_FIRMWARE_BYTES))


def settings(directory: Path, qemu: Path, tmp: Path) -> dict[str, str]:
    """Of a supervisor on those files, that starts this program in a tmp/ of its own."""
    return {
        "MANAGER_QEMU_BIN_PATH": str(qemu),
        "MANAGER_QEMU_TMP_FILE_LOC": str(tmp),
        "MANAGER_QEMU_ENABLE_KVM": "false",
        "MANAGER_QEMU_ENABLE_SEV": "false",
        "MANAGER_QEMU_DISK_IMG_FILE": str(directory / DISK),
        "MANAGER_QEMU_OVMF_CODE_FILE": str(directory / "CODE.fd"),
        "MANAGER_QEMU_OVMF_VARS_FILE": str(directory / "VARS.fd"),
    }
