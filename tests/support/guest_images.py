"""Guests with another agent: img/ with a file replaced, which takes a second; a build takes many.

The kernel unpacks one archive after another, and later ones write over what earlier ones hold. So
the guest's file is put into an archive of its own, behind those of img/.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs

from supervisor.image import disk, image, rootfs
from supervisor.image.command import run
from supervisor.image.cpio import write_cpio
from supervisor.image.manifest import NAME, File, Manifest

ROOT = Path(__file__).parents[2]
BASE = ROOT / "img"
TRUSTING = ROOT / "build" / "trusting-guest"


def write_image(directory: Path, agent: str) -> Path:
    """The disk of a guest whose agent is this program: a script, for what is in img/."""
    return _write(directory, agent, agent="program", clone_safe=False, renews_itself=False)


def trusting_image() -> Path:
    """The disk of a guest whose algorithms may do to it what they like: nothing confines them."""
    arguments = ["--in-guest", "--trust-algorithms"]
    wanted = hashlib.sha256(Path(__file__).read_bytes() + (BASE / NAME).read_bytes()).hexdigest()
    stamp = TRUSTING.with_suffix(".built-from")
    TRUSTING.parent.mkdir(exist_ok=True)
    with stamp.open("a+") as file:  # other test processes may want the same
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if file.read() != wanted or not TRUSTING.exists():
            _write(TRUSTING, rootfs.START_REFERENCE_AGENT.format(arguments=arguments))
            file.truncate(0)
            file.write(wanted)
    return TRUSTING / image.DISK


def _write(directory: Path, program: str, **said: Any) -> Path:
    """Replace the directory's files by those of a guest that starts this program as its agent.

    :param said: what its manifest says in another way than that of img/
    """
    assert BASE.exists(), f"{BASE} is missing: build it with 'qmp-supervisor image build'"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    manifest = Manifest.read(BASE)
    kernel, initramfs = directory / image.KERNEL, directory / image.INITRAMFS
    shutil.copyfile(BASE / image.KERNEL, kernel)
    shutil.copyfile(BASE / image.INITRAMFS, initramfs)
    with tempfile.TemporaryDirectory(dir=directory) as name:  # what is made there is renamed
        work = Path(name)
        start = work / "root" / rootfs.GUEST / "agent"
        start.parent.mkdir(parents=True)
        start.write_text(program)
        start.chmod(0o755)
        with initramfs.open("ab") as archive:
            archive.write(bytes(-archive.tell() % 4))
            write_cpio(work / "root", archive, mtime=0)
        efi_file = work / "BOOTX64.EFI"
        disk.write_efi_file(_stub(work), kernel, initramfs, manifest.command_line, efi_file)
        disk.write_disk(efi_file, directory / image.DISK, 0)
    names = (image.DISK, image.KERNEL, image.INITRAMFS)
    files = {name: File.of(directory / name) for name in names}
    attrs.evolve(manifest, files=files, **said).write(directory)
    return directory / image.DISK


def _stub(work: Path) -> Path:
    """The EFI program of img/ without what was added to it."""
    raw, whole, stub = work / "base.raw", work / "whole", work / "stub"
    run("read img/", ["qemu-img", "convert", "-O", "raw", BASE / image.DISK, raw])
    run("read img/", ["mcopy", "-i", raw, "::EFI/BOOT/BOOTX64.EFI", whole])
    added = (f"--remove-section={section}" for section in (".cmdline", ".initrd", ".linux"))
    run("read img/", ["objcopy", *added, whole, stub])
    return stub
