"""What keeps a host from starting SEV guests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.tee import sev

PARAMETER = Path("/sys/module/kvm_amd/parameters/sev")


def test_without_kvm_there_is_no_sev() -> None:
    assert sev.missing(kvm=False) == "SEV needs KVM, which does not work here"


@pytest.mark.skipif(PARAMETER.exists(), reason="this host has AMD's KVM")
def test_host_without_amds_kvm() -> None:
    assert str(PARAMETER) in (sev.missing(kvm=True) or "")


@pytest.mark.skipif(not PARAMETER.exists(), reason="this host has no AMD's KVM")
def test_host_with_amds_kvm() -> None:
    enabled = PARAMETER.read_text().strip() in ("Y", "1")
    ready = enabled and os.access("/dev/sev", os.R_OK | os.W_OK)
    assert (sev.missing(kvm=True) is None) == ready
