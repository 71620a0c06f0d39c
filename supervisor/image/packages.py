"""Downloads the guest's packages from this machine's apt sources, and unpacks them.

Nothing is installed: apt resolves dependencies against an empty package database, and the packages'
scripts never run. So a build needs no root and does not change the machine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from supervisor.image.command import ImageBuildError, run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# The package that depends on a distribution's newest kernel. See image.py for what was tried.
KERNEL_PACKAGE = {"debian": "linux-image-amd64", "ubuntu": "linux-image-generic"}
# The kernels of Debian 12 and 13 come with their modules; those of Debian 14 and of Ubuntu are
# split over several packages.
_KERNEL_PART = re.compile(r"Depends: (linux-(?:image|base|binary|modules|modules-extra)-\d\S*)")
# Dependencies of these packages that no program in the guest loads.
_UNUSED = re.compile(
    r"(dpkg|tar|perl.*|libperl.*|install-info|mailcap|mime-support|media-types|gcc-\d+-base"
    r"|libprotobuf\d+|python3-protobuf|readline-common|lib(acl|selinux|pcre2-8|md|db5\.).*)"
)
_STALE = re.compile(r"Unable to locate|No packages found|no installation candidate|404 ")


def fetch(packages: Iterable[str], directory: Path) -> dict[str, str]:
    """Unpacks *packages* and their dependencies into *directory*/root; versions by package.

    The kernel and the EFI stub are unpacked too, without their dependencies. ImageBuildError.
    """
    if (architecture := run("ask dpkg", ["dpkg", "--print-architecture"]).strip()) != "amd64":
        raise ImageBuildError("start", (), f"guests are amd64, this machine is {architecture}")
    archives = directory / "archives"
    (archives / "partial").mkdir(parents=True)
    (directory / "status").touch()
    # A user may not write apt's own cache.
    cache = [f"-oDir::Cache={directory}", f"-oDir::Cache::archives={archives}"]
    empty = [f"-oDir::State::status={directory}/status", "-oDebug::NoLocking=1"]
    common = ["-q", "-y", "-oAPT::Install-Recommends=0", *cache]
    closure = ["apt-get", *common, *empty, "--download-only", "install", *packages]
    _apt("download the guest's packages", closure)
    names = [*kernel_parts(), "systemd-boot-efi"]
    _apt("download the kernel", ["apt-get", *common, "download", *names], cwd=archives)
    return unpack(archives, directory / "root")


def kernel_parts() -> list[str]:
    """The packages that hold this distribution's newest kernel and its modules."""
    newest = KERNEL_PACKAGE[distribution()]
    found: list[str] = []
    queue = [newest]
    for package in queue:
        depends = _apt("find the kernel's packages", ["apt-cache", "depends", package])
        parts = [part for part in _KERNEL_PART.findall(depends) if part not in found]
        found += parts
        queue += parts
    if not found:
        raise ImageBuildError("find the kernel's packages", (), f"{newest} depends on no kernel")
    return found


def distribution() -> str:
    """The key of KERNEL_PACKAGE that fits this machine."""
    with open("/etc/os-release", encoding="utf-8") as release:
        pairs = dict(line.strip().split("=", 1) for line in release if "=" in line)
    names = f"{pairs.get('ID', '')} {pairs.get('ID_LIKE', '')}".replace('"', "").split()
    for name in names:
        if name in KERNEL_PACKAGE:
            return name
    why = f"guests are made of Debian's or Ubuntu's packages, this is {' '.join(names)}"
    raise ImageBuildError("start", (), why)


def unpack(archives: Path, root: Path) -> dict[str, str]:
    """Unpacks every package in *archives* into *root*; versions by package."""
    # /bin and its like are links into /usr: newer packages expect that, older ones accept it.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    versions = {}
    for archive in sorted(archives.glob("*.deb")):
        name, version = run(
            "read a package", ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", archive]
        ).split()
        if not _UNUSED.fullmatch(name):
            # dpkg-deb --extract would put a directory in the place of our links.
            tree = archive.with_suffix(".tar")
            run(f"unpack {name}", ["dpkg-deb", "--fsys-tarfile", archive], output=tree)
            keep = ["--keep-directory-symlink", "--no-same-owner"]
            run(f"unpack {name}", ["tar", "-xf", tree, "-C", root, *keep])
            tree.unlink()
            versions[name] = version
        archive.unlink()
    return versions


def _apt(step: str, command: list[str], cwd: Path | None = None) -> str:
    try:
        return run(step, command, cwd=cwd)
    except ImageBuildError as error:
        if not _STALE.search(error.output_tail):
            raise
        advice = f"{error.output_tail}\nthe package lists are missing or old: run apt-get update"
        raise ImageBuildError(step, command, advice) from error
