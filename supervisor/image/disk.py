"""Makes a bootable disk of a kernel and an initramfs, without root and without loop devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from supervisor.image.command import run

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.image.command import Command

PAGE = 4096
MIB = 1 << 20
VOLUME_ID = "67756573"  # always the same, so that an image can be reproduced
FAT_EPOCH = 315532800  # the start of 1980, before which FAT has no times


def write_efi_file(
    stub: Path, kernel: Path, initramfs: Path, command_line: str, efi_file: Path
) -> None:
    """Writes an EFI program of systemd's *stub*, the command line, the initramfs and the kernel."""
    text = efi_file.with_name("cmdline")
    text.write_text(command_line)
    address = _end_of_sections(run("read the EFI stub", ["objdump", "--section-headers", stub]))
    command: list[str | Path] = ["objcopy"]
    for section, path in ((".cmdline", text), (".initrd", initramfs), (".linux", kernel)):
        command += [f"--add-section={section}={path}"]
        command += [f"--change-section-vma={section}={address:#x}"]
        address = _page_after(address + path.stat().st_size)
    run("make the EFI program", [*command, stub, efi_file])
    text.unlink()


def write_disk(efi_file: Path, disk: Path, mtime: int) -> None:
    """Writes a qcow2 image: one FAT file system, with *efi_file* where firmware looks for it."""
    tree = disk.with_name("EFI")
    (tree / "BOOT").mkdir(parents=True)
    efi_file = efi_file.rename(tree / "BOOT/BOOTX64.EFI")
    for path in (efi_file, efi_file.parent, tree):
        os.utime(path, (max(mtime, FAT_EPOCH),) * 2)
    raw = disk.with_name("guest.raw")
    # The file, and some room for FAT's own tables.
    raw.touch()
    os.truncate(raw, (efi_file.stat().st_size // MIB + 4) * MIB)
    env = {"SOURCE_DATE_EPOCH": str(max(mtime, FAT_EPOCH)), "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"}
    format_it: Command = ["mkfs.vfat", "--invariant", "-i", VOLUME_ID, "-n", "GUEST", raw]
    run("format the disk", format_it, env=env)
    run("fill the disk", ["mcopy", "-s", "-m", "-i", raw, tree, "::"], env=env)
    run("convert the disk", ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    raw.unlink()
    efi_file.unlink()
    efi_file.parent.rmdir()
    tree.rmdir()


def _end_of_sections(headers: str) -> int:
    """The first page after the last section in objdump's listing: index, name, size, VMA, …"""
    rows = [line.split() for line in headers.splitlines()]
    ends = [int(row[2], 16) + int(row[3], 16) for row in rows if len(row) > 6 and row[0].isdigit()]
    return _page_after(max(ends))


def _page_after(address: int) -> int:
    return -(-address // PAGE) * PAGE
