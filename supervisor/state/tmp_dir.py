"""The directory tmp/, before anything is in it: whether it is ours, and fit for VMs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisor.errors import HostError
from supervisor.state import file_errors
from supervisor.state.vm_dir import MAX_SOCKET_PATH, VmDir, open_to_group

if TYPE_CHECKING:
    from pathlib import Path

#: The file in tmp/ that a supervisor locks.
LOCK = "lock"
FORMAT = "format.json"


def check_tmp(tmp: Path) -> None:
    """Make tmp/ if it is missing, close it to others, and check that VMs can use it. Blocking.

    :raises HostError: if it cannot be written to, or a VM's socket would have too long a path
    """
    longest = VmDir(tmp / ("f" * 36)).qmp_socket
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
        raise HostError(
            f"the path {tmp} is too long: a VM's QMP socket, {longest}, must fit into"
            f" {MAX_SOCKET_PATH} bytes",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a shorter path",
        )
    try:
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(tmp)
        if tmp.stat().st_uid == os.geteuid():
            tmp.chmod(0o700)
        os.close(os.open(tmp / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        what, _ = file_errors.describe(error, tmp)
        raise HostError(
            f"{tmp} cannot be written to ({what})",
            advice="make it writable, or set MANAGER_QEMU_TMP_FILE_LOC to another directory",
        ) from error


def close_tmp(tmp: Path, gid: int | None) -> None:
    """Let nobody but the supervisor's user into tmp/. Blocking.

    :param gid: of the group of QEMU's users, who may pass through it; None if there are none
    :raises HostError: if the modes cannot be changed
    """
    try:
        if tmp.stat().st_uid == os.geteuid():
            open_to_group(tmp, gid)
    except OSError as error:
        raise HostError(
            f"{tmp} cannot be closed to others ({error.strerror})",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a directory on another file system",
        ) from error


def _check_owner(tmp: Path) -> None:
    """Refuse a directory in which another user could put links and records for us to follow.

    :raises HostError: if it belongs to somebody else, or everybody may write to it
    """
    stat = tmp.stat()
    if stat.st_uid not in (os.getuid(), 0):
        raise HostError(
            f"{tmp} belongs to the user {stat.st_uid}, who could change what VMs are made of",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a directory of the supervisor's user",
        )
    if stat.st_mode & 0o002:
        raise HostError(
            f"everybody may write to {tmp}",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a directory below it; mount a tmpfs with"
            " mode=0700",
        )
