"""Builds a guest image from the distribution's packages alone.

The guest is one kernel and one initramfs that runs from RAM: no state, no root file system. The
same two files make a disk for UEFI (guest.qcow2) and a direct boot (vmlinuz, initrd.img), whose
command line stands in manifest.json. Debian 12 is what it is tested with; Ubuntu 24.04 was
tried once, other releases never.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.image import disk, packages, rootfs
from supervisor.image.command import ImageBuildError, require_tools, run
from supervisor.image.cpio import write_cpio
from supervisor.image.libraries import ELF
from supervisor.image.manifest import NAME, File, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.image.command import Command

DISK = "guest.qcow2"
KERNEL = "vmlinuz"
INITRAMFS = "initrd.img"
# A panic reboots at once, but only after the kernel has told QEMU of it through pvpanic. The rest
# lets an idle guest sleep: no blinking cursor, no watching of processors. Nor does it look whether
# its timer ticks: under emulation, with five times as many guests booting as the host has
# processors, four of thirty believed that it does not and panicked. Linux leaves that look out by
# itself where it sees KVM. Not tsc=reliable, though it saves time: on such a host Linux measures
# the counter's frequency wrong, many times over, and would then not find that out.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 no_timer_check vt.global_cursor_default=0 nowatchdog"
ZSTD_LEVEL = 19


def build(
    output: Path, *, agent: Path | None = None, progress: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Makes the directory *output*: guest.qcow2, vmlinuz, initrd.img, manifest.json.

    *agent* is what runs in the guest instead of the reference agent: a Python file (\\*.py, with
    grpcio at hand) or a program that needs no libraries. *progress* is given one line a step.

    An image already in *output* is replaced, at the end and in one step. Nothing is left behind
    if it does not come to that: ImageBuildError says why.
    """
    output = output.absolute()
    check(output, agent)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
            work = Path(name)
            # apt downloads as a user of its own, who has to get in.
            work.chmod(0o755)
            manifest = make(work, agent, progress)
            replace(output, work / "image", work / "old")
    except OSError as error:
        raise ImageBuildError("write the image", (), str(error)) from error
    progress(f"{output} is ready")
    return manifest


def check(output: Path, agent: Path | None) -> None:
    """ImageBuildError: what the build needs is missing, or *output* is something else's."""
    require_tools()
    if output.exists() and not (output / NAME).is_file() and not _is_empty(output):
        raise ImageBuildError("start", (), f"{output} exists and holds no image: choose another")
    if agent is not None and not agent.is_file():
        raise ImageBuildError("start", (), f"the agent {agent} is no file")
    if agent is not None and rootfs.is_program(agent):
        _check_program(agent)


def _check_program(agent: Path) -> None:
    with agent.open("rb") as program:
        start = program.read(4)
    if start == ELF:
        if "INTERP" in run("look at the agent", ["readelf", "-lW", agent]):
            why = "needs shared libraries, which the guest has not: link it statically"
            raise ImageBuildError("start", (), f"the agent {agent} {why}")
    elif not start.startswith(b"#!"):
        raise ImageBuildError("start", (), f"the agent {agent} is no program and no .py file")


def make(work: Path, agent: Path | None, progress: Callable[[str], None]) -> Manifest:
    """Makes the image in *work*/image."""
    image = work / "image"
    image.mkdir()
    progress("downloading and unpacking packages")
    versions = packages.fetch(rootfs.packages(agent), work)
    root = work / "root"
    kernel = max((root / "boot").glob("vmlinuz-*"))
    kernel_version = kernel.name.removeprefix("vmlinuz-")
    kernel.rename(image / KERNEL)
    stub = (root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub").rename(work / "stub")
    progress("arranging the guest's files")
    rootfs.arrange(root, kernel_version, agent)
    now = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    progress("packing the initramfs")
    pack(root, image / INITRAMFS, work / "initrd.cpio")
    progress("making the disk")
    efi_file = work / "BOOTX64.EFI"
    disk.write_efi_file(stub, image / KERNEL, image / INITRAMFS, COMMAND_LINE, efi_file)
    disk.write_disk(efi_file, image / DISK, now)
    manifest = Manifest(
        agent="program" if rootfs.is_program(agent) else "python" if agent else "reference",
        # Only our own agent is known to serve CloneService.
        clone_safe=agent is None,
        kernel=kernel_version,
        command_line=COMMAND_LINE,
        built_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        packages=versions,
        files={name: File.of(image / name) for name in (DISK, KERNEL, INITRAMFS)},
    )
    manifest.write(image)
    return manifest


def pack(root: Path, initramfs: Path, archive: Path) -> None:
    """*root* as a compressed initramfs. *archive* is scratch space."""
    with archive.open("wb") as file:
        write_cpio(root, file, mtime=0)
    command: Command = ["zstd", "-q", f"-{ZSTD_LEVEL}", "-T0", "--rm", archive, "-o", initramfs]
    run("compress the initramfs", command)


def replace(output: Path, image: Path, old: Path) -> None:
    """Puts *image* in *output*'s place; what was there goes to *old*."""
    image.chmod(0o755)
    if output.exists():
        for path in output.iterdir():
            if path.name not in (DISK, KERNEL, INITRAMFS, NAME):
                path.rename(image / path.name)  # somebody's own, another image perhaps
        output.rename(old)
    image.rename(output)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
