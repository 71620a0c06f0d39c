"""The stand-in's memory in a file, and its devices' state on the way into a file and back.

The guest's memory is a mark, new with each boot; the state names that of the memory it belongs
to, so that no other is taken for it. What QEMU says and when is that of 7.2, measured.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from pathlib import Path

#: Where the guest's mark is in its memory, and how long.
_MARK_AT = 4096
_MARK_BYTES = 16

#: What has to be the same on both sides, or QEMU does not find the devices that the state is of.
#: It knows them by their places on their buses, not by their ids.
_MACHINE = ("-machine", "-cpu", "-smp", "-m", "-device")
_IDS = re.compile(r",(id|drive|netdev)=[^,]*")


class Refused(Exception):
    """What QEMU prints before it exits with 1."""


class Ram:
    """Memory in a file."""

    def __init__(self, option: str) -> None:
        """:raises Refused: if the file does not do"""
        words = re.findall(r"(?:[^,]|,,)+", option)
        members = dict(word.replace(",,", ",").split("=", 1) for word in words[1:])
        self.file = Path(members["mem-path"])
        self.shared = members["share"] == "on"
        size = int(members["size"])
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
        found = os.fstat(self._descriptor).st_size
        if not found:
            os.ftruncate(self._descriptor, size)
        elif found != size:
            raise Refused(f"backing store size {found:#x} does not match 'size' option {size:#x}")

    def boot(self) -> None:
        """A new guest writes to it; in memory that is not shared no other sees it."""
        if self.shared:
            os.pwrite(self._descriptor, os.urandom(_MARK_BYTES), _MARK_AT)

    def mark(self) -> str:
        return os.pread(self._descriptor, _MARK_BYTES, _MARK_AT).hex()


def ram(argv: list[str]) -> Ram | None:
    """The memory that the command line names; None if it is QEMU's own."""
    for option in _values(argv, "-object"):
        if option.startswith("memory-backend-file,"):
            return Ram(option)
    return None


def _values(argv: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(argv) if word == option]


def _machine(argv: list[str]) -> dict[str, list[str]]:
    return {option: [_IDS.sub("", value) for value in _values(argv, option)] for option in _MACHINE}


def save(
    descriptor: int, argv: list[str], memory: Ram | None, capabilities: set[str], prepared: bool
) -> None:
    """Write the state: which machine and memory it is of, and whether its guest is prepared."""
    state = {
        "machine": _machine(argv),
        "mark": memory.mark() if memory else None,
        "without_memory": "x-ignore-shared" in capabilities,
        "prepared": prepared,
    }
    body = json.dumps(state).encode()
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(hashlib.sha256(body).digest() + body)


def load(descriptor: int, argv: list[str], memory: Ram | None, capabilities: set[str]) -> bool:
    """Read the state from where the descriptor stands; whether its guest is prepared.

    :raises Refused: if it is damaged, or not of this machine and memory
    """
    with os.fdopen(os.dup(descriptor), "rb") as file:
        digest, body = file.read(32), file.read()
    if hashlib.sha256(body).digest() != digest:
        raise Refused("Not a migration stream\nload of migration failed: Invalid argument")
    state = json.loads(body)
    if state["machine"] != _machine(argv):
        raise Refused("Unknown savevm section or instance\nload of migration failed")
    if not (state["without_memory"] and "x-ignore-shared" in capabilities):
        raise Refused("Length mismatch: ram\nload of migration failed: Invalid argument")
    if memory is None or memory.mark() != state["mark"]:
        raise Refused("a stand-in's memory is not the one that its state is of")
    return bool(state["prepared"])
