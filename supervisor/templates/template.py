"""A template on disk: ``tmp/templates/<digest>/``, what it is made of, and whether it may be made.

A template is a VM that was frozen when its agent was ready. What is started from it must have
the same machine on the same files, down to QEMU itself: all of that is its fingerprint, and the
fingerprint's digest its name. Everything here blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from supervisor.config import DiskConfig
from supervisor.errors import TemplateError
from supervisor.image.manifest import NAME, File, Manifest
from supervisor.qemu import cmdline
from supervisor.qemu.host import boot_id
from supervisor.state.vm_dir import make_overlay

if TYPE_CHECKING:
    from supervisor.config import QemuConfig
    from supervisor.qemu.host import Host
    from supervisor.state.vm_dir import VmDir

#: Of what is done to a guest before it is frozen, and to a copy of it. Part of every fingerprint.
_FORMAT = 1

_NO_ID = "00000000-0000-0000-0000-000000000000"


@attrs.frozen
class Template:
    """The files of one template.

    :param path: its directory, named by the digest; with a number where one of the same fingerprint
        has proved to be of no use and is still needed for the disks that lie on it
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def digest(self) -> str:
        """Of its fingerprint."""
        return self.name.partition("-")[0]

    @property
    def ram(self) -> Path:
        """The guest's memory, mapped privately by each VM that is started from it."""
        return self.path / "ram"

    @property
    def state(self) -> Path:
        """The devices' state, as QEMU's migration writes it."""
        return self.path / "state"

    @property
    def overlay(self) -> Path:
        """The disk as it was frozen; nothing writes to it any more."""
        return self.path / "overlay.qcow2"

    @property
    def clone(self) -> Path:
        """An empty overlay on that. Each VM gets a copy, for all empty overlays are alike."""
        return self.path / "clone.qcow2"

    @property
    def firmware_vars(self) -> Path:
        return self.path / "firmware_vars.fd"

    @property
    def manifest(self) -> Path:
        """Written last: a template without it was never finished."""
        return self.path / "manifest.json"

    def is_sound(self) -> bool:
        """Whether it was finished, and what QEMU could not tell from garbage is as it was."""
        try:
            self._check_sizes()
            return File.of(self.state) == File(**json.loads(self.manifest.read_text())["state"])
        except (OSError, TemplateError, ValueError, LookupError, TypeError):
            return False

    def _check_sizes(self) -> None:
        """:raises TemplateError: if a file is missing, or not as long as it was"""
        try:
            sizes = dict(json.loads(self.manifest.read_bytes())["sizes"])
            # QEMU would make a file of memory that is missing, and run on nothing.
            found = {name: (self.path / name).stat().st_size for name in sizes}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TemplateError(f"{self.path} is damaged: {error}") from error
        if found != sizes:
            raise TemplateError(f"{self.path} is damaged: its files are not as long as they were")

    def size_bytes(self) -> int:
        """What it takes of the disk; the memory's file has holes."""
        return sum(file.stat().st_blocks * 512 for file in self.path.iterdir())

    def create_from(self, vm_dir: VmDir, fingerprint: Fingerprint) -> None:
        """Make it of the files of a VM that is frozen. Failing, nothing of it is left.

        :raises TemplateError: if that is not possible
        """
        try:
            self._create_from(vm_dir, fingerprint)
        except OSError as error:
            self.remove()
            raise TemplateError(
                f"{error.filename or self.path}: {error.strerror}; the template is not kept"
            ) from error
        except BaseException:
            self.remove()
            raise

    def _create_from(self, vm_dir: VmDir, fingerprint: Fingerprint) -> None:
        self.remove()
        self.path.mkdir(parents=True, mode=0o700)
        vm_dir.ram.rename(self.ram)
        vm_dir.state.rename(self.state)
        vm_dir.overlay.rename(self.overlay)
        vm_dir.firmware_vars.rename(self.firmware_vars)
        make_overlay(DiskConfig(file=self.overlay, format="qcow2"), self.clone)
        content = {
            "fingerprint": fingerprint.parts,
            "sizes": {file.name: file.stat().st_size for file in self.path.iterdir()},
            "state": attrs.asdict(File.of(self.state)),
        }
        # Disks that lie on it may outlive a loss of power; nothing else of it has to.
        for path in (self.overlay, self.path, self.path.parent):
            _sync(path)
        draft = self.manifest.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.rename(self.manifest)

    def clone_into(self, vm_dir: VmDir) -> None:
        """Put the disk and the variables of a VM that starts from it into its directory.

        :raises TemplateError: if the template is damaged
        :raises OSError: if they cannot be written
        """
        self._check_sizes()
        shutil.copyfile(self.clone, vm_dir.overlay)
        shutil.copyfile(self.firmware_vars, vm_dir.firmware_vars)
        vm_dir.serial_log.touch()  # ours, though a QEMU that is root's writes to it

    def remove(self) -> None:
        # The manifest first: what is left, were this cut short, is no template any more.
        with suppress(OSError):
            self.manifest.unlink()
        shutil.rmtree(self.path, ignore_errors=True)


@attrs.frozen
class Fingerprint:
    """All that must be the same where memory and devices of one QEMU are to fit another.

    :param parts: by name, fit for JSON
    """

    parts: dict[str, object]

    @property
    def digest(self) -> str:
        content = json.dumps(self.parts, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def fingerprint(config: QemuConfig, host: Host) -> Fingerprint:
    """What a VM that is started now is made of.

    A boot of the host is part of it: CPUs and their microcode change with it, and memory and state
    need not be synced to survive the loss of power.

    :raises OSError: if one of the files is not there
    """
    nothing = Path("-")
    same = cmdline.Machine(
        vm_id=_NO_ID,
        qemu=host.qemu,
        accel=host.accel,
        forwards=(),
        overlay=nothing,
        firmware_vars=nothing,
        serial_log=nothing,
        qmp_socket=nothing,
        ram=cmdline.Ram(nothing, shared=True),
    )
    files = {
        "qemu": Path(host.qemu),
        "image": config.disk.file,
        "code": config.firmware.code_file,
        "vars": config.firmware.vars_file,
    }
    manifest = config.disk.file.parent / NAME
    return Fingerprint(
        {
            "format": _FORMAT,
            "manifest": _identity(manifest) if manifest.exists() else None,
            "boot": boot_id(),
            "argv": cmdline.argv(config, same),
            **{name: _identity(file) for name, file in files.items()},
        }
    )


def _identity(file: Path) -> list[object]:
    """Which file it is, and which content it has: as make(1) would tell, without reading it."""
    real = file.resolve(strict=True)
    stat = real.stat()
    return [str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]


def obstacle(config: QemuConfig, host: Host) -> str | None:
    """Why there can be no template of these VMs; None if there can."""
    if host.accel.sev:
        return "the memory of encrypted guests cannot be copied"
    disk = config.disk
    try:
        manifest = Manifest.read(disk.file.parent)
        described = manifest.files.get(disk.file.name)
        if described is None:
            return f"the manifest beside {disk.file} does not describe it"
        if not manifest.clone_safe:
            return f"the manifest beside {disk.file} does not say that it is clone_safe"
        if File.of(disk.file) != described:
            return f"the manifest beside {disk.file} is of another image"
    except FileNotFoundError:
        return f"no manifest beside {disk.file} says that it is clone_safe"
    except (OSError, ValueError) as error:
        return f"the manifest beside {disk.file} cannot be read: {error}"
    return None


def found(tmp: Path) -> list[Template]:
    """What there is of templates in this tmp/, whether sound or not."""
    home = directory(tmp)
    return [Template(path) for path in sorted(home.iterdir())] if home.is_dir() else []


def directory(tmp: Path) -> Path:
    return tmp / "templates"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
