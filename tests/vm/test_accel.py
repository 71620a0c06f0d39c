"""The probe for KVM, on real QEMU under emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.qemu import accel

SOURCE = Path(__file__).parents[2] / "scripts" / "kvm-probe.S"
QEMU = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_probe_is_a_guest_that_runs(machine: str) -> None:
    """Under emulation, which always works: so a failure under KVM is KVM's."""
    assert accel.run_probe(QEMU, "-machine", machine, "-cpu", "max") == (85, "")


def test_source_of_the_probe_does_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assembled, code = tmp_path / "probe.o", tmp_path / "probe.bin"
    subprocess.run(["as", "--32", str(SOURCE), "-o", str(assembled)], check=True)
    copy = ["objcopy", "-O", "binary", "-j", ".text", str(assembled), str(code)]
    subprocess.run(copy, check=True)
    monkeypatch.setattr(accel, "_PROBE", code.read_bytes())
    assert accel.run_probe(QEMU, "-machine", "q35", "-cpu", "max") == (85, "")


def test_probe_that_cannot_run_is_told_from_one_that_does() -> None:
    code, output = accel.run_probe(QEMU, "-machine", "no-such-machine")
    assert code == 1
    assert "unsupported machine" in output
