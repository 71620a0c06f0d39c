"""Kernel modules: which ones a guest needs, and in which order they load."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from supervisor.image.command import ImageBuildError, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set
    from pathlib import Path

# What the agent waits for, what tells the supervisor of a panic, and the power button.
FIRST = ("virtio_pci", "virtio_net", "pvpanic_mmio", "pvpanic_pci", "button", "evdev")
# What can wait for the agent: entropy, disks, the watchdog, attestation, vsock, and what tells the
# host which memory is free. The watchdog's clock stands still until a program opens /dev/watchdog.
LATER = (
    "virtio_rng",
    "vmgenid",
    "virtio_scsi",
    "sd_mod",
    "i6300esb",
    "sev_guest",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def load_order(
    wanted: Iterable[str], depends: Mapping[str, Iterable[str]], loaded: Set[str] = frozenset()
) -> list[str]:
    """*wanted* and all they depend on, dependencies first, without what is *loaded* already."""
    order: list[str] = []

    def visit(module: str) -> None:
        if module not in order and module not in loaded:
            for dependency in depends[module]:
                visit(dependency)
            order.append(module)

    for module in wanted:
        visit(module)
    return order


def install(root: Path, directory: Path) -> None:
    """Moves what FIRST and LATER need from *root*/lib/modules to *directory*, with the two orders.

    What a kernel does not have is taken for built in. ImageBuildError: there is no such kernel.
    """
    files = {_name(path): path for path in (root / "usr/lib/modules").rglob("*.ko*")}
    built_in = [path.read_text() for path in (root / "usr/lib/modules").rglob("modules.builtin")]
    if "virtio_net" not in files and not any("/virtio_net.ko" in names for names in built_in):
        raise ImageBuildError("find the kernel's modules", (), "there is no virtio_net among them")
    directory.mkdir(parents=True)
    depends: dict[str, list[str]] = {}

    def read(module: str) -> None:
        """Fills *depends* for *module* and below, on the way putting the files in place."""
        if module in depends:
            return
        target = _unpack(files[module], directory / f"{module}.ko")
        match = _DEPENDS.search(target.read_bytes())
        names = match[1].decode().replace("-", "_").split(",") if match else []
        depends[module] = [name for name in names if name in files]
        for name in depends[module]:
            read(name)

    first, later = ([name for name in names if name in files] for names in (FIRST, LATER))
    for module in (*first, *later):
        read(module)
    orders = {"first": load_order(first, depends)}
    orders["later"] = load_order(later, depends, set(orders["first"]))
    for name, order in orders.items():
        (directory / name).write_text("".join(f"{module}\n" for module in order))


def _name(path: Path) -> str:
    """The kernel's name of the module in *path*: it knows no hyphens."""
    return path.name.split(".")[0].replace("-", "_")


def _unpack(source: Path, target: Path) -> Path:
    if source.suffix == ".zst":  # as Ubuntu ships them
        run("unpack a module", ["zstd", "-dqf", source, "-o", target])
    else:
        source.rename(target)
    return target
