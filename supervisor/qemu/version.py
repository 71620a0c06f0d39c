"""What a QEMU binary is able to do, and every spelling that depends on its version.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``, and its lists of removed features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import attrs

from supervisor.qemu import qapi

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The set of descriptors that a migration's file is in; a QEMU of ours has no other set.
_FILE_SET = 1


@attrs.frozen(order=True)
class Version:
    """QEMU's version, as ``query-version`` answers it."""

    major: int
    minor: int
    micro: int = 0

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """:param answer: QAPI's ``VersionInfo``, which the QMP greeting also holds

        :raises KeyError, TypeError, ValueError: if the answer does not follow QAPI
        """
        triple = answer["qemu"]
        return cls(*(qapi.number(triple[part], 16) for part in ("major", "minor", "micro")))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


@attrs.frozen
class PassFile:
    """How an open file is passed to QEMU for a migration, and what the migration calls the file.

    :param command: is sent together with the descriptor, with these ``arguments``
    :param forget: the command that closes QEMU's descriptor afterwards, with the same
        ``arguments``; None if the migration closes the descriptor itself
    """

    command: str
    arguments: Mapping[str, Any]
    uri: str
    forget: str | None


def pass_file(version: Version) -> PassFile:
    """How this QEMU takes a migration's file.

    ``file:`` is known since 8.2. Since 11.0, ``fd:`` takes pipes and sockets only.
    """
    if version >= Version(8, 2):
        fd_set = {"fdset-id": _FILE_SET}
        return PassFile("add-fd", fd_set, f"file:/dev/fdset/{_FILE_SET}", forget="remove-fd")
    return PassFile("getfd", {"fdname": "state"}, "fd:state", forget=None)


@attrs.frozen
class Binary:
    """A QEMU binary and its abilities.

    :param path: absolute
    :param objects: the types that ``-object`` takes
    """

    path: str
    version: Version
    objects: frozenset[str]

    @property
    def monitor_is_object(self) -> bool:
        """Whether ``-object monitor-qmp`` takes the place of ``-mon``, as from 11.0 on."""
        return "monitor-qmp" in self.objects

    @property
    def asks_for_new_sev_guests(self) -> bool:
        """Whether it starts no SEV guest on Linux before 6.10, unless it is told that it may."""
        return self.version >= Version(9, 1)

    @property
    def maps_read_only(self) -> bool:
        """Whether a memory file can be opened for reading alone, and yet be RAM: ``rom=off``."""
        return self.version >= Version(8, 2)
