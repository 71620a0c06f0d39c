"""A template on disk, ``tmp/templates/<digest>/``, its fingerprint, and what may forbid templates.

A template is a VM that was frozen when its agent was ready. Its clones must have the same machine
and the same files, QEMU's binary included. The fingerprint covers all of these, and its digest
names the template. Everything here blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.config import DiskConfig
from supervisor.errors import TemplateError
from supervisor.image.manifest import NAME, File, Manifest
from supervisor.qemu import cmdline
from supervisor.qemu.host import boot_id
from supervisor.qemu.version import Binary, Version
from supervisor.state import file_errors
from supervisor.state.disk import make_overlay
from supervisor.state.files import sync
from supervisor.state.record import BaseImage
from supervisor.state.vm_dir import open_to_group

if TYPE_CHECKING:
    from supervisor.config import QemuConfig, TeeConfig
    from supervisor.qemu.host import Host
    from supervisor.state.vm_dir import VmDir

#: Part of every fingerprint. Increase it if guests are prepared or renewed in another way.
_FORMAT = 4

_NO_HASH = "0" * 64
_NO_ID = "00000000-0000-0000-0000-000000000000"


@attrs.frozen
class Template:
    """The files of one template.

    :param path: its directory, named by the digest. The name has a number if an invalid template of
        the same fingerprint is still needed by the disks of VMs.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def digest(self) -> str:
        """The digest of its fingerprint."""
        return self.name.partition("-")[0]

    @property
    def ram(self) -> Path:
        """The guest's memory. Each clone maps it privately."""
        return self.path / "ram"

    @property
    def state(self) -> Path:
        """The devices' state, as QEMU's migration writes it."""
        return self.path / "state"

    @property
    def overlay(self) -> Path:
        """The disk as it was frozen. Nothing writes to it any more."""
        return self.path / "overlay.qcow2"

    @property
    def clone(self) -> Path:
        """An empty overlay on `overlay`. Each clone gets a copy: all empty overlays are alike."""
        return self.path / "clone.qcow2"

    @property
    def firmware_vars(self) -> Path:
        return self.path / "firmware_vars.fd"

    @property
    def manifest(self) -> Path:
        """Written last: a template without it is incomplete."""
        return self.path / "manifest.json"

    def is_sound(self) -> bool:
        """Whether it is complete, and its devices' state has the hash of the build.

        QEMU cannot recognise a damaged state, so the state is hashed.
        """
        try:
            self._check_sizes()
            return File.of(self.state) == File(**json.loads(self.manifest.read_text())["state"])
        except (OSError, TemplateError, ValueError, LookupError, TypeError):
            return False

    def _check_sizes(self) -> None:
        """:raises TemplateError: if a file is missing, or has another size than after the build"""
        try:
            sizes = dict(json.loads(self.manifest.read_bytes())["sizes"])
            # QEMU would create a missing memory file, and run the guest on zeros.
            present = {name: (self.path / name).stat().st_size for name in sizes}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TemplateError(f"{self.path} is damaged: {error}") from error
        if present != sizes:
            raise TemplateError(f"{self.path} is damaged: a file has changed its size")

    def size_bytes(self) -> int:
        """The bytes that it takes on disk, without the holes in the memory file."""
        return sum(file.stat().st_blocks * 512 for file in self.path.iterdir())

    def create_from(self, vm_dir: VmDir, fingerprint: Fingerprint, has_line: bool) -> None:
        """Make the template from a frozen VM's files, which are moved. After an error, remove it.

        :param has_line: whether its guest has the line to its host open
        :raises TemplateError: if a file cannot be moved or written
        """
        try:
            self._create_from(vm_dir, fingerprint, has_line)
        except OSError as error:
            what, advice = file_errors.describe(error, self.path)
            self.remove()
            raise TemplateError(f"{what}; the template is not kept", advice=advice) from error
        except BaseException:
            self.remove()
            raise

    def _create_from(self, vm_dir: VmDir, fingerprint: Fingerprint, has_line: bool) -> None:
        self.remove()
        self.path.mkdir(parents=True, mode=0o700)
        vm_dir.ram.rename(self.ram)
        vm_dir.state.rename(self.state)
        vm_dir.overlay.rename(self.overlay)
        vm_dir.firmware_vars.rename(self.firmware_vars)
        # Its VM's user had them, who may be another VM's next.
        self._open_to(None)
        make_overlay(DiskConfig(file=self.overlay, format="qcow2"), self.clone)
        content = {
            "fingerprint": fingerprint.parts,
            "sizes": {file.name: file.stat().st_size for file in self.path.iterdir()},
            "state": attrs.asdict(File.of(self.state)),
            "renews_itself": has_line and _renews_itself(fingerprint),
        }
        # Clones' disks may outlive a loss of power, and need the overlay. The rest need not last:
        # a boot of the host makes the template stale.
        for path in (self.overlay, self.path, self.path.parent):
            sync(path)
        draft = self.manifest.with_suffix(".new")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.rename(self.manifest)

    def renews_itself(self) -> bool:
        """Whether its copies renew themselves, and their first call may come over the line.

        :raises TemplateError: if the template is damaged
        """
        try:
            return bool(json.loads(self.manifest.read_bytes())["renews_itself"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise TemplateError(f"{self.path} is damaged: {error}") from error

    def clone_into(self, vm_dir: VmDir, gid: int | None) -> BaseImage:
        """Copy the disk and the firmware variables into the directory of a new clone.

        :param gid: the group of QEMU's users, who then may read memory and disk; None if QEMU
            runs as the supervisor's user
        :returns: the image below the template's disk
        :raises TemplateError: if the template is damaged
        :raises OSError: if a file cannot be written
        """
        self._check_sizes()
        self._open_to(gid)
        shutil.copyfile(self.clone, vm_dir.overlay)
        shutil.copyfile(self.firmware_vars, vm_dir.firmware_vars)
        vm_dir.serial_log.touch()  # so that it is ours even if QEMU runs as root
        path, _device, *rest = json.loads(self.manifest.read_bytes())["fingerprint"]["image"]
        return BaseImage(path, *rest)

    def _open_to(self, gid: int | None) -> None:
        if os.geteuid() != 0:
            return  # no other user has part in it
        for directory in (self.path.parent, self.path):
            open_to_group(directory, gid)
        shared = () if gid is None else (self.ram, self.overlay)
        for file in self.path.iterdir():  # all: those that its VM had were its user's
            os.chown(file, 0, gid if gid is not None and file in shared else os.getegid())
            file.chmod(0o640 if file in shared else 0o600)

    def remove(self) -> None:
        # The manifest first: if this is interrupted, the rest counts as incomplete.
        with suppress(OSError):
            self.manifest.unlink()
        shutil.rmtree(self.path, ignore_errors=True)


@attrs.frozen
class Fingerprint:
    """Everything that must be equal for a QEMU to load the memory and devices of another QEMU.

    :param parts: values for JSON, by name
    """

    parts: dict[str, Any]

    @property
    def digest(self) -> str:
        content = json.dumps(self.parts, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def fingerprint(config: QemuConfig, host: Host) -> Fingerprint:
    """The fingerprint of a VM that is started now.

    The host's boot id is part of it. CPU and microcode may change at a boot, and memory and state,
    which are not synced, may be lost.

    :raises OSError: if a file is missing
    """
    unspecified = Path("-")
    same = cmdline.Machine(
        vm_id=_NO_ID,
        # What QEMU's version decides need not be asked: the binary itself is part of this.
        qemu=Binary(host.qemu, Version(0, 0), frozenset()),
        accel=host.accel,
        forwards=(),
        overlay=unspecified,
        firmware_vars=unspecified,
        serial_log=unspecified,
        qmp_socket=unspecified,
        credential_hash=_NO_HASH,
        ram=cmdline.Ram(unspecified, shared=True),
        renewal=unspecified,
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
            "tee": _of_tee(config.tee, host) if host.accel.tee else None,
            **{name: _identity(file) for name, file in files.items()},
        }
    )


def _renews_itself(fingerprint: Fingerprint) -> bool:
    """Whether the image's manifest says so. One that is gone does not."""
    manifest = fingerprint.parts["manifest"]
    try:
        return Manifest.read(Path(manifest[0]).parent).renews_itself if manifest else False
    except (OSError, ValueError):
        return False


def _of_tee(tee: TeeConfig, host: Host) -> list[object]:
    """What guests of the pool are launched with, if they are confidential."""
    files = (tee.firmware, tee.kernel, tee.initrd, tee.igvm)
    return [
        host.accel.tee,
        str(tee.policy),
        tee.cmdline,
        *(_identity(file) if file else None for file in files),
    ]


def _identity(file: Path) -> list[object]:
    """A file's path, inode, size and time of change. As make(1), this does not read the content."""
    real = file.resolve(strict=True)
    stat = real.stat()
    return [str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]


def obstacle(config: QemuConfig, host: Host) -> str | None:
    """Why no template of such VMs can be built; None if one can. Reads the whole image."""
    if host.accel.tee:
        return "the memory of encrypted guests cannot be copied"
    if host.users.shared and not host.look_at_qemu().maps_read_only:
        return "before version 8.2 QEMU writes to a template's memory, which its user must not"
    return _obstacle_of_image(config.disk)


def _obstacle_of_image(disk: DiskConfig) -> str | None:
    try:
        manifest = Manifest.read(disk.file.parent)
        described = manifest.files.get(disk.file.name)
        if described is None:
            return f"the manifest beside {disk.file} does not describe it"
        if not manifest.clone_safe:
            return f"the manifest beside {disk.file} does not say that the image is clone_safe"
        if File.of(disk.file) != described:
            return f"the manifest beside {disk.file} describes another image"
    except FileNotFoundError:
        return f"there is no manifest beside {disk.file} to say that the image is clone_safe"
    except (OSError, ValueError) as error:
        return f"the manifest beside {disk.file} cannot be read: {error}"
    return None


def found(tmp: Path) -> list[Template]:
    """All templates in this tmp/, sound or not."""
    parent = directory(tmp)
    return [Template(path) for path in sorted(parent.iterdir())] if parent.is_dir() else []


def directory(tmp: Path) -> Path:
    """The directory of all templates."""
    return tmp / "templates"
