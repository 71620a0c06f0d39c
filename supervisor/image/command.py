"""Runs the tools that build an image. An error names the step, the tool and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import nullcontext
from typing import TYPE_CHECKING

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Command = Sequence[str | Path]

# The Debian package that ships each tool.
PACKAGE_OF = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "dpkg-deb": "dpkg",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "objcopy": "binutils",
    "objdump": "binutils",
    "qemu-img": "qemu-utils",
    "readelf": "binutils",
    "tar": "tar",
    "zstd": "zstd",
}
OUTPUT_TAIL_LINES = 20
# An ordinary user's PATH often lacks the directories of mkfs.vfat and depmod.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class ImageBuildError(SupervisorError):
    """A guest image could not be built: the step, the command that failed, its last output.

    If no command failed, *command* is empty and *output_tail* is the whole reason.
    """

    def __init__(
        self, step: str, command: Sequence[str], output_tail: str, *, advice: str = ""
    ) -> None:
        shown = f" ({' '.join(command)})" if command else ""
        super().__init__(f"cannot {step}{shown}: {output_tail}", advice=advice)
        self.step = step
        self.command = tuple(command)
        self.output_tail = output_tail


def require_tools() -> None:
    """ImageBuildError: tools are missing; it names the packages to install."""
    missing = sorted({PACKAGE_OF[tool] for tool in PACKAGE_OF if not _path_of(tool)})
    if missing:
        advice = f"install them with: apt-get install {' '.join(missing)}"
        raise ImageBuildError("start", (), "tools are missing", advice=advice)


def run(
    step: str,
    command: Command,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: Path | None = None,
) -> str:
    """Runs *command* to its end and returns its stdout, or writes stdout to the file *output*.

    ImageBuildError: *command* cannot be run, or fails.
    """
    words = [str(word) for word in command]
    try:
        with output.open("wb") if output else nullcontext(subprocess.PIPE) as stdout:
            done = subprocess.run(
                [_path_of(words[0]) or words[0], *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=cwd,
                env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})},
            )
    except OSError as error:
        raise ImageBuildError(step, words, str(error)) from error
    stdout_text = done.stdout or ""
    if done.returncode:
        raise ImageBuildError(step, words, _tail(stdout_text + done.stderr))
    return stdout_text


def _path_of(tool: str) -> str | None:
    return shutil.which(tool, path=SEARCH_PATH)


def _tail(output: str) -> str:
    lines = output.strip().splitlines()[-OUTPUT_TAIL_LINES:]
    return "\n".join(lines) or "it printed nothing"
