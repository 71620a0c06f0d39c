"""Chooses and reads the files that a confidential guest starts from, and that are measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.config import QuoteSocket
from supervisor.errors import FirmwareError, LaunchError
from supervisor.qemu import firmware
from supervisor.qemu.cmdline import cpu_model
from supervisor.qemu.confidential import Confidential, DirectBoot
from supervisor.tee import judge
from supervisor.tee import measure as measuring
from supervisor.tee.facts import Technology
from supervisor.tee.measure import Measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.config import QemuConfig, TeeConfig
    from supervisor.qemu.cmdline import Accel
    from supervisor.qemu.version import Binary
    from supervisor.tee.expected import Measurement

#: These have no firmware in flash: it is measured as it is in memory.
_IN_ONE_FILE = {Technology.SEV_SNP, Technology.TDX}

#: Where Intel's packages have the quote generation service listen, and where it did before.
_QGS = QuoteSocket(Path("/var/run/tdx-qgs/qgs.socket"))
_QGS_BY_VSOCK = QuoteSocket(cid=2, port=4050)

_LIBIGVM = "use QEMU 10.1 or later that was built with libigvm"
_OVMF = "install the package ovmf, or set MANAGER_TEE_FIRMWARE"

#: Lengths of SEV-SNP's structures, by AMD's 56860.
_ID_BLOCK, _ID_AUTH = 96, 4096


def lacks(
    config: QemuConfig, objects: frozenset[str] | None, technology: Technology
) -> judge.Cell | None:
    """What keeps `choose` from finding what such a guest starts from; None if nothing. Blocking.

    :param objects: that this QEMU knows; None if it does not answer
    """
    tee = config.tee
    if tee.igvm:
        if objects is None or "igvm-cfg" in objects:
            return None
        found = "this QEMU takes no IGVM file (MANAGER_TEE_IGVM)"
        return judge.Cell(judge.Verdict.MISSING, found, _LIBIGVM)
    wanted = technology in _IN_ONE_FILE or tee.kernel is not None
    if tee.firmware or not wanted or firmware.in_one_file(technology.ovmf):
        return None
    found = f"{technology.label} needs firmware in one file, and none was found"
    return judge.Cell(judge.Verdict.MISSING, found, _OVMF)


def problems(tee: TeeConfig) -> Iterator[LaunchError]:
    """What is wrong with the files of the settings, whatever this host can start. Blocking."""
    files = {"FIRMWARE": tee.firmware, "KERNEL": tee.kernel, "INITRD": tee.initrd, "IGVM": tee.igvm}
    for name, file in files.items():
        try:
            if file:
                _read(file, 1, f"MANAGER_TEE_{name}")
        except LaunchError as error:
            yield error
    for name, structure, length in (
        ("MANAGER_TEE_ID_BLOCK", tee.id_block, _ID_BLOCK),
        ("MANAGER_TEE_ID_AUTH", tee.id_auth, _ID_AUTH),
    ):
        try:
            _structure(name, structure, length)
        except LaunchError as error:
            yield error


def direct_boot(tee: TeeConfig) -> DirectBoot | None:
    """The kernel of the settings. Blocking.

    :raises LaunchError: if a file is missing
    """
    if tee.kernel is None:
        return None
    for file in filter(None, (tee.kernel, tee.initrd)):
        _read(file, 1)
    return DirectBoot(tee.kernel, tee.initrd, tee.cmdline)


def choose(
    config: QemuConfig, qemu: Binary, technology: Technology, policy: int, bound_to: bytes
) -> Confidential:
    """What a guest of this technology is launched with. Blocking.

    :param policy, bound_to: as in `Confidential`
    :raises LaunchError: if a file is missing, or this QEMU takes no IGVM file
    """
    tee = config.tee
    if tee.igvm and "igvm-cfg" not in qemu.objects:
        raise LaunchError(
            f"{qemu.path}, version {qemu.version}, takes no IGVM file (MANAGER_TEE_IGVM)",
            advice=_LIBIGVM,
        )
    chosen = tee.firmware
    # Firmware with a place for the kernel's hashes is in one file, too.
    wanted = technology in _IN_ONE_FILE or tee.kernel is not None
    if chosen is None and wanted and not tee.igvm:
        chosen = firmware.in_one_file(technology.ovmf)
        if chosen is None:
            raise FirmwareError(
                f"{technology.label} needs firmware in one file, and none was found",
                advice=_OVMF,
            )
    for file in filter(None, (chosen, tee.igvm)):
        _read(file, 1)
    snp = technology is Technology.SEV_SNP
    return Confidential(
        technology=technology,
        policy=policy,
        bound_to=bound_to,
        firmware=chosen,
        boot=direct_boot(tee),
        igvm=tee.igvm,
        id_block=_structure("MANAGER_TEE_ID_BLOCK", tee.id_block, _ID_BLOCK) if snp else b"",
        id_auth=_structure("MANAGER_TEE_ID_AUTH", tee.id_auth, _ID_AUTH) if snp else b"",
        quote_socket=_quote_socket(tee.quote_socket) if technology is Technology.TDX else None,
    )


def measure(config: QemuConfig, accel: Accel, guest: Confidential) -> Measurement:
    """What the processor measures when the guest is launched. Blocking."""
    if guest.igvm:
        return measuring.measure_igvm(guest.technology, guest.igvm, config.smp_count)
    boot = guest.boot
    return measuring.measure(
        guest.technology,
        Measured(
            firmware=guest.firmware or config.firmware.code_file,
            kernel=boot.kernel if boot else None,
            initrd=boot.initrd if boot else None,
            cmdline=boot.cmdline if boot else "",
            vcpus=config.smp_count,
            cpu=cpu_model(config, accel, guest.technology),
        ),
    )


def _quote_socket(chosen: QuoteSocket | None) -> QuoteSocket:
    if chosen is None and _QGS.path and _QGS.path.exists():
        return _QGS
    return chosen or _QGS_BY_VSOCK


def _structure(name: str, file: Path | None, length: int) -> bytes:
    content = _read(file, length + 1, name) if file else b""
    if file and len(content) != length:
        raise LaunchError(
            f"{file} has not {length} bytes", advice=f"set {name} to the binary structure"
        )
    return content


def _read(file: Path, most: int, name: str = "MANAGER_TEE_*") -> bytes:
    """:raises LaunchError:"""
    try:
        with file.open("rb") as opened:
            return opened.read(most)
    except OSError as error:
        raise LaunchError(
            f"{file} cannot be read: {error.strerror}", advice=f"see the setting {name}"
        ) from error
