"""The command lines of confidential guests, word for word.

No host with SEV or TDX was at hand: that these words start a guest is not shown here. That QEMU's
own parser takes them is, in tests/vm/test_tee.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from supervisor.config import QemuConfig, QuoteSocket, SevConfig, TeeConfig
from supervisor.errors import FirmwareError, LaunchError
from supervisor.qemu import cmdline, firmware, measured
from supervisor.qemu.confidential import Confidential, DirectBoot, Found, found_in
from supervisor.qemu.version import Binary, Version
from supervisor.tee import binding
from supervisor.tee.facts import Technology
from tests.unit.test_cmdline import CONFIG, VM_ID, a_machine, a_qemu, option

COMPUTATION = b'{"id": "1"}'
#: Its SHA-256, by sha256sum(1), and base64(1).
HOST_DATA = "Uf7aveVl9HFbXmLVdNKnMJBlS2Iln42SEc/F7pnlYS0="

OVMF = Path("/usr/share/OVMF/OVMF.amdsev.fd")
VERSIONS = [Version(*numbers) for numbers in ((7, 2), (8, 2), (9, 1), (10, 0), (10, 1), (11, 1))]


def a_guest(technology: Technology, **members: Any) -> Confidential:
    """As `measured.choose` makes it of the defaults."""
    policy = {"sev": 0xB, "sev-es": 0xF, "sev-snp": 0x30000, "tdx": 0}[technology]
    made = Confidential(
        technology=technology,
        policy=policy,
        bound_to=binding.field(technology, COMPUTATION),
        firmware=OVMF if binding.binds(technology) else None,
        quote_socket=QuoteSocket(cid=2, port=4050) if technology is Technology.TDX else None,
    )
    return attrs.evolve(made, **members)


def words(guest: Confidential, version: Version = VERSIONS[0]) -> list[str]:
    return cmdline.argv(CONFIG, attrs.evolve(a_machine(confidential=guest), qemu=a_qemu(version)))


def added(guest: Confidential, version: Version = VERSIONS[0]) -> list[str]:
    """What follows the network card and comes before what all VMs have."""
    line = words(guest, version)
    card = next(index for index, word in enumerate(line) if word.startswith("virtio-net-pci"))
    return [word.replace(f"-{VM_ID}", "") for word in line[card + 1 : line.index("-nographic")]]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_sev(version: Version) -> None:
    legacy = ",legacy-vm-type=auto" if version >= Version(9, 1) else ""
    assert added(a_guest(Technology.SEV), version) == [
        *("-object", f"sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0xb{legacy}"),
        *("-machine", "confidential-guest-support=sev0"),
    ]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_sev_es(version: Version) -> None:
    legacy = ",legacy-vm-type=auto" if version >= Version(9, 1) else ""
    assert added(a_guest(Technology.SEV_ES), version) == [
        *("-object", f"sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0xf{legacy}"),
        *("-machine", "confidential-guest-support=sev0,smm=off"),
    ]


@pytest.mark.parametrize("version", VERSIONS[2:], ids=str)
def test_sev_snp(version: Version) -> None:
    assert added(a_guest(Technology.SEV_SNP), version) == [
        "-object",
        "sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000"
        f",host-data={HOST_DATA}",
        *("-machine", "confidential-guest-support=sev0,smm=off"),
    ]


@pytest.mark.parametrize("version", VERSIONS[4:], ids=str)
@pytest.mark.parametrize(
    ("socket", "written"),
    [
        (QuoteSocket(cid=2, port=4050), '{"type":"vsock","cid":"2","port":"4050"}'),
        (QuoteSocket(Path('/a,"b')), '{"type":"unix","path":"/a,\\"b"}'),
    ],
)
def test_tdx(version: Version, socket: QuoteSocket, written: str) -> None:
    digest = base64.b64encode(hashlib.sha256(COMPUTATION).digest() + bytes(16)).decode()
    assert added(a_guest(Technology.TDX, quote_socket=socket), version) == [
        "-object",
        '{"qom-type":"tdx-guest","id":"tdx0","sept-ve-disable":true,'
        f'"mrconfigid":"{digest}","quote-generation-socket":{written}}}',
        "-machine",
        "confidential-guest-support=tdx0,smm=off,kernel-irqchip=split,hpet=off",
    ]


@pytest.mark.parametrize("technology", Technology)
def test_firmware_is_in_flash_only_where_that_can_be_encrypted(technology: Technology) -> None:
    line = words(a_guest(technology))
    in_flash = any("if=pflash" in word for word in line)
    assert in_flash is (technology in (Technology.SEV, Technology.SEV_ES))
    assert ("-bios" in line) is not in_flash


def test_sev_with_a_firmware_of_its_own() -> None:
    line = words(a_guest(Technology.SEV, firmware=OVMF))
    assert option(line, "-bios") == str(OVMF)
    assert not any("if=pflash" in word for word in line)


@pytest.mark.parametrize(
    ("technology", "cpu"),
    [
        (Technology.SEV, "EPYC"),
        (Technology.SEV_ES, "EPYC"),
        (Technology.SEV_SNP, "EPYC-v4"),
        (Technology.TDX, "host"),
    ],
)
def test_cpu(technology: Technology, cpu: str) -> None:
    assert option(words(a_guest(technology)), "-cpu") == cpu
    chosen = attrs.evolve(CONFIG, cpu="EPYC-Genoa")
    machine = a_machine(confidential=a_guest(technology))
    assert option(cmdline.argv(chosen, machine), "-cpu") == "EPYC-Genoa"


@pytest.mark.parametrize("technology", Technology)
def test_direct_boot_is_measured(technology: Technology) -> None:
    boot = DirectBoot(Path("/k"), Path("/i"), "console=ttyS0 a=b,c")
    line = words(a_guest(technology, boot=boot))
    assert [option(line, name) for name in ("-kernel", "-initrd", "-append")] == [
        *("/k", "/i", "console=ttyS0 a=b,c")
    ]
    # TDX's firmware measures the kernel itself.
    hashes = "kernel-hashes=on" in option(line, "-object", having="guest")
    assert hashes is (technology is not Technology.TDX)
    # QEMU 7.2 gives the kernel the first place, and starts no VM with two things there.
    assert "scsi-hd.bootindex=0" not in line
    assert "scsi-hd.bootindex=0" in words(a_guest(technology))
    alone = words(a_guest(technology, boot=DirectBoot(Path("/k"))))
    assert not {"-initrd", "-append"} & set(alone)


def test_igvm_takes_the_place_of_all_firmware() -> None:
    guest = a_guest(Technology.SEV_SNP, firmware=None, igvm=Path("/a,b.igvm"))
    line = words(guest)
    assert added(guest)[2:] == [
        *("-object", "igvm-cfg,id=igvm0,file=/a,,b.igvm"),
        *("-machine", "confidential-guest-support=sev0,smm=off,igvm-cfg=igvm0"),
    ]
    assert "-bios" not in line
    assert not any("if=pflash" in word for word in line)


@pytest.mark.parametrize("author", [False, True])
def test_id_block(author: bool) -> None:
    auth = b"\1\0\0\0" + (b"\1\0\0\0" if author else bytes(4)) + bytes(4088)
    guest = a_guest(Technology.SEV_SNP, id_block=b"b" * 96, id_auth=auth)
    made = option(words(guest), "-object", having="sev-snp-guest").split(",")
    encoded = base64.b64encode(auth).decode()
    assert made[6:] == [
        f"id-block={'YmJi' * 32}",
        f"id-auth={encoded}",
        *(["author-key-enabled=on"] if author else []),
    ]


def test_person_gets_no_host_data_where_there_is_no_computation() -> None:
    for technology in (Technology.SEV_SNP, Technology.TDX):
        made = option(words(a_guest(technology, bound_to=b"")), "-object", having="guest")
        assert "host-data" not in made
        assert "mrconfigid" not in made


@pytest.mark.parametrize("technology", Technology)
def test_a_command_line_says_what_its_guest_is(technology: Technology) -> None:
    guest = a_guest(technology)
    found = Found(technology, guest.policy, guest.bound_to.hex())
    assert found_in(words(guest)) == found
    assert found_in(words(guest, VERSIONS[-1])) == found


def test_command_lines_of_earlier_versions_and_of_plain_guests() -> None:
    old = ["-object", "sev-guest,id=sev0-1,cbitpos=51,reduced-phys-bits=1"]
    assert found_in([*old, "-machine", "memory-encryption=sev0-1"]) == Found(Technology.SEV, 1)
    assert found_in(cmdline.argv(CONFIG, a_machine())) is None


# --- what is chosen -------------------------------------------------------------------------

WITH_IGVM = Binary("/qemu", Version(10, 1), frozenset({"igvm-cfg"}))


def choose(
    technology: Technology = Technology.SEV_SNP, qemu: Binary = WITH_IGVM, **settings: Any
) -> Confidential:
    config = QemuConfig(sev=SevConfig(cbitpos=51), tee=TeeConfig(**settings))
    return measured.choose(config, qemu, technology, 7, b"bound")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(b"x")
    return made


def test_choice_of_firmware(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(feature: str) -> Path:
        asked.append(feature)
        return file

    monkeypatch.setattr(firmware, "in_one_file", find)
    assert [choose(technology).firmware for technology in Technology] == [None, None, file, file]
    assert asked == ["amd-sev-snp", "intel-tdx"]
    assert choose(Technology.SEV, firmware=file).firmware == file
    assert len(asked) == 2
    # Debian's pair in flash has no place for the hashes of a kernel.
    assert choose(Technology.SEV_ES, kernel=file).firmware == file
    assert asked[2:] == ["amd-sev-es"]
    assert choose(igvm=file).firmware is None


def test_no_firmware_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "in_one_file", lambda _: None)
    with pytest.raises(FirmwareError, match="SEV-SNP needs firmware in one file"):
        choose()


def test_firmware_that_promises_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, able = tmp_path / "plain.fd", tmp_path / "able.fd"
    monkeypatch.setattr(firmware, "_KNOWN", {plain: frozenset(), tmp_path / "none": frozenset("x")})
    assert firmware.in_one_file("x", [tmp_path]) is None
    plain.touch()
    assert firmware.in_one_file("x", [tmp_path]) == plain
    written = {
        "interface-types": ["uefi"],
        "mapping": {"device": "memory", "filename": str(able)},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["x"],
    }
    (tmp_path / "50-able.json").write_text(json.dumps(written))
    in_flash = {"device": "flash", "executable": {"filename": "/flash.fd", "format": "raw"}}
    (tmp_path / "10-flash.json").write_text(json.dumps(written | {"mapping": in_flash}))
    assert firmware.in_one_file("x", [tmp_path]) == able
    assert firmware.in_one_file("y", [tmp_path]) == plain
    # Ubuntu's AmdSev build.
    stateless = {"mapping": in_flash | {"mode": "stateless"}, "features": ["y"]}
    (tmp_path / "60-stateless.json").write_text(json.dumps(written | stateless))
    assert firmware.in_one_file("y", [tmp_path]) == Path("/flash.fd")


@pytest.mark.parametrize("setting", ["firmware", "kernel", "igvm"])
def test_missing_file_is_named(setting: str, file: Path) -> None:
    with pytest.raises(LaunchError, match="/nowhere cannot be read: No such file"):
        choose(Technology.SEV, WITH_IGVM, **{setting: Path("/nowhere")})
    assert getattr(choose(Technology.SEV, WITH_IGVM, **{setting: file}), setting, file) == file


def test_qemu_without_libigvm(file: Path) -> None:
    with pytest.raises(LaunchError, match=r"version 11\.1\.3, takes no IGVM file") as raised:
        choose(qemu=Binary("/qemu", Version(11, 1, 3), frozenset()), igvm=file)
    assert "libigvm" in raised.value.advice


def test_id_block_has_its_length(tmp_path: Path, file: Path) -> None:
    block, auth = tmp_path / "block", tmp_path / "auth"
    block.write_bytes(b"b" * 96)
    auth.write_bytes(b"a" * 4096)
    made = choose(firmware=file, id_block=block, id_auth=auth)
    assert (made.id_block, made.id_auth) == (b"b" * 96, b"a" * 4096)
    assert choose(Technology.SEV, firmware=file, id_block=block, id_auth=auth).id_block == b""
    for wrong in (95, 97):
        block.write_bytes(b"b" * wrong)
        with pytest.raises(LaunchError, match="has not 96 bytes"):
            choose(firmware=file, id_block=block, id_auth=auth)


def test_quotes_come_from_where_intels_service_listens(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(Technology.SEV_SNP, firmware=file).quote_socket is None
    monkeypatch.setattr(measured, "_QGS", QuoteSocket(Path("/nowhere")))
    assert str(choose(Technology.TDX, firmware=file).quote_socket) == "vsock:2:4050"
    monkeypatch.setattr(measured, "_QGS", QuoteSocket(file))
    assert choose(Technology.TDX, firmware=file).quote_socket == QuoteSocket(file)
    given = QuoteSocket(cid=3, port=9)
    assert choose(Technology.TDX, firmware=file, quote_socket=given).quote_socket == given
