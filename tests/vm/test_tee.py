"""What of confidential guests a machine without SEV and TDX can show.

Each real QEMU here reads the whole command line and stops where it finds that KVM is missing, or
that it does not know the technology. The kernel and the initramfs that are measured in a direct
boot do boot directly.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
import pytest

from supervisor.config.settings import Size
from supervisor.image.manifest import Manifest
from supervisor.qemu import cmdline, confidential, firmware, trial
from supervisor.qemu.confidential import Confidential, DirectBoot
from supervisor.qemu.version import Version
from supervisor.tee import binding, causes
from supervisor.tee.facts import Technology
from tests.unit.test_cmdline import CONFIG, a_machine
from tests.unit.test_confidential import a_guest
from tests.vm.conftest import IMAGE, PATIENCE_S
from tests.vm.test_qemus import SUITES, UNPACKED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.config import QemuConfig
    from supervisor.qemu.cmdline import Machine
    from supervisor.qemu.version import Binary

OF_THIS_MACHINE = "qemu-system-x86_64"
#: By what it has on its command line: the object of each technology.
OBJECTS = {
    Technology.SEV: "sev-guest",
    Technology.SEV_ES: "sev-guest",
    Technology.SEV_SNP: "sev-snp-guest",
    Technology.TDX: "tdx-guest",
}


@pytest.fixture(scope="module", params=[OF_THIS_MACHINE, *SUITES])
def qemu(request: pytest.FixtureRequest) -> Binary:
    path: Any = UNPACKED / request.param / OF_THIS_MACHINE
    if request.param == OF_THIS_MACHINE:
        path = shutil.which(OF_THIS_MACHINE)
    elif not path.exists():
        pytest.skip(f"{path} is missing: scripts/test could not unpack Debian's packages")
    return trial.look_at(str(path))


@pytest.fixture(scope="module")
def ovmf() -> Path:
    found = firmware.in_one_file("amd-sev-snp")
    assert found, "there is no OVMF in one file"
    return found


@pytest.fixture
def machine(tmp_path: Path, qemu: Binary) -> Machine:
    """A plain one, with files that are there."""
    overlay, variables = tmp_path / "overlay.qcow2", tmp_path / "vars.fd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, "1M"], check=True)
    shutil.copyfile(chosen(CONFIG).firmware.vars_file, variables)
    return attrs.evolve(
        a_machine(kvm=False),
        qemu=qemu,
        forwards=(),
        overlay=overlay,
        firmware_vars=variables,
        serial_log=tmp_path / "serial.log",
        qmp_socket=tmp_path / "qmp.sock",
    )


def chosen(config: QemuConfig) -> QemuConfig:
    found = firmware.choose(config, firmware.read_descriptors())
    return attrs.evolve(config, cpu="max", memory_size=Size("512M"), firmware=found)


def command(machine: Machine, guest: Confidential) -> list[str]:
    """As a person starts it."""
    return cmdline.command(chosen(CONFIG), attrs.evolve(machine, confidential=guest))


def last_words(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode
    return done.stderr.strip().splitlines()[-1]


def cause_of(words: list[str]) -> str:
    said = last_words(words)
    cause = causes.explain(said)
    assert cause, said
    return cause.what


def with_firmware(guest: Confidential, ovmf: Path) -> Confidential:
    return attrs.evolve(guest, firmware=ovmf) if guest.firmware else guest


@pytest.mark.parametrize("technology", Technology)
def test_real_qemu_reads_all_of_it(machine: Machine, ovmf: Path, technology: Technology) -> None:
    more: dict[str, Any] = {}
    if binding.binds(technology):
        more["boot"] = DirectBoot(IMAGE.parent / "vmlinuz", None, "a=b,c")
    if technology is Technology.SEV_SNP:
        more |= {"id_block": bytes(96), "id_auth": bytes(4096)}
    knows = OBJECTS[technology] in machine.qemu.objects
    for members in ({}, more):
        guest = attrs.evolve(with_firmware(a_guest(technology), ovmf), **members)
        assert cause_of(command(machine, guest)) == (
            "confidential guests need KVM" if knows else "this QEMU does not know the technology"
        )


@pytest.mark.parametrize("technology", [Technology.SEV, Technology.SEV_ES])
def test_firmware_must_have_a_place_for_the_kernels_hashes(
    machine: Machine, technology: Technology
) -> None:
    """Debian's pair in flash has none. QEMU 10 looks for it before it looks for KVM."""
    guest = a_guest(technology, boot=DirectBoot(IMAGE.parent / "vmlinuz"))
    cause = cause_of(command(machine, guest))
    if machine.qemu.version < Version(10, 0) and cause == "confidential guests need KVM":
        return
    assert cause == "the firmware has no place for the kernel's hashes"


@pytest.mark.parametrize("technology", Technology)
@pytest.mark.parametrize("wrong", ["cbitpos=x", "no-such-member=1", "no-such-machine=1"])
def test_it_would_say_so_of_a_wrong_word(
    machine: Machine, ovmf: Path, technology: Technology, wrong: str
) -> None:
    """Or the test above would show nothing."""
    if OBJECTS[technology] not in machine.qemu.objects:
        pytest.skip(f"QEMU {machine.qemu.version} knows no {OBJECTS[technology]}")
    right = {"no-such-machine=1": "smm=off", "cbitpos=x": "cbitpos=51"}.get(wrong, "policy=")
    words = command(machine, with_firmware(a_guest(technology), ovmf))
    if technology is Technology.TDX and wrong != "no-such-machine=1":
        right, wrong = '"sept-ve-disable":true', f'"{wrong}":true'
    if technology is Technology.SEV and right == "smm=off":
        right, wrong = "confidential-guest-support", f"{wrong},confidential-guest-support"
    assert any(right in word for word in words)
    said = last_words([word.replace(right, wrong) for word in words])
    assert "KVM" not in said
    assert "Assertion" not in said


def test_qemu_without_libigvm_knows_no_igvm(machine: Machine, tmp_path: Path) -> None:
    igvm = tmp_path / "file.igvm"
    igvm.write_bytes(b"x")
    guest = a_guest(Technology.SEV, igvm=igvm)
    knows = "igvm-cfg" in machine.qemu.objects
    unknown = cause_of(command(machine, guest)) == "this QEMU does not know the technology"
    assert unknown is not knows


@pytest.fixture
def console(machine: Machine, ovmf: Path) -> Iterator[IO[str]]:
    """Of a plain guest that is booted as a confidential one would be."""
    if machine.qemu.path != shutil.which(OF_THIS_MACHINE):
        pytest.skip("one QEMU is enough")
    files = IMAGE.parent
    line = Manifest.read(files).command_line
    boot = DirectBoot(files / "vmlinuz", files / "initrd.img", line)
    guest = a_guest(Technology.SEV_SNP, firmware=ovmf, boot=boot)
    heard = attrs.evolve(machine, serial_log=Path("/dev/stdout"))
    words = cmdline.command(chosen(CONFIG), heard)
    place = words.index("scsi-hd.bootindex=0")  # as with all that boot directly
    del words[place - 1 : place + 1]
    in_flash = [index for index, word in enumerate(words) if "if=pflash" in word]
    words = [word for index, word in enumerate(words) if not {index, index + 1} & set(in_flash)]
    words += [*confidential.firmware_args(guest), *confidential.boot_args(guest.boot)]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        ended = threading.Timer(PATIENCE_S, process.kill)
        ended.start()
        assert process.stdout
        try:
            yield process.stdout
        finally:
            ended.cancel()
            process.kill()


def test_kernel_and_initramfs_that_are_measured_are_a_whole_guest(console: IO[str]) -> None:
    heard = []
    for line in console:
        heard.append(line)
        if re.match(r"\[guest +[0-9.]+\] up", line):
            return
    pytest.fail("".join(heard))
