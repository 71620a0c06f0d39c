"""Which firmware VMs use: as it is set, as QEMU's descriptors say, as the files' headers say."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest

from supervisor.config import FirmwareConfig, QemuConfig
from supervisor.config.settings import Switch
from supervisor.errors import FirmwareError
from supervisor.qemu import firmware
from supervisor.qemu.firmware import Descriptor

CODE_2M, VARS_2M = 1966080, 131072
CODE_4M, VARS_4M = 3653632, 540672

_FFS2 = "8c8ce578-8a3d-4f1c-9935-896185c32dd3"
_NVRAM = "fff12b8d-7696-4c8b-a985-2747075b4f50"

NOTHING: list[Descriptor] = []


@pytest.fixture(autouse=True)
def default(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> FirmwareConfig:
    """Defaults below a directory of the test, where nothing is yet."""
    made = FirmwareConfig(
        code_file=short_tmp / "OVMF_CODE.fd", vars_file=short_tmp / "OVMF_VARS.fd"
    )
    monkeypatch.setattr(firmware, "_DEFAULT", made)
    return made


def volume(file: Path, guid: str, size: int, length: int | None = None) -> Path:
    """A file that begins with a firmware volume of this length, which is its whole if None."""
    header = bytes(16) + uuid.UUID(guid).bytes_le + (length or size).to_bytes(8, "little")
    with file.open("wb") as opened:
        opened.write(header + b"_FVH")
        opened.truncate(size)
    return file


def code(file: Path, size: int = CODE_4M) -> Path:
    return volume(file, _FFS2, size, size - 4096)


def variables(file: Path, size: int = VARS_4M) -> Path:
    return volume(file, _NVRAM, size)


def pair(code_file: Path, vars_file: Path) -> FirmwareConfig:
    return FirmwareConfig(code_file=code_file, vars_file=vars_file)


def written(tmp: Path, name: str = "OVMF", **changes: Any) -> dict[str, object]:
    """A descriptor's text, in the shape that packages have it. Its files are made."""
    return {
        "description": "UEFI firmware for x86_64",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code(tmp / f"{name}_CODE_4M.fd")), "format": "raw"},
            "nvram-template": {
                "filename": str(variables(tmp / f"{name}_VARS_4M.fd")),
                "format": "raw",
            },
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "amd-sev", "verbose-dynamic"],
        "tags": [],
    } | changes


def describe(directory: Path, file: str, text: object) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / file).write_text(text if isinstance(text, str) else json.dumps(text))
    return directory


def descriptors(tmp: Path, *texts: dict[str, object]) -> list[Descriptor]:
    for number, text in enumerate(texts):
        describe(tmp / "firmware", f"{number}0-test.json", text)
    return firmware.read_descriptors([tmp / "firmware"])


def chosen(config: FirmwareConfig, known: list[Descriptor], **settings: object) -> tuple[str, str]:
    made = attrs.evolve(QemuConfig(firmware=config), **settings)  # type: ignore[arg-type]
    found = firmware.choose(made, known)
    return found.code_file.name, found.vars_file.name


# --- descriptors ----------------------------------------------------------------------------


def test_descriptor_as_debian_has_it(short_tmp: Path) -> None:
    (found,) = descriptors(short_tmp, written(short_tmp))
    assert found == Descriptor(
        file=short_tmp / "firmware" / "00-test.json",
        code_file=short_tmp / "OVMF_CODE_4M.fd",
        code_format="raw",
        vars_file=short_tmp / "OVMF_VARS_4M.fd",
        vars_format="raw",
        machines=("pc-i440fx-*", "pc-q35-*"),
        features=frozenset(["acpi-s3", "amd-sev", "verbose-dynamic"]),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"interface-types": ["bios"]},
        {"mapping": {"device": "memory", "filename": "/x/OVMF.amdsev.fd"}},
        {
            "mapping": {
                "device": "flash",
                "mode": "stateless",
                "executable": {"filename": "/x/OVMF.amdsev.fd", "format": "raw"},
            }
        },
        {"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]},
        {"targets": []},
        {"mapping": 3},
        {"features": None},
    ],
)
def test_other_kinds_of_firmware_are_passed_over(short_tmp: Path, changes: dict[str, Any]) -> None:
    assert descriptors(short_tmp, written(short_tmp, **changes)) == []


def test_features_of_all_firmware(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Firmware in one file as well, which no VM of ours uses yet, and a file that says nothing."""
    plain = code(short_tmp / "OVMF.fd")
    monkeypatch.setattr(firmware, "_KNOWN", {plain: set(), short_tmp / "none.fd": {"amd-sev"}})
    one_file = {"device": "memory", "filename": "/x/OVMF.amdsev.fd"}
    texts = [
        written(short_tmp),
        written(short_tmp, mapping=one_file, features=["amd-sev-snp"]),
        written(short_tmp, mapping=one_file | {"filename": "/b"}) | {"interface-types": ["bios"]},
        written(short_tmp, targets=[], mapping=one_file | {"filename": "/t"}),
        written(short_tmp, mapping=3),
    ]
    descriptors(short_tmp, *texts)
    describe(short_tmp / "firmware", "damaged.json", "{")
    assert firmware.features([short_tmp / "firmware"]) == {
        str(plain): frozenset(),
        str(short_tmp / "OVMF_CODE_4M.fd"): {"acpi-s3", "amd-sev", "verbose-dynamic"},
        "/x/OVMF.amdsev.fd": {"amd-sev-snp"},
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_damaged_descriptor_is_passed_over_and_hides_its_namesake(
    short_tmp: Path, text: str
) -> None:
    general = describe(short_tmp / "a", "50-x.json", written(short_tmp))
    special = describe(short_tmp / "b", "50-x.json", text)
    assert len(firmware.read_descriptors([general])) == 1
    assert firmware.read_descriptors([general, special]) == []


def test_order_is_by_file_name_whatever_the_directory(short_tmp: Path) -> None:
    general = describe(short_tmp / "a", "20-x.json", written(short_tmp))
    describe(general, "60-x.json", written(short_tmp))
    special = describe(short_tmp / "b", "40-x.json", written(short_tmp))
    describe(special, "60-x.json", written(short_tmp))
    found = firmware.read_descriptors([general, special, short_tmp / "none"])
    assert [one.file for one in found] == [
        general / "20-x.json",
        special / "40-x.json",
        special / "60-x.json",
    ]


def test_directories_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    system = [Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware")]
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert firmware.directories() == [*system, Path("/x/qemu/firmware")]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/x")
    assert firmware.directories() == [*system, Path("/home/x/.config/qemu/firmware")]


# --- which pair -----------------------------------------------------------------------------


def test_defaults_that_exist_are_used(short_tmp: Path, default: FirmwareConfig) -> None:
    known = descriptors(short_tmp, written(short_tmp))
    code(default.code_file, CODE_2M)
    variables(default.vars_file, VARS_2M)
    assert chosen(default, known) == ("OVMF_CODE.fd", "OVMF_VARS.fd")


@pytest.mark.parametrize("part", ["code_file", "vars_file"])
def test_default_that_is_missing_is_chosen_by_descriptor(
    short_tmp: Path, default: FirmwareConfig, part: str
) -> None:
    known = descriptors(short_tmp, written(short_tmp))
    getattr(default, part).write_bytes(b"")
    assert chosen(default, known) == ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")


def test_nothing_to_choose_from(default: FirmwareConfig) -> None:
    assert chosen(default, NOTHING) == ("OVMF_CODE.fd", "OVMF_VARS.fd")


def test_pair_that_is_set_is_used(short_tmp: Path) -> None:
    known = descriptors(short_tmp, written(short_tmp))
    assert chosen(pair(Path("/a/x"), Path("/a/y")), known) == ("x", "y")


@pytest.mark.parametrize("part", ["code_file", "vars_file"])
def test_partner_of_the_file_that_is_set(
    short_tmp: Path, default: FirmwareConfig, part: str
) -> None:
    known = descriptors(short_tmp, written(short_tmp, "A"), written(short_tmp, "B"))
    config = attrs.evolve(default, **{part: getattr(known[1], part)})
    assert chosen(config, known) == ("B_CODE_4M.fd", "B_VARS_4M.fd")


def test_file_of_ones_own_has_the_default_as_its_partner(
    short_tmp: Path, default: FirmwareConfig
) -> None:
    known = descriptors(short_tmp, written(short_tmp))
    config = attrs.evolve(default, code_file=Path("/a/x"))
    assert chosen(config, known) == ("x", "OVMF_VARS.fd")


@pytest.mark.parametrize(
    ("machine", "machines", "fits"),
    [
        ("q35", ["pc-q35-*"], True),
        ("pc", ["pc-q35-*"], False),
        ("pc", ["pc-i440fx-*"], True),
        ("pc-q35-7.2", ["pc-q35-*"], True),
        ("pc-q35-7.2", ["pc-q35-8.*"], False),
        ("type=q35,smm=off", ["pc-q35-*"], True),
        ("microvm", ["pc-q35-*", "microvm"], True),
    ],
)
def test_machine(
    short_tmp: Path, default: FirmwareConfig, machine: str, machines: list[str], fits: bool
) -> None:
    targets = [{"architecture": "x86_64", "machines": machines}]
    known = descriptors(short_tmp, written(short_tmp, targets=targets))
    found = chosen(default, known, machine=machine)
    assert found == (
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd") if fits else ("OVMF_CODE.fd", "OVMF_VARS.fd")
    )


def test_demanding_firmware_comes_last(short_tmp: Path, default: FirmwareConfig) -> None:
    """The first of these names is Debian's and Fedora's order too."""
    secure = ["requires-smm", "secure-boot"]
    known = descriptors(
        short_tmp,
        written(short_tmp, "enrolled", features=[*secure, "enrolled-keys"]),
        written(short_tmp, "secure", features=secure),
        written(short_tmp, "plain"),
        written(short_tmp, "later"),
    )
    assert chosen(default, known)[0] == "plain_CODE_4M.fd"
    assert chosen(default, known[:2])[0] == "secure_CODE_4M.fd"
    assert chosen(default, known[:1])[0] == "enrolled_CODE_4M.fd"


def test_sev_that_is_insisted_on_needs_firmware_for_it(
    short_tmp: Path, default: FirmwareConfig
) -> None:
    known = descriptors(
        short_tmp, written(short_tmp, "without", features=[]), written(short_tmp, "with")
    )
    assert chosen(default, known, enable_sev=Switch.AUTO)[0] == "without_CODE_4M.fd"
    assert chosen(default, known, enable_sev=Switch.TRUE)[0] == "with_CODE_4M.fd"


def test_descriptor_whose_files_are_gone_is_passed_over(
    short_tmp: Path, default: FirmwareConfig
) -> None:
    known = descriptors(short_tmp, written(short_tmp, "A"), written(short_tmp, "B"))
    known[0].vars_file.unlink()
    assert chosen(default, known)[0] == "B_CODE_4M.fd"


def test_format_comes_with_the_file(short_tmp: Path, default: FirmwareConfig) -> None:
    (known,) = descriptors(short_tmp, written(short_tmp))
    known = attrs.evolve(known, code_format="qcow2", vars_format="qcow2")
    found = firmware.choose(QemuConfig(firmware=default), [known])
    assert (found.code_format, found.vars_format) == ("qcow2", "qcow2")
    half = attrs.evolve(default, code_file=known.code_file)
    found = firmware.choose(QemuConfig(firmware=half), [known])
    assert (found.code_format, found.vars_format) == ("raw", "qcow2")


# --- whether two files are a pair -----------------------------------------------------------


@pytest.mark.parametrize(("of_code", "of_vars"), [(CODE_2M, VARS_2M), (CODE_4M, VARS_4M)])
def test_pair_by_its_headers(short_tmp: Path, of_code: int, of_vars: int) -> None:
    good = pair(code(short_tmp / "c", of_code), variables(short_tmp / "v", of_vars))
    firmware.check_pair(good, NOTHING)


@pytest.mark.parametrize(("of_code", "of_vars"), [(CODE_2M, VARS_4M), (CODE_4M, VARS_2M)])
def test_halves_of_different_chips(short_tmp: Path, of_code: int, of_vars: int) -> None:
    bad = pair(code(short_tmp / "c", of_code), variables(short_tmp / "v", of_vars))
    with pytest.raises(FirmwareError, match="do not make up one flash chip") as caught:
        firmware.check_pair(bad, NOTHING)
    for word in ("MANAGER_QEMU_OVMF_CODE_FILE", "MANAGER_QEMU_OVMF_VARS_FILE"):
        assert word in str(caught.value)


def test_swapped_by_their_headers(short_tmp: Path) -> None:
    one, other = code(short_tmp / "c"), variables(short_tmp / "v")
    with pytest.raises(FirmwareError, match="holds variables, not code"):
        firmware.check_pair(pair(other, one), NOTHING)
    with pytest.raises(FirmwareError, match="holds variables, not code"):
        firmware.check_pair(pair(other, other), NOTHING)
    with pytest.raises(FirmwareError, match="holds code, not variables alone"):
        firmware.check_pair(pair(one, one), NOTHING)


def test_whole_chip_is_code_and_not_variables(short_tmp: Path) -> None:
    chip = volume(short_tmp / "chip", _NVRAM, 4 << 20, VARS_4M)
    firmware.check_pair(pair(chip, variables(short_tmp / "v")), NOTHING)
    with pytest.raises(FirmwareError, match="holds code, not variables alone"):
        firmware.check_pair(pair(code(short_tmp / "c"), chip), NOTHING)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" * 30])
def test_files_without_a_header_are_what_their_settings_say(
    short_tmp: Path, content: bytes
) -> None:
    for name in ("c", "v"):
        (short_tmp / name).write_bytes(content)
    firmware.check_pair(pair(short_tmp / "c", short_tmp / "v"), NOTHING)


def test_headers_say_nothing_where_the_format_is_not_raw(short_tmp: Path) -> None:
    config = pair(variables(short_tmp / "v"), code(short_tmp / "c"))
    firmware.check_pair(attrs.evolve(config, code_format="qcow2", vars_format="qcow2"), NOTHING)


def test_swapped_by_descriptor(short_tmp: Path) -> None:
    """Files whose format is not raw have no header to go by."""
    known = descriptors(short_tmp, written(short_tmp))
    for file in (known[0].code_file, known[0].vars_file):
        file.write_bytes(b"QFI\xfb")
    with pytest.raises(FirmwareError, match="holds variables, not code"):
        firmware.check_pair(pair(known[0].vars_file, known[0].code_file), known)
    with pytest.raises(FirmwareError, match="holds code, not variables alone"):
        firmware.check_pair(pair(known[0].code_file, known[0].code_file), known)


def test_code_of_one_descriptor_and_variables_of_another(short_tmp: Path) -> None:
    known = descriptors(short_tmp, written(short_tmp, "A"), written(short_tmp, "B"))
    bad = pair(known[0].code_file, known[1].vars_file)
    with pytest.raises(FirmwareError, match="do not belong together") as caught:
        firmware.check_pair(bad, known)
    assert str(caught.value).endswith(f"set MANAGER_QEMU_OVMF_VARS_FILE={known[0].vars_file}")
    firmware.check_pair(pair(known[0].code_file, known[0].vars_file), known)


def test_another_name_of_a_described_file(short_tmp: Path) -> None:
    """Debian gives one CODE file three names, each with variables of its own."""
    known = descriptors(short_tmp, written(short_tmp, "A"), written(short_tmp, "B"))
    known[0].code_file.unlink()
    known[0].code_file.symlink_to(known[1].code_file)
    for one in known:
        firmware.check_pair(pair(known[1].code_file, one.vars_file), known)


def test_variables_of_ones_own_for_described_code(short_tmp: Path) -> None:
    (known,) = descriptors(short_tmp, written(short_tmp))
    firmware.check_pair(pair(known.code_file, variables(short_tmp / "mine")), [known])


@pytest.mark.parametrize("part", ["CODE", "VARS"])
def test_file_that_is_missing(short_tmp: Path, part: str) -> None:
    config = pair(code(short_tmp / "CODE"), variables(short_tmp / "VARS"))
    (short_tmp / part).unlink()
    assert firmware.mismatch(config, NOTHING) is None
    with pytest.raises(FirmwareError, match=f"MANAGER_QEMU_OVMF_{part}_FILE") as caught:
        firmware.check_pair(config, NOTHING)
    assert f"{short_tmp / part}: No such file" in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/usr/share/OVMF"), reason="needs the package ovmf")
def test_every_descriptor_of_this_host_is_a_pair() -> None:
    known = firmware.read_descriptors()
    assert known
    for one in known:
        firmware.check_pair(pair(one.code_file, one.vars_file), known)
