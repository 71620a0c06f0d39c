"""OVMF's two files: chooses the pair that VMs use, and checks that two files are a pair.

| set | CODE and VARS |
| --- | --- |
| both | the files that are set |
| one | that file, and its partner from a descriptor; without a descriptor, the partner's default |
| none, and both defaults exist | the defaults |
| none, and a default is missing | the files of the first descriptor that fits the machine |

A setting with its default value counts as not set. Descriptors that demand SMM, Secure Boot or
enrolled keys come last. A file from a descriptor has the format that the descriptor says.

Source: QEMU's docs/interop/firmware.json; the UEFI Platform Initialization specification, volume
3, for the header of a firmware volume.
"""

from __future__ import annotations

import enum
import fnmatch
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.config import FirmwareConfig, Tee
from supervisor.errors import FirmwareError
from supervisor.tee.facts import Technology

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.config import QemuConfig

_DEFAULT = FirmwareConfig()

#: Descriptors have versioned machine names. These are their beginnings, by the usual alias.
_ALIASES = {"q35": "pc-q35-0", "pc": "pc-i440fx-0"}

#: Features that need more than our command line or the guest's boot loader offers.
_UNWANTED = {"requires-smm", "secure-boot", "enrolled-keys"}

#: EFI_SYSTEM_NV_DATA_FV_GUID: a firmware volume that holds variables.
_NVRAM = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le


#: Files that packages install without a descriptor, and what their names promise.
_KNOWN = {
    Path("/usr/share/OVMF/OVMF.amdsev.fd"): frozenset({"amd-sev", "amd-sev-es", "amd-sev-snp"}),
    Path("/usr/share/ovmf/OVMF.inteltdx.fd"): frozenset({"intel-tdx"}),
    Path("/usr/share/ovmf/OVMF.fd"): frozenset[str](),
}


class Content(enum.Enum):
    """What a raw flash file contains, by the header of its first firmware volume."""

    CODE = "code"
    VARS = "variables"
    CHIP = "variables and code"
    UNKNOWN = "unknown"


@attrs.frozen
class Descriptor:
    """A package's description of a UEFI firmware for x86_64 in two files, CODE and VARS.

    :param file: the descriptor's own file
    :param machines: glob patterns of versioned machine names
    """

    file: Path
    code_file: Path
    code_format: str
    vars_file: Path
    vars_format: str
    machines: tuple[str, ...]
    features: frozenset[str]


def directories() -> list[Path]:
    """The directories of descriptors, the most general first."""
    user = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path(parent, "qemu/firmware") for parent in ("/usr/share", "/etc", user)]


def read_descriptors(places: Sequence[Path] | None = None) -> list[Descriptor]:
    """The descriptors of UEFI firmware for x86_64, in the order of their file names. Blocking.

    A file hides a file of the same name in an earlier directory, even if it is empty or damaged.

    :param places: directories, the most general first; QEMU's own if None
    """
    descriptors = (_read(file) for file in _descriptor_files(places))
    return [descriptor for descriptor in descriptors if descriptor]


def features(places: Sequence[Path] | None = None) -> dict[str, frozenset[str]]:
    """What each UEFI firmware for x86_64 promises, by the file of its code. Blocking.

    Firmware in one file, which ``-bios`` takes, is among them.

    :param places: as in `read_descriptors`
    """
    return {str(file): has for file, has, _ in _promises(places)}


def in_one_file(feature: str, places: Sequence[Path] | None = None) -> Path | None:
    """Firmware for ``-bios`` that promises a feature, else any; None if there is none. Blocking.

    One that promises nothing may have the feature all the same: edk2's usual build has.

    :param places: as in `read_descriptors`
    """
    found = {file: has for file, has, alone in _promises(places) if alone}
    return max(found, key=lambda file: feature in found[file], default=None)


def _promises(places: Sequence[Path] | None) -> Iterator[tuple[Path, frozenset[str], bool]]:
    """File, features, and whether it is the whole firmware."""
    yield from ((file, has, True) for file, has in _KNOWN.items() if file.exists())
    for file in _descriptor_files(places):
        try:
            written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            mapping = written["mapping"]
            in_flash = mapping["device"] == "flash"
            code = Path((mapping["executable"] if in_flash else mapping)["filename"])
            has = frozenset(map(str, written["features"]))
            # A raw file for flash without variables is what -bios takes.
            stateless = mapping.get("mode") == "stateless"
            alone = not in_flash or (stateless and mapping["executable"]["format"] == "raw")
            if "uefi" in written["interface-types"] and _for_x86_64(written):
                yield code, has, alone
        except (OSError, ValueError, LookupError, TypeError):
            continue


def _descriptor_files(places: Sequence[Path] | None) -> list[Path]:
    places = directories() if places is None else places
    files = {file.name: file for place in places for file in place.glob("*.json")}
    return [files[name] for name in sorted(files)]


def _for_x86_64(written: dict[str, Any]) -> list[dict[str, Any]]:
    """A descriptor's targets of this architecture."""
    return [one for one in written["targets"] if one["architecture"] == "x86_64"]


def _read(file: Path) -> Descriptor | None:
    """None for a damaged file and for other firmware, such as a BIOS or a build without VARS."""
    try:
        written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        mapping, targets = written["mapping"], _for_x86_64(written)
        if "uefi" not in written["interface-types"] or mapping["device"] != "flash" or not targets:
            return None
        code, variables = mapping["executable"], mapping["nvram-template"]
        return Descriptor(
            file=file,
            code_file=Path(code["filename"]),
            code_format=code["format"],
            vars_file=Path(variables["filename"]),
            vars_format=variables["format"],
            machines=tuple(machine for one in targets for machine in one["machines"]),
            features=frozenset(written["features"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def choose(config: QemuConfig, descriptors: Sequence[Descriptor]) -> FirmwareConfig:
    """The settings, completed with files as the table above says. Blocking."""
    firmware = config.firmware
    code_is_set = firmware.code_file != _DEFAULT.code_file
    vars_is_set = firmware.vars_file != _DEFAULT.vars_file
    if code_is_set and vars_is_set:
        return firmware
    if code_is_set or vars_is_set:
        partners = [
            one
            for one in descriptors
            if _same(one.code_file, firmware.code_file) or _same(one.vars_file, firmware.vars_file)
        ]
    elif firmware.code_file.exists() and firmware.vars_file.exists():
        return firmware
    else:
        partners = [one for one in descriptors if _fits(one, config)]
    partners = [one for one in partners if one.code_file.exists() and one.vars_file.exists()]
    if not partners:
        return firmware
    chosen = min(partners, key=lambda one: len(one.features & _UNWANTED))
    if not code_is_set:
        firmware = attrs.evolve(
            firmware, code_file=chosen.code_file, code_format=chosen.code_format
        )
    if not vars_is_set:
        firmware = attrs.evolve(
            firmware, vars_file=chosen.vars_file, vars_format=chosen.vars_format
        )
    return firmware


def _fits(descriptor: Descriptor, config: QemuConfig) -> bool:
    name = config.machine.partition(",")[0].removeprefix("type=")
    machine = _ALIASES.get(name, name)
    if not any(fnmatch.fnmatchcase(machine, pattern) for pattern in descriptor.machines):
        return False
    # Other guests have their firmware in one file.
    wanted = config.default_tee
    in_flash = wanted in (Tee.SEV, Tee.SEV_ES)
    return not in_flash or Technology(wanted).ovmf in descriptor.features


def check_pair(firmware: FirmwareConfig, descriptors: Sequence[Descriptor]) -> None:
    """Check that CODE and VARS can be read and are a pair. Blocking.

    :raises FirmwareError: if a file cannot be read, or the two are no pair
    """
    for name, file in (("CODE", firmware.code_file), ("VARS", firmware.vars_file)):
        try:
            file.open("rb").close()
        except OSError as error:
            raise FirmwareError(
                f"firmware {file.absolute()}: {error.strerror}",
                advice=f"install the package ovmf, or set MANAGER_QEMU_OVMF_{name}_FILE",
            ) from error
    if problem := mismatch(firmware, descriptors):
        raise problem


def mismatch(firmware: FirmwareConfig, descriptors: Sequence[Descriptor]) -> FirmwareError | None:
    """The error if the two files cannot be a pair; None if they may be a pair. Blocking.

    A file is believed to be what its setting says if it is missing, or if neither a descriptor
    nor its own header describes it.
    """
    code, variables = firmware.code_file, firmware.vars_file
    of_code = [one for one in descriptors if _same(one.code_file, code)]
    of_vars = [one for one in descriptors if _same(one.vars_file, variables)]
    holds_vars = any(_same(one.vars_file, code) for one in descriptors)
    holds_code = any(_same(one.code_file, variables) for one in descriptors)
    code_holds = _content(code) if firmware.code_format == "raw" else Content.UNKNOWN
    vars_holds = _content(variables) if firmware.vars_format == "raw" else Content.UNKNOWN
    if holds_vars or code_holds is Content.VARS:
        return FirmwareError(
            f"firmware {code} holds variables, not code",
            advice="set MANAGER_QEMU_OVMF_CODE_FILE to a CODE file and"
            " MANAGER_QEMU_OVMF_VARS_FILE to its VARS file",
        )
    if holds_code or vars_holds in (Content.CODE, Content.CHIP):
        return FirmwareError(
            f"firmware {variables} holds code, not variables alone",
            advice=f"set MANAGER_QEMU_OVMF_VARS_FILE to the VARS file that belongs to {code}",
        )
    if of_code and of_vars and not any(one in of_vars for one in of_code):
        pair = min(of_code, key=lambda one: len(one.features & _UNWANTED))
        return FirmwareError(
            f"firmware files do not belong together: {pair.file} pairs {code} with"
            f" {pair.vars_file}, not with {variables}",
            advice=f"set MANAGER_QEMU_OVMF_VARS_FILE={pair.vars_file}",
        )
    if code_holds is Content.CODE and vars_holds is Content.VARS:
        sizes = [file.stat().st_size for file in (code, variables)]
        if sum(sizes).bit_count() != 1:  # edk2 builds one chip and splits it in two
            return FirmwareError(
                f"firmware files do not belong together: {code} ({sizes[0] // 1024} KiB) and"
                f" {variables} ({sizes[1] // 1024} KiB) do not make up one flash chip",
                advice="set MANAGER_QEMU_OVMF_CODE_FILE and MANAGER_QEMU_OVMF_VARS_FILE to a pair",
            )
    return None


def _content(file: Path) -> Content:
    try:
        with file.open("rb") as opened:
            header = opened.read(44)
            size = os.fstat(opened.fileno()).st_size
    except OSError:
        return Content.UNKNOWN
    if header[40:44] != b"_FVH":
        return Content.UNKNOWN
    if header[16:32] != _NVRAM:
        return Content.CODE
    return Content.VARS if int.from_bytes(header[32:40], "little") == size else Content.CHIP


def _same(one: Path, other: Path) -> bool:
    """Whether both are the same file: distributions give one file several names."""
    return os.path.realpath(one) == os.path.realpath(other)
