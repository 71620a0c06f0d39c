"""Who may call this agent: whoever shows the credential whose hash the host gave this guest.

The hash is an item of QEMU's firmware configuration device. Only the host writes that, and each
QEMU has one of its own: a guest that goes on in another QEMU, as the copies of a guest do, reads
that QEMU's hash. So the hash is read for each call and never remembered. It says nothing about the
credential, so it need not be kept secret.

Source: the kernel's Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg.
"""

from __future__ import annotations

import os
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRMWARE_CONFIGURATION = "/sys/firmware/qemu_fw_cfg"
HASH = f"{FIRMWARE_CONFIGURATION}/by_name/opt/org.qmp-supervisor/credential-sha256/raw"
# Not empty once the agent is open to all, so that a restarted agent knows.
OPEN = "/run/open-to-all"
HASH_BYTES = 64  # in hexadecimal digits
# What a caller with the credential sends along to open the agent to all.
WISH, OPEN_WISH = b"agent-access", b"open"


class Access:
    """Whether a call is admitted. Its methods may be called from many threads at once.

    :param hash_file: a descriptor of the file with the hash; None if anybody may call
    :param open_file: a descriptor of a file that is empty until the agent is open to all
    """

    def __init__(self, hash_file: int | None = None, open_file: int | None = None) -> None:
        self._hash_file = hash_file
        self._open_file = open_file
        self._is_open = hash_file is None or bool(open_file and os.fstat(open_file).st_size)

    @classmethod
    def of_guest(cls, root: str = "") -> Self:
        """That of this guest: anybody may call if the host gave no hash.

        OSError: nobody can know what the host gave. Then the agent must not serve.

        *root* is a directory in place of the guest's root, for tests.
        """
        os.stat(root + FIRMWARE_CONFIGURATION)
        try:
            hash_file = os.open(root + HASH, os.O_RDONLY)
        except FileNotFoundError:
            return cls()
        # Open from now on, so that no copy of a guest has to open it.
        return cls(hash_file, os.open(root + OPEN, os.O_RDWR | os.O_CREAT, 0o644))

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a call with these headers is admitted. Their names are in lower case.

        From the first call on that has the credential and ``agent-access: open``, every call is.
        """
        if self._is_open:
            return True
        scheme, _, credential = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not self._is_credential(credential):
            return False
        if headers.get(WISH) == OPEN_WISH:
            self.open()
        return True

    def open(self) -> None:
        """Admits every call from now on."""
        if not self._is_open:
            assert self._open_file is not None
            os.write(self._open_file, b"yes\n")
            self._is_open = True

    def _is_credential(self, shown: bytes) -> bool:
        assert self._hash_file is not None
        wanted = os.pread(self._hash_file, HASH_BYTES, 0)
        return compare_digest(sha256(shown).hexdigest().encode(), wanted)
