"""What it means that a file cannot be written: which file, and what of the host is used up."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from supervisor.errors import LaunchError

#: Errors that are about the host, not about this program or a file that somebody gave us.
OF_THE_HOST = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
)

#: A file system with fewer free inodes has none for another VM. Some may be free again by the time
#: we look: what was begun is removed.
_FEW_INODES = 16


def describe(error: OSError, path: Path) -> tuple[str, str]:
    """What is wrong, and what to do about it.

    :param path: what was to be written, if the error does not name it
    """
    # Of a copy the second is what is written. A descriptor is no name.
    names = [one for one in (error.filename2, error.filename) if isinstance(one, str | bytes)]
    file = Path(os.fsdecode(names[0])) if names else path
    match error.errno:
        case errno.ENOSPC if _lacks_inodes(file):
            what = "no inodes are left on the file system"
            advice = "remove files there ('df -i' counts them), or use another file system"
        case errno.ENOSPC:
            what, advice = "the file system is full", "make room there, or use another file system"
        case errno.EDQUOT:
            what, advice = "the disk quota is used up", "make room there, or raise the quota"
        case errno.EROFS:
            what = "the file system is read-only"
            advice = "mount it for writing; the kernel's log says if its disk has failed"
        case errno.EMFILE:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            what = f"the supervisor has as many open files as it may have, {most}"
            advice = "raise that limit, LimitNOFILE= of a systemd unit"
        case errno.ENFILE:
            what = "the host has as many open files as it may have"
            advice = "raise the limit fs.file-max"
        case _:
            return f"{file}: {error.strerror}", ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice += ", see MANAGER_QEMU_TMP_FILE_LOC"
    return f"{file}: {what}", advice


def launch_error(error: OSError, path: Path, consequence: str) -> LaunchError:
    """The error for a VM that lacks a file.

    :param consequence: what is not done for that reason
    """
    what, advice = describe(error, path)
    return LaunchError(f"{what}; {consequence}", advice=advice)


def in_words(text: str) -> int | None:
    """The error of the host that a program names in what it printed; None if it names none."""
    return next((number for number in OF_THE_HOST if os.strerror(number) in text), None)


def _lacks_inodes(file: Path) -> bool:
    place = next((one for one in (file, *file.parents) if one.exists()), Path("/"))
    try:
        stat = os.statvfs(place)
    except OSError:
        return False
    # Some file systems have as many as there is room for, and say 0.
    return stat.f_files > 0 and stat.f_favail < _FEW_INODES and stat.f_bavail > 0
