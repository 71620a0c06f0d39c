"""What QEMU does not get of the supervisor: its environment, and core files with its memory."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_VARIABLES = ("PATH", "HOME", "LANG")


def environment() -> dict[str, str]:
    """The environment of QEMU and of the programs beside it.

    The supervisor's own may hold secrets, which a guest that has taken over QEMU would read.
    """
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def forbid_core_files() -> None:
    """Keep this process and its children from leaving their memory in core files.

    The limit holds for files. A program that the kernel pipes cores to may ignore the limit; such
    a core has no memory in it, by the filter. Children inherit both.

    Source: core(5).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a kernel without core files has no filter
        Path("/proc/self/coredump_filter").write_text("0")
