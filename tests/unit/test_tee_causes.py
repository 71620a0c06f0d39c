"""What QEMU and the kernel say of a failed launch, and what an engineer makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from supervisor.tee import causes

#: As people have printed them at github.com/AMDESE/AMDSEV and github.com/canonical/tdx.
SAID = {
    "qemu-system-x86_64: sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''": (
        "KVM refused the launch",
        "smt",
    ),
    "qemu-system-x86_64: SNP_LAUNCH_START ret=-25 fw_error=0": (
        "do not understand each other",
        "9.1 and 6.11",
    ),
    "qemu-system-x86_64: SNP_LAUNCH_START ret=-5 fw_error=7 'Policy is not allowed'": (
        "0x7: the guest's policy",
        "BIOS",
    ),
    "qemu-system-x86_64: SNP_LAUNCH_START ret=-5 fw_error=21 'Feature not supported'": (
        "0x15: the firmware does not support",
        "AMD-SB-3023",
    ),
    "sev_launch_start: LAUNCH_START ret=1 fw_error=0x17": ("no resources left", "BIOS"),
    "sev_launch_start: LAUNCH_START ret=1 fw_error=99": ("psp-sev.h", "BIOS"),
    "qemu-system-x86_64: sev_kvm_init: failed to initialize ret=-22 fw_error=0": (
        "not initialised on this host",
        "doctor",
    ),
    "qemu-system-x86_64: KVM_TDX_CAPABILITIES failed: Inappropriate ioctl for device": (
        "do not understand each other",
        "10.1 and 6.16",
    ),
    "qemu-system-x86_64: Parameter 'qom-type' does not accept value 'tdx-guest'": (
        "does not know the technology",
        "10.1",
    ),
    "qemu-system-x86_64: -object igvm-cfg,id=a: Parameter 'qom-type' does not accept value"
    " 'igvm-cfg'": ("does not know", "IGVM"),
    "qemu-system-x86_64: vm-type tdx not supported by KVM": ("KVM has no TDX", "kvm_intel.tdx"),
    "qemu-system-x86_64: KVM_TDX_INIT_MEM_REGION failed Input/output error": (
        "give the guest its memory",
        "KeyIDs",
    ),
    "qemu-system-x86_64: SEV: guest firmware hashes table area is invalid (base=0x0 size=0x0)": (
        "no place for the kernel's hashes",
        "AmdSev",
    ),
    "error: kvm run failed Invalid argument": ("not made for this", "MANAGER_TEE_FIRMWARE"),
    "qemu-system-x86_64: cannot set up private guest memory for sev-snp-guest: KVM required": (
        "need KVM",
        "doctor",
    ),
    "qemu-system-x86_64: accelerator does not support confidential guest sev-guest": (
        "need KVM",
        "doctor",
    ),
    "qemu-system-x86_64: ../../softmmu/vl.c:2590: qemu_machine_creation_done: Assertion"
    " `machine->cgs->ready' failed.": ("need KVM", "doctor"),
}


@pytest.mark.parametrize("line", SAID)
def test_cause_and_advice(line: str) -> None:
    cause = causes.explain(f"warning: something else\n{line}\n")
    assert cause
    what, advice = SAID[line]
    assert what in cause.what
    assert advice in cause.advice


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Number of hotpluggable cpus requested (255) exceeds the recommended cpus supported by KVM"
        " (64)",
        "LAUNCH_START ret=-5 fw_error=0 ''",
        "fw_error=",
    ],
)
def test_what_is_harmless_or_not_known_has_no_cause(said: str) -> None:
    assert causes.explain(said) is None


@given(some.text())
def test_any_text_has_a_cause_or_none(text: str) -> None:
    causes.explain(text)
    causes.explain(f"fw_error={text}")
