"""What the supervisor shares with one VM's guest and, from when the VM is given out, with its run.

The guest gets the credential's hash alone, by QEMU's firmware configuration device. A hash is no
secret: it is on QEMU's command line. The secret itself is in a file of the VM's directory, so that
the next supervisor has it, and nowhere else: not in the record, an event or the log.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Self

import attrs

if TYPE_CHECKING:
    from pathlib import Path

_CREDENTIAL_BYTES = 32

#: Of the host's entropy, for a clone: twice what its kernel's key holds.
_ENTROPY_BYTES = 64

_HOSTNAME_BYTES = 32

#: The same for a guest that is to be copied: it has no identity of its own.
NO_RENEWAL = bytes(_ENTROPY_BYTES + 32 + _HOSTNAME_BYTES)


def hostname(vm_id: str) -> str:
    """That of a copy."""
    return f"vm-{vm_id.partition('-')[0]}"


@attrs.frozen
class Secret:
    """Of one VM, for as long as it lives.

    :param credential: what the agent's callers must show, in base64 for URLs
    :param entropy: for the guest's renewal if the VM is a clone. A supervisor that was killed may
        have given it; the next one gives the same
    """

    credential: str = attrs.field(repr=False)
    entropy: bytes = attrs.field(repr=False)

    @classmethod
    def new(cls) -> Self:
        return cls._of(os.urandom(_CREDENTIAL_BYTES + _ENTROPY_BYTES))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The secret in a file; None if there is none. Blocking."""
        try:
            content = file.read_bytes()
        except OSError:
            return None
        return cls._of(content) if len(content) == _CREDENTIAL_BYTES + _ENTROPY_BYTES else None

    def write(self, file: Path) -> None:
        """Blocking.

        :raises OSError: if it cannot be written
        """
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(base64.urlsafe_b64decode(f"{self.credential}=") + self.entropy)

    @property
    def credential_hash(self) -> str:
        """SHA-256 of the credential, in hexadecimal digits."""
        return hashlib.sha256(self.credential.encode()).hexdigest()

    def renewal(self, vm_id: str) -> bytes:
        """What the renewer of a copy reads: supervisor/image/renewer.c has its form."""
        machine_id = vm_id.replace("-", "").encode()
        return self.entropy + machine_id + hostname(vm_id).encode().ljust(_HOSTNAME_BYTES, b"\0")

    @classmethod
    def _of(cls, content: bytes) -> Self:
        credential = base64.urlsafe_b64encode(content[:_CREDENTIAL_BYTES]).rstrip(b"=")
        return cls(credential.decode(), content[_CREDENTIAL_BYTES:])
