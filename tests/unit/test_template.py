"""What a template is made of, whether it may be made, and its files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from supervisor.config import (
    DiskConfig,
    FirmwareConfig,
    Policy,
    QemuConfig,
    TeeConfig,
    WatchdogAction,
)
from supervisor.config.settings import Size
from supervisor.errors import TemplateError
from supervisor.image.manifest import File, Manifest
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.groups import Bounds, Groups
from supervisor.qemu.host import Clock, Host
from supervisor.qemu.scopes import Scopes
from supervisor.qemu.users import User, Users
from supervisor.state.disk import base_image
from supervisor.state.vm_dir import VmDir
from supervisor.tee.facts import Technology
from supervisor.templates import template
from supervisor.templates.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = "guest.qcow2"


@attrs.frozen
class Place:
    """A host whose files can be changed."""

    path: Path
    config: QemuConfig
    host: Host

    @property
    def digest(self) -> str:
        return template.fingerprint(self.config, self.host).digest

    @property
    def obstacle(self) -> str | None:
        return template.obstacle(self.config, self.host)

    def declare(self, *, clone_safe: bool = True, name: str = IMAGE) -> None:
        """Write a manifest of the image as it is."""
        files = {name: File.of(self.config.disk.file)}
        made = Manifest("reference", clone_safe, "6.1", "quiet", "2026-11-23T00:00:00Z", {}, files)
        made.write(self.path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for name in ("qemu", "CODE.fd", "VARS.fd"):
        (tmp_path / name).write_text(name)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / IMAGE), "1M"]
    subprocess.run(create, check=True)
    config = QemuConfig(
        tmp=tmp_path / "t",
        disk=DiskConfig(file=tmp_path / IMAGE),
        firmware=FirmwareConfig(code_file=tmp_path / "CODE.fd", vars_file=tmp_path / "VARS.fd"),
    )
    config.tmp.mkdir()
    return Place(
        tmp_path,
        config,
        Host(
            str(tmp_path / "qemu"),
            sudo=False,
            accel=Accel(kvm=False),
            users=Users(),
            groups=Groups(None, Bounds(1, 1, 1)),
            scopes=Scopes(None, Bounds(1, 1, 1)),
            clock=Clock(),
        ),
    )


# --- the fingerprint -----------------------------------------------------------------------------


def test_the_same_is_the_same(place: Place) -> None:
    assert place.digest == place.digest
    assert len(place.digest) == 16


@pytest.mark.parametrize("name", ["qemu", IMAGE, "CODE.fd", "VARS.fd"])
def test_a_file_that_changes_is_another_recipe(place: Place, name: str) -> None:
    before = place.digest
    file = place.path / name
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    longer = place.digest
    assert longer != before
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert place.digest not in (before, longer)


def test_a_file_in_the_place_of_another_is_another_recipe(place: Place) -> None:
    before, stat = place.digest, (place.path / IMAGE).stat()
    other = place.path / "other"
    other.write_bytes(bytes(stat.st_size))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(place.path / IMAGE)
    assert place.digest != before


def test_a_manifest_is_a_part_of_it(place: Place) -> None:
    before = place.digest
    place.declare()
    assert place.digest != before


@pytest.mark.parametrize(
    "change",
    [
        {"memory_size": Size("1G")},
        {"smp_count": 2},
        {"cpu": "Nehalem"},
        {"machine": "pc"},
        {"watchdog": WatchdogAction.PAUSE},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_that_changes_is_another_recipe(place: Place, change: dict[str, Any]) -> None:
    other = attrs.evolve(place, config=attrs.evolve(place.config, **change))
    assert other.digest != place.digest


def test_kvm_is_a_part_of_it(place: Place) -> None:
    host = attrs.evolve(place.host, accel=Accel(kvm=True))
    assert attrs.evolve(place, host=host).digest != place.digest


CONFIDENTIAL = ("firmware", "kernel", "initrd", "igvm")


def confidential(place: Place, technology: Technology | None = Technology.SEV) -> Place:
    for name in CONFIDENTIAL:
        (place.path / name).write_text(name)
    files: dict[str, Any] = {name: place.path / name for name in CONFIDENTIAL}
    tee = TeeConfig(**files)
    host = attrs.evolve(place.host, accel=Accel(kvm=True, tee=technology))
    return attrs.evolve(place, host=host, config=attrs.evolve(place.config, tee=tee))


@pytest.mark.parametrize("name", CONFIDENTIAL)
def test_a_measured_file_is_a_part_of_it(place: Place, name: str) -> None:
    """Else a run would get a VM of the pool that was launched with another one."""
    for technology, changes in ((Technology.SEV, True), (None, False)):
        there = confidential(place, technology)
        before = there.digest
        (place.path / name).write_text("another")
        assert (there.digest != before) is changes


@pytest.mark.parametrize("change", [{"policy": Policy.read("no-debug")}, {"cmdline": "quiet"}])
def test_what_a_confidential_guest_is_launched_with_is_a_part_of_it(
    place: Place, change: dict[str, Any]
) -> None:
    there = confidential(place)
    tee = attrs.evolve(there.config.tee, **change)
    other = attrs.evolve(there, config=attrs.evolve(there.config, tee=tee))
    assert other.digest != there.digest


def test_the_technology_is_a_part_of_it(place: Place) -> None:
    digests = {confidential(place, one).digest for one in (*Technology, None)}
    assert len(digests) == len(Technology) + 1


def test_a_boot_of_the_host_is_a_part_of_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = place.digest
    monkeypatch.setattr(template, "boot_id", lambda: "another")
    assert place.digest != before


def test_a_file_that_is_missing(place: Place) -> None:
    (place.path / IMAGE).unlink()
    with pytest.raises(FileNotFoundError, match=IMAGE):
        template.fingerprint(place.config, place.host)


# --- whether it may be ----------------------------------------------------------------------


def test_an_image_that_is_declared_clone_safe(place: Place) -> None:
    place.declare()
    assert place.obstacle is None


def test_nobody_says_so(place: Place) -> None:
    assert place.obstacle is not None
    assert "no manifest" in place.obstacle


def remade(place: Place) -> None:
    place.declare()
    place.config.disk.file.write_bytes(b"another image")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            lambda place: place.declare(clone_safe=False),
            "does not say that the image is clone_safe",
        ),
        (lambda place: place.declare(name="other.qcow2"), "does not describe it"),
        (remade, "describes another image"),
        (lambda place: (place.path / "manifest.json").write_text("{"), "cannot be read"),
    ],
    ids=["not safe", "of another name", "of another content", "garbage"],
)
def test_what_is_in_the_way(place: Place, act: Callable[[Place], None], words: str) -> None:
    act(place)
    assert place.obstacle is not None
    assert words in place.obstacle
    assert str(place.config.disk.file) in place.obstacle


def test_encrypted_guests_are_never_copied(place: Place) -> None:
    place.declare()
    host = attrs.evolve(place.host, accel=Accel(kvm=True, tee=Technology.SEV))
    assert "encrypted" in (template.obstacle(place.config, host) or "")


# --- its files ------------------------------------------------------------------------------


def frozen(place: Place, name: str = "frozen") -> VmDir:
    """The directory of a VM that has been frozen."""
    vm_dir = VmDir(place.config.tmp / name)
    vm_dir.path.mkdir()
    vm_dir.ram.write_bytes(b"memory")
    vm_dir.state.write_bytes(b"state")
    vm_dir.firmware_vars.write_bytes(b"variables")
    create = ["qemu-img", "create", "-q", "-f", "qcow2", str(vm_dir.overlay), "1M"]
    subprocess.run(create, check=True)
    return vm_dir


def kept(place: Place) -> Template:
    fingerprint = template.fingerprint(place.config, place.host)
    made = Template(template.directory(place.config.tmp) / fingerprint.digest)
    made.create_from(frozen(place), fingerprint, has_line=True)
    return made


def test_made_of_the_files_of_a_vm(place: Place) -> None:
    made = kept(place)
    assert made.is_sound()
    assert made.digest == place.digest
    assert made.ram.read_bytes() == b"memory"
    assert made.state.read_bytes() == b"state"
    assert json.loads(made.manifest.read_text())["fingerprint"]["qemu"][0] == str(
        place.path / "qemu"
    )
    assert made.size_bytes() > 0
    assert template.found(place.config.tmp) == [made]
    assert not list((place.config.tmp / "frozen").iterdir())


def test_poured_into_the_directory_of_another(place: Place) -> None:
    made = kept(place)
    vm_dir = VmDir(place.config.tmp / "clone")
    vm_dir.path.mkdir()
    assert made.clone_into(vm_dir, None) == base_image(place.config.disk.file)
    assert vm_dir.firmware_vars.read_bytes() == b"variables"
    info = ["qemu-img", "info", "--output=json", str(vm_dir.overlay)]
    told = json.loads(subprocess.run(info, check=True, capture_output=True).stdout)
    assert told["full-backing-filename"] == str(made.overlay)
    assert not vm_dir.ram.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start QEMU as another")
def test_nothing_of_it_is_a_users(place: Place) -> None:
    """Its VM's user is another VM's soon, which could write to what every clone gets."""
    gid = 7_700_009
    vm_dir = frozen(place)
    vm_dir.give_to(User(7_700_001, 7_700_001, (gid,)))
    assert vm_dir.firmware_vars.stat().st_uid == 7_700_001
    fingerprint = template.fingerprint(place.config, place.host)
    made = Template(template.directory(place.config.tmp) / fingerprint.digest)
    made.create_from(vm_dir, fingerprint, has_line=True)
    assert {file.stat().st_uid for file in made.path.iterdir()} == {0}
    clone = VmDir(place.config.tmp / "clone")
    clone.path.mkdir()
    made.clone_into(clone, gid)
    for file in made.path.iterdir():
        found, shared = file.stat(), file in (made.ram, made.overlay)
        assert (found.st_uid, found.st_mode & 0o777) == (0, 0o640 if shared else 0o600), file
        assert (found.st_gid == gid) is shared


def cut(file: Path) -> None:
    os.truncate(file, 1)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("manifest.json", Path.unlink),
        ("manifest.json", cut),
        ("ram", Path.unlink),
        ("ram", cut),
        ("state", cut),
        ("state", flip),
        ("overlay.qcow2", Path.unlink),
        ("clone.qcow2", Path.unlink),
        ("firmware_vars.fd", cut),
    ],
)
def test_damage_is_seen(place: Place, name: str, act: Callable[[Path], None]) -> None:
    made = kept(place)
    act(made.path / name)
    assert not made.is_sound()


def test_nothing_is_started_on_memory_that_is_gone(place: Place) -> None:
    made = kept(place)
    made.ram.unlink()
    vm_dir = VmDir(place.config.tmp / "clone")
    vm_dir.path.mkdir()
    with pytest.raises(TemplateError, match="is damaged"):
        made.clone_into(vm_dir, None)


def test_removed(place: Place) -> None:
    made = kept(place)
    made.remove()
    assert not made.path.exists()
    assert template.found(place.config.tmp) == []
    made.remove()


def test_a_vm_whose_files_are_not_all_there(place: Place) -> None:
    vm_dir = frozen(place)
    vm_dir.state.unlink()
    fingerprint = template.fingerprint(place.config, place.host)
    made = Template(template.directory(place.config.tmp) / fingerprint.digest)
    with pytest.raises(TemplateError, match="not kept"):
        made.create_from(vm_dir, fingerprint, has_line=True)
    assert template.found(place.config.tmp) == []
    assert not made.path.exists()


def test_no_templates_yet(place: Place) -> None:
    assert template.found(place.config.tmp) == []
