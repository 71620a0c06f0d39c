"""Writes the archive that the kernel unpacks into its first file system.

cpio(1) would write the builder's user and times. Here every file belongs to root and the bytes
depend on the files alone: the archive is part of what the owner of a confidential guest measures.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

CONSOLE = (5, 1)  # major and minor number


def write_cpio(root: Path, archive: BinaryIO, mtime: int) -> None:
    """Writes all files below *root*, and the node /dev/console: format "newc", sorted by path.

    *mtime* is every file's time in seconds. Only directories, links and plain files are taken.
    """
    number = 0
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = str(path.readlink()).encode()
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        elif stat.S_ISDIR(mode):
            content = b""
        else:
            continue
        # The builder's umask must not show. The guest has one user, so two modes are enough.
        mode = stat.S_IFMT(mode) | (0o755 if mode & 0o100 else 0o644)
        archive.write(entry(str(path.relative_to(root)), mode, number, mtime, content))
        number += 1
    archive.write(entry("dev/console", stat.S_IFCHR | 0o600, number, mtime, b"", CONSOLE))
    archive.write(entry("TRAILER!!!", 0, 0, 0, b""))


def entry(
    name: str, mode: int, number: int, mtime: int, content: bytes, device: tuple[int, int] = (0, 0)
) -> bytes:
    """One member: header, name and content, each padded to a multiple of four bytes."""
    links = 2 if stat.S_ISDIR(mode) else 1
    owner = (0, 0)
    on_device = (0, 0)
    encoded = name.encode() + b"\0"
    numbers = (number, mode, *owner, links, mtime, len(content), *on_device, *device, len(encoded))
    header = b"070701" + b"".join(b"%08X" % value for value in (*numbers, 0)) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
