"""What a QEMU and its like do not get of the supervisor."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from supervisor.errors import LaunchError
from supervisor.qemu import accel, process, trial

if TYPE_CHECKING:
    from pathlib import Path

_FORBID = """
from supervisor.qemu import confine
confine.forbid_core_files()
import subprocess
subprocess.run(["cat", "/proc/self/limits", "/proc/self/coredump_filter"])
"""


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that writes its environment to a file beside it, and ends."""
    monkeypatch.setenv("A_TOKEN", "of the supervisor's")
    monkeypatch.setenv("LANG", "C.UTF-8")
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\nexit 1\n")
    program.chmod(0o755)
    return program


def names(qemu: Path) -> set[str]:
    lines = (qemu.parent / "environment").read_text().splitlines()
    # The shell's own are not what it was given.
    return {line.partition("=")[0] for line in lines} - {"PWD", "SHLVL", "_", "OLDPWD"}


async def test_qemu_gets_three_variables(qemu: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        starting = process.start([str(qemu)], listener, qemu.parent / "log", leave=lambda: False)
        async with starting as started:
            await started.wait()
    assert names(qemu) == {"PATH", "HOME", "LANG"}


def test_a_trial_gets_no_more(qemu: Path) -> None:
    with pytest.raises(LaunchError):
        trial.look_at(str(qemu))
    assert names(qemu) == {"PATH", "HOME", "LANG"}


def test_a_probe_gets_no_more(qemu: Path) -> None:
    accel.run_probe(str(qemu))
    assert names(qemu) == {"PATH", "HOME", "LANG"}


def test_core_files_have_nothing_in_them() -> None:
    """Not those that a program gets that the kernel pipes them to, either."""
    program = [sys.executable, "-c", _FORBID]
    run = subprocess.run(program, capture_output=True, text=True, check=True)
    limits, filtered = run.stdout.splitlines(), run.stdout.split()[-1]
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]
    assert int(filtered, 16) == 0
