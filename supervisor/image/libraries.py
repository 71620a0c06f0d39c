"""Deletes the shared libraries that no program in the guest loads.

The kernel unpacks the whole initramfs before the guest's first program runs. Under emulation, it
took about a second for 43 MB.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from supervisor.image.command import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set
    from pathlib import Path

DIRECTORY = "usr/lib/x86_64-linux-gnu"
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
ELF = b"\x7fELF"


def reachable(roots: Iterable[str], needed: Mapping[str, Iterable[str]]) -> set[str]:
    """*roots* and the libraries that they load, directly or not, as *needed* says."""
    found: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += needed.get(name, ())
    return found


def prune(root: Path) -> None:
    """Deletes from *root* the libraries that neither a program nor a Python module there needs.

    A Python module whose own libraries are missing cannot be loaded, and is deleted first.
    """
    directory = root / DIRECTORY
    libraries = {path.name: path for path in directory.glob("*.so*")}
    modules = sorted((root / "usr/lib").glob("python3*/**/*.so"))
    for module in modules:
        if not _needed(module) <= libraries.keys():
            module.unlink()
    programs = [path for path in (root / "usr/bin").iterdir() if _is_elf(path)]
    roots = [*programs, *(module for module in modules if module.exists())]
    needed = {name: _needed(path) for name, path in libraries.items()}
    keep = reachable(set().union(*(_needed(path) for path in roots)), needed)
    kept = {libraries[name].resolve() for name in keep if name in libraries}
    for name, path in libraries.items():
        if name not in keep and path not in kept:
            path.unlink()


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == ELF


def _needed(path: Path) -> Set[str]:
    """The libraries that *path* names as needed."""
    if not _is_elf(path.resolve()):
        return set()
    return set(_NEEDED.findall(run("read a library", ["readelf", "--dynamic", path])))
