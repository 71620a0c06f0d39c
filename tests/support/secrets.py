"""Looks for something that must be nowhere, in the forms that a program might write it in."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The files in a VM's directory that are there to hold a secret.
MEANT_FOR_IT = ("computation", "reply")


def forms(secret: bytes) -> Iterator[bytes]:
    """As it is, and as base64, hexadecimal and a list of numbers."""
    yield secret
    yield secret.hex().encode()
    # Base64 of the same bytes differs by what is before them; its middle is then one of three.
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret)
        yield encoded[4:-4]
    yield json.dumps(list(secret)).strip("[]").encode()
    yield json.dumps(list(secret), separators=(",", ":")).strip("[]").encode()


def holds(content: bytes, secret: bytes) -> bool:
    return any(form in content for form in forms(secret))


def found(places: Iterable[tuple[str, bytes]], *secrets: bytes) -> set[str]:
    """The names of those places whose content has one of the secrets."""
    return {name for name, content in places if any(holds(content, one) for one in secrets)}


def files(tmp: Path) -> Iterator[tuple[str, bytes]]:
    """All plain files below tmp/ but those that are meant to hold secrets."""
    for path in tmp.rglob("*"):
        if path.is_file() and path.name not in MEANT_FOR_IT:
            yield str(path.relative_to(tmp)), path.read_bytes()


def process(pid: int) -> Iterator[tuple[str, bytes]]:
    """What every user of the host, or a guest in QEMU, can read of a process."""
    for name in ("cmdline", "environ", "limits"):
        yield name, Path(f"/proc/{pid}/{name}").read_bytes()


def open_to_others(tmp: Path) -> set[str]:
    """What users other than its own may read, write or enter."""
    paths = [tmp, *tmp.rglob("*")]
    return {str(path) for path in paths if stat.S_IMODE(path.lstat().st_mode) & 0o077}
