"""What a processor measures, by the files; and what an owner is told to expect.

The digests are computed here once more, from AMD's documents. That a processor comes to the same
could not be tried.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

from supervisor.config import QemuConfig
from supervisor.qemu import measured as of_vm
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.confidential import DirectBoot
from supervisor.tee import expected, measure
from supervisor.tee.expected import Measurement
from supervisor.tee.facts import Technology
from supervisor.tee.measure import Measured
from tests.unit.test_confidential import a_guest

SEV, ES, SNP, TDX = Technology

#: Kinds of sections, by OVMF's metadata; and of pages, by AMD's 56860, "PAGE_INFO".
SEC_MEM, SECRETS, CPUID, KERNEL_HASHES = 1, 2, 3, 0x10
NORMAL, VMSA_PAGE, ZERO, SECRETS_PAGE, CPUID_PAGE = 1, 2, 3, 5, 6

RESET_EIP, HASHES_AT = 0x80B004, 0x810400
SECTIONS = [
    (0x800000, 0x9000, SEC_MEM),
    (0x80D000, 0x1000, SECRETS),
    (0x80E000, 0x1000, CPUID),
    (0x810000, 0x1000, KERNEL_HASHES),
]


def entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le


def ovmf(*, hashes: bool = True) -> bytes:
    """The least that has what is measured: edk2's OvmfPkg/ResetVector."""
    sections = SECTIONS if hashes else SECTIONS[:3]
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *one) for one in sections)
    table = entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", RESET_EIP))
    place = struct.pack("<II", HASHES_AT, 0x400) if hashes else bytes(8)
    table += entry("7255371f-3a3b-4b04-927b-1da6efa8d454", place)
    # Of the metadata, counted from the end.
    after = len(table) + 22 + 18 + 32
    offset = struct.pack("<I", after + len(metadata))
    table += entry("dc886566-984a-4798-a75e-5585a7bf67cc", offset)
    table += struct.pack("<H", len(table) + 18)
    table += uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    end = metadata + table + bytes(32)
    return bytes(range(256)) * 32 + bytes(0x1000 - len(end)) + end


def hash_table(kernel: bytes, initrd: bytes, line: bytes) -> bytes:
    """QEMU's docs and target/i386/sev.c: the hashes of what is booted directly."""

    def hashed(guid: str, content: bytes) -> bytes:
        digest = hashlib.sha256(content).digest()
        return uuid.UUID(guid).bytes_le + struct.pack("<H", 50) + digest

    made = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le + struct.pack("<H", 168)
    made += hashed("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", line + b"\0")
    made += hashed("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd)
    made += hashed("4de79437-abd2-427f-b835-d5b172d2045b", kernel)
    return made.ljust(176, b"\0")


def first_registers(mode: SevMode, features: int, vcpus: int) -> list[bytes]:
    """These alone are the package's own."""
    made = VMSA(mode, RESET_EIP, CPU_SIGS["EPYC-v4"], features, VMMType.QEMU)
    return [bytes(page) for page in made.pages(vcpus)]


def extended(digest: bytes, kind: int, address: int, content: bytes) -> bytes:
    """AMD's 56860, table "PAGE_INFO": what each page adds to the launch digest."""
    info = struct.pack("<48s48sHBBIQ", digest, content, 0x70, kind, 0, 0, address)
    return hashlib.sha384(info).digest()


def snp_digest(firmware: bytes, table: bytes, vcpus: int) -> str:
    digest, nothing = bytes(48), bytes(48)
    start = 2**32 - len(firmware)
    for at in range(0, len(firmware), 4096):
        content = hashlib.sha384(firmware[at : at + 4096]).digest()
        digest = extended(digest, NORMAL, start + at, content)
    kinds = {SEC_MEM: ZERO, SECRETS: SECRETS_PAGE, CPUID: CPUID_PAGE, KERNEL_HASHES: ZERO}
    for address, size, kind in SECTIONS:
        if kind == KERNEL_HASHES and table:
            page = (bytes(HASHES_AT & 0xFFF) + table).ljust(4096, b"\0")
            digest = extended(digest, NORMAL, address, hashlib.sha384(page).digest())
            continue
        for at in range(0, size, 4096):
            digest = extended(digest, kinds[kind], address + at, nothing)
    for page in first_registers(SevMode.SEV_SNP, 1, vcpus):
        content = hashlib.sha384(page).digest()
        digest = extended(digest, VMSA_PAGE, 0xFFFFFFFFF000, content)
    return digest.hex()


@pytest.fixture
def made(tmp_path: Path) -> Measured:
    (tmp_path / "kernel").write_bytes(b"kernel" * 1000)
    (tmp_path / "initrd").write_bytes(b"initrd")
    (tmp_path / "ovmf.fd").write_bytes(ovmf())
    (tmp_path / "without.fd").write_bytes(ovmf(hashes=False))
    return Measured(
        firmware=tmp_path / "ovmf.fd",
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        cmdline="a=b quiet",
        vcpus=3,
        cpu="EPYC-v4,+x",
    )


TABLE = hash_table(b"kernel" * 1000, b"initrd", b"a=b quiet")


def alone(made: Measured) -> Measured:
    """Without a kernel that is booted directly."""
    return attrs.evolve(made, kernel=None, initrd=None, cmdline="")


@pytest.mark.parametrize("table", [b"", TABLE])
def test_digests(made: Measured, table: bytes) -> None:
    given = made if table else alone(made)
    assert measure.measure(SEV, given).digest == hashlib.sha256(ovmf() + table).hexdigest()
    registers = b"".join(first_registers(SevMode.SEV_ES, 0, 3))
    whole = ovmf() + table + registers
    assert measure.measure(ES, given).digest == hashlib.sha256(whole).hexdigest()
    assert measure.measure(SNP, given).digest == snp_digest(ovmf(), table, 3)


def test_kernel_without_initrd_and_command_line(made: Measured) -> None:
    given = attrs.evolve(alone(made), kernel=made.kernel)
    table = hash_table(b"kernel" * 1000, b"", b"")
    assert measure.measure(SEV, given).digest == hashlib.sha256(ovmf() + table).hexdigest()


@pytest.mark.parametrize(
    ("technology", "change", "problem"),
    [
        (SNP, {"cpu": "host"}, "the signature of the CPU model host is not known here"),
        (ES, {"cpu": "Skylake-Client"}, "CPU model Skylake-Client"),
        (SNP, {"firmware": Path("/nowhere")}, "/nowhere: "),
        (TDX, {}, "ovmf.fd: it says nothing of TDX"),
        (TDX, {"firmware": Path("/nowhere")}, "/nowhere"),
    ],
)
def test_what_cannot_be_computed_is_said(
    made: Measured, technology: Technology, change: dict[str, Any], problem: str
) -> None:
    found = measure.measure(technology, attrs.evolve(made, **change))
    assert not found.digest
    assert problem in found.problem


@pytest.mark.parametrize("technology", [SEV, ES, SNP])
def test_firmware_without_a_place_for_hashes(made: Measured, technology: Technology) -> None:
    without = attrs.evolve(made, firmware=made.firmware.with_name("without.fd"))
    found = measure.measure(technology, without)
    assert not found.digest
    assert "without.fd: Kernel specified but OVMF" in found.problem
    assert measure.measure(technology, alone(without)).digest


def test_sev_does_not_measure_registers(made: Measured) -> None:
    assert measure.measure(SEV, attrs.evolve(made, cpu="host")) == measure.measure(SEV, made)


@pytest.mark.parametrize("content", [b"", bytes(4096), b"\xff" * 8192, ovmf()[:-1]])
def test_file_that_is_no_ovmf(made: Measured, content: bytes) -> None:
    made.firmware.write_bytes(content)
    assert measure.measure(SNP, made).problem


def test_measured_is_what_the_vm_is_launched_with(made: Measured) -> None:
    config = QemuConfig(smp_count=3)
    boot = DirectBoot(made.kernel or Path(), made.initrd, made.cmdline)
    guest = a_guest(SNP, firmware=made.firmware, boot=boot)
    found = of_vm.measure(config, Accel(kvm=True), guest)
    assert found == measure.measure(SNP, made)
    igvm = attrs.evolve(guest, firmware=None, boot=None, igvm=Path("/x"))
    assert "/x: No such file" in of_vm.measure(config, Accel(kvm=True), igvm).problem
    # The pair in flash: its code alone is measured.
    code = attrs.evolve(config, firmware=attrs.evolve(config.firmware, code_file=made.firmware))
    in_flash = of_vm.measure(code, Accel(kvm=True), a_guest(SEV))
    assert in_flash.digest == hashlib.sha256(ovmf()).hexdigest()


# --- what an owner is told ------------------------------------------------------------------


def told(technology: Technology, number: int, measurement: Measurement) -> dict[str, Any]:
    return expected.document(
        expected.Claims(
            vm_id="",
            technology=technology,
            number=number,
            bound_to="ab" * 32,
            measurement=measurement,
        )
    )


def test_rules_of_sev_snp() -> None:
    found = told(SNP, 0x30000, Measurement("cd" * 48))
    values = {rule["field"]: rule["expected"] for rule in found["rules"]}
    assert values == {
        "MEASUREMENT": "cd" * 48,
        "HOST_DATA": "ab" * 32,
        "POLICY": "0x30000",
        "VMPL": "0",
        "REPORT_DATA": None,
        "REPORTED_TCB": None,
    }
    assert found["command"] == (
        "qmp-supervisor verify snp REPORT --leaf CERTIFICATE --nonce NONCE"
        f" --measurement {'cd' * 48} --computation COMPUTATION --policy 0x30000"
    )
    assert "no-debug,smt," in found["rules"][2]["why"]


@pytest.mark.parametrize("technology", Technology)
def test_what_is_not_known_is_said_and_not_left_out(technology: Technology) -> None:
    found = told(technology, 0, Measurement(problem="because"))
    assert found["rules"][0]["expected"] is None
    assert found["rules"][0]["why"] == "because"
    assert "--measurement" not in (found["command"] or "")
    assert all(rule["why"] for rule in found["rules"])


def test_sev_has_no_field_for_the_computation() -> None:
    found = told(ES, 0xF, Measurement("cd" * 32, legacy_digest="ef" * 32))
    assert found["command"] == (
        "qmp-supervisor verify sev MEASUREMENT --tik TIK --api API --build-id BUILD"
        f" --digest {'cd' * 32} --policy 0xf"
    )
    values = {rule["field"]: rule["expected"] for rule in found["rules"]}
    assert values["LAUNCH_DIGEST, legacy VM type"] == "ef" * 32
    assert values["computation"] is None
    assert len(told(SEV, 0xB, Measurement("cd" * 32))["rules"]) == 3
