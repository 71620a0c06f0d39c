"""What a guest reads over 9p: its agent's environment, and certificates.

A guest of the successor's mounts two shares, the first on ``/etc/cocos`` and the second on
``/etc/certs``. Its agent's unit reads the one, and its agent the other.

Source of the syntax: systemd.exec(5), "EnvironmentFile=".
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ENVIRONMENT_FILE = "environment"

#: What the agent must know, and its caller cannot: the VM's id.
_ID = "AGENT_CVM_ID"

#: Words of ASCII without what has a meaning of its own in such a file.
_PLAIN = re.compile(r"[!-~]*")
_MARKS = frozenset("\\\"'`$#;")
_LONGEST_VALUE = 4096


def is_plain(value: str) -> bool:
    """Whether a value can stand in an environment, and can set nothing but its own name."""
    if len(value) > _LONGEST_VALUE:
        return False
    return _PLAIN.fullmatch(value) is not None and not _MARKS & set(value)


@attrs.frozen(kw_only=True)
class Shares:
    """What one guest reads. There are secrets in it, so it is in no record.

    :param environment: names and values, which `is_plain`
    :param certificates: names of files and what is in them
    """

    environment: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    certificates: tuple[tuple[str, bytes], ...] = attrs.field(default=(), repr=False)

    def environment_of(self, vm_id: str) -> bytes:
        """The content of the agent's environment file. The same for the same request and id."""
        pairs = (*self.environment, (_ID, vm_id))
        return "".join(f"{name}={value}\n" for name, value in pairs).encode()

    def write(self, environment: Path, certificates: Path, vm_id: str) -> None:
        """Make both directories. Only the supervisor's user can enter them. Blocking.

        :raises OSError:
        """
        _write(environment, [(ENVIRONMENT_FILE, self.environment_of(vm_id))])
        _write(certificates, self.certificates)


def _write(directory: Path, files: Iterable[tuple[str, bytes]]) -> None:
    directory.mkdir(mode=0o700)
    for name, content in files:
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
