"""Puts the guest's kernel modules in place: which modules, in which order, as plain ELF files.

depmod, of the package kmod, finds out what depends on what. Debian 13 compresses modules with xz,
Ubuntu with zstd. Busybox, the guest's insmod, loads neither, so they are unpacked here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from supervisor.image.command import ImageBuildError, run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

# Before the agent: it reads there who may call it.
EARLY = ("qemu_fw_cfg",)
# What the agent waits for, the line to a copy, what tells the supervisor of a panic, and the power
# button.
FIRST = (
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "pvpanic_mmio",
    "pvpanic_pci",
    "button",
    "evdev",
)
# What can wait for the agent: entropy, disks, the watchdog, attestation, vsock, and what tells the
# host which memory is free. The watchdog's clock stands still until a program opens /dev/watchdog.
LATER = (
    "virtio_rng",
    "vmgenid",
    "virtio_scsi",
    "sd_mod",
    "i6300esb",
    "sev_guest",
    "tdx_guest",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
)
# For a guest that reads shares of its host, before its agent starts.
SHARES = ("9pnet_virtio", "9p")
# Without these the guest has no network, its agent cannot know who may call it, or a copy cannot be
# called over the line: the kernel must have them, as modules or built in.
REQUIRED = ("virtio_pci", "virtio_net", "virtio_console", "qemu_fw_cfg")
MODULE_HEADER = (b"\x7fELF\x02\x01", 1, 62)  # 64 bits, little-endian; relocatable; x86-64


def install(root: Path, version: str, directory: Path) -> None:
    """Moves what the orders need from the kernel *version* in *root* to *directory*.

    There, the file ``NAME.ko`` is a module. The files ``early``, ``first``, ``later`` and
    ``shares`` name one module a line, in the order in which they load; the last goes after the
    first two.

    A module that the kernel does not have is left out. ImageBuildError: the kernel lacks a module
    of REQUIRED, or a file is not a module that the guest can load.
    """
    kernel = root / "usr/lib/modules" / version
    if not kernel.is_dir():
        raise ImageBuildError("find the kernel's modules", (), f"there is no directory {kernel}")
    run("find what each module depends on", ["depmod", "-b", root, version])
    paths = read_dependencies((kernel / "modules.dep").read_text())
    built_in = {module_name(line) for line in (kernel / "modules.builtin").read_text().split()}
    if missing := [name for name in REQUIRED if name not in paths and name not in built_in]:
        why = f"the kernel {version} has no {' and no '.join(missing)}: guests need them"
        raise ImageBuildError("find the kernel's modules", (), why)
    directory.mkdir(parents=True)
    early = load_order(EARLY, paths)
    first = load_order(FIRST, paths, after=early)
    orders = {
        "early": early,
        "first": first,
        # In a guest with shares both of these load, and what both name loads once.
        "shares": load_order(SHARES, paths, after=(*early, *first)),
        "later": load_order(LATER, paths, after=(*early, *first)),
    }
    for path in dict.fromkeys(path for order in orders.values() for path in order):
        unpack(kernel / path, directory / f"{module_name(path)}.ko")
    for name, order in orders.items():
        (directory / name).write_text("".join(f"{module_name(path)}\n" for path in order))


def read_dependencies(modules_dep: str) -> dict[str, list[str]]:
    """The files to load for each module, in this order, the module's own the last.

    *modules_dep* has a line ``FILE: FILE…`` for each module. Behind the colon are all files that
    the module depends on, directly or not; a file stands before those that it needs itself.
    """
    paths = {}
    for line in modules_dep.splitlines():
        path, _, needed = line.partition(":")
        paths[module_name(path)] = [*reversed(needed.split()), path]
    return paths


def load_order(
    names: Iterable[str], paths: Mapping[str, Sequence[str]], after: Collection[str] = ()
) -> list[str]:
    """The files to load for all of *names*, each once. A name that is not in *paths* has none.

    *after*: files that are loaded already.
    """
    wanted = dict.fromkeys(path for name in names for path in paths.get(name, ()))
    return [path for path in wanted if path not in after]


def module_name(path: str) -> str:
    """The kernel's name of the module in the file *path*: it has no hyphens."""
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def unpack(source: Path, target: Path) -> None:
    """Puts the module in *source* at *target*. ImageBuildError: that is not a module."""
    if source.suffix == ".ko":
        source.rename(target)
    else:  # zstd unpacks .xz as well as .zst
        run("unpack a module", ["zstd", "-dqf", source, "-o", target])
    header = target.read_bytes()[:20].ljust(20)
    if struct.unpack("<6s10xHH", header) != MODULE_HEADER:
        why = f"{source.name} is not a kernel module for x86-64, which is a relocatable ELF file"
        raise ImageBuildError("unpack a module", (), why)
