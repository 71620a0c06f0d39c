"""The probe, on real QEMU."""

from __future__ import annotations

import shutil

import pytest

from supervisor.qemu import accel

QEMU = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_probe_is_a_guest_that_runs(machine: str) -> None:
    """Under emulation, which always works: so a failure under KVM is KVM's."""
    assert accel.run_probe(QEMU, "-machine", machine, "-cpu", "max") == (85, "")


def test_probe_that_cannot_run_is_told_from_one_that_does() -> None:
    code, output = accel.run_probe(QEMU, "-machine", "no-such-machine")
    assert code == 1
    assert "unsupported machine" in output
