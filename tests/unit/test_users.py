"""The users that QEMUs run as: which, what each may, and what is theirs for as long."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import attrs
import pytest

from supervisor import config
from supervisor.config import QemuConfig
from supervisor.config.settings import UidRange, UserName
from supervisor.errors import AtCapacity, ConfigError, HostError
from supervisor.qemu import confine, process, users
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.users import User, Users
from supervisor.state.shares import Shares
from supervisor.state.tmp_dir import close_tmp
from supervisor.state.vm_dir import VmDir

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another")

IDS = UidRange(7_700_000, 7_700_003)
PLAIN = Accel(kvm=False)


def asking(run_as: UidRange | UserName) -> QemuConfig:
    return QemuConfig(run_as=run_as)


# --- the setting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [("qemu", UserName("qemu")), ("7700000-7700020", UidRange(7_700_000, 7_700_020))],
)
def test_setting(text: str, read: UidRange | UserName) -> None:
    assert config.load({"MANAGER_QEMU_RUN_AS": text}).qemu.run_as == read


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"RUN_AS": "0-99"}, "ids, 1 to"),
        ({"RUN_AS": "9-9"}, "two at least"),
        ({"RUN_AS": "a b"}, "name of a user"),
        ({"RUN_AS": "7700000-7700010"}, "so 12 at least"),
        ({"RUN_AS": "nobody", "USE_SUDO": "true"}, "exclude each other"),
    ],
)
def test_setting_that_is_refused(given: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config.load({f"MANAGER_QEMU_{name}": value for name, value in given.items()})


# --- which ----------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    ("run_as", "problem"),
    [
        (UserName("no-such-user"), "no such user"),
        (UserName("root"), "is root"),
        (UidRange(65530, 65540), "the user nobody"),
    ],
)
def test_users_that_cannot_be(run_as: UidRange | UserName, problem: str) -> None:
    with pytest.raises(HostError, match=problem):
        users.choose(asking(run_as))


def test_only_root_can_change_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="runs as root"):
        users.choose(asking(IDS))


@pytest.mark.parametrize(
    ("line", "whose"),
    [
        ("ann:7700003:65536", "ann"),
        ("ann:7600000:100001", "ann"),
        ("ann:7600000:100000", None),
        ("ann:7700004:65536", None),
        ("ann:x:y", None),
        ("", None),
    ],
)
def test_ids_that_a_user_of_this_host_can_have_in_a_namespace(line: str, whose: str | None) -> None:
    """Such a user would pass through tmp/, and read every disk there."""
    assert users.subordinate(["bob:100000:65536", line], IDS) == whose


@as_root
def test_one_each() -> None:
    chosen = users.choose(asking(IDS))
    assert chosen.shared
    one, two = chosen.take(), chosen.take()
    assert one
    assert two
    assert one.uid == one.gid != two.uid == two.gid
    assert IDS.first not in (one.uid, two.uid)  # or the group of all were that VM's own
    assert IDS.first == chosen.gid
    assert IDS.first in one.groups
    chosen.give_back(one)
    assert chosen.take(0) == one
    chosen.give_back(two)
    assert chosen.take(two.uid) == two


@as_root
def test_a_vm_keeps_the_user_that_it_had_under_another_setting() -> None:
    chosen = users.choose(asking(IDS))
    for _ in range(10):  # more than there are ids
        earlier = chosen.take(65534)
        assert earlier
        assert earlier.uid == 65534
    chosen.give_back(earlier)
    new = chosen.take()
    assert new
    assert new.uid in IDS


def test_no_id_is_left() -> None:
    chosen = Users(User(7, 7, ()), [8, 9])
    taken = [chosen.take(), chosen.take()]
    with pytest.raises(AtCapacity, match="MANAGER_QEMU_RUN_AS"):
        chosen.take()
    assert chosen.take(65534)  # a VM that has its user keeps it
    chosen.give_back(taken[0])
    assert chosen.take() == taken[0]


def test_one_for_all() -> None:
    all_of_them = User(7, 7, ())
    chosen = Users(all_of_them)
    assert chosen.take() == chosen.take(8) == all_of_them
    assert Users().take() is None


@pytest.mark.parametrize(
    ("uid", "settings", "warned"),
    [
        (0, QemuConfig(), True),
        (0, asking(IDS), False),
        (1000, QemuConfig(), False),
        (1000, QemuConfig(use_sudo=True), True),
    ],
)
def test_a_qemu_that_is_root_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, uid: int, settings: QemuConfig, warned: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert (users.danger(settings) is not None) is warned


# --- what each may ---------------------------------------------------------------------------


@as_root
async def test_qemu_has_these_ids_no_capability_and_no_way_to_more(tmp_path: Path) -> None:
    program = Path("/bin/cat")
    user = User(IDS.first + 1, IDS.first + 1, (IDS.first,))
    argv, log = [str(program), "/proc/self/status"], tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as listener:
        starting = process.start(argv, listener, log, leave=lambda: False, user=user)
        async with starting as started:
            assert await started.wait() == 0
    status = dict(line.split(":", 1) for line in log.read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(user.uid)}
    assert status["Groups"].split() == [str(IDS.first)]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {0}
    assert status["NoNewPrivs"].strip() == "1"


@as_root
def test_whether_a_user_may_open_a_device(short_tmp: Path) -> None:
    device = short_tmp / "device"
    device.touch()
    short_tmp.chmod(0o755)
    user = users.User(IDS.first, IDS.first, (7_700_009,))
    for group, mode, may in (
        (0, 0o660, False),
        (7_700_009, 0o640, False),
        (7_700_009, 0o660, True),
    ):
        os.chown(device, 0, group)
        device.chmod(mode)
        assert users.may_open(user, device, sudo=False) is may
    assert users.may_open(None, device, sudo=False)
    assert users.may_open(None, short_tmp / "not ours to see", sudo=True)


@as_root
def test_what_all_vms_share_must_be_open_to_them(short_tmp: Path) -> None:
    chosen = users.choose(asking(IDS))
    short_tmp.chmod(0o755)
    image = short_tmp / "image"
    image.touch(0o600)
    settings = attrs.evolve(asking(IDS), tmp=short_tmp / "t")
    settings = attrs.evolve(settings, disk=attrs.evolve(settings.disk, file=image))
    with pytest.raises(HostError, match=f"may not open {image}"):
        users.check_access(settings, chosen, PLAIN)
    image.chmod(0o644)
    users.check_access(settings, chosen, PLAIN)
    short_tmp.chmod(0o700)
    with pytest.raises(HostError, match=f"may not pass through {short_tmp}"):
        users.check_access(settings, chosen, PLAIN)


# --- what is theirs --------------------------------------------------------------------------


@as_root
def test_a_vms_files_are_its_users_until_its_end(short_tmp: Path) -> None:
    chosen = users.choose(asking(IDS))
    one, other = chosen.take(), chosen.take()
    assert one
    assert other
    tmp = short_tmp / "t"
    tmp.mkdir()
    close_tmp(tmp, chosen.gid)
    short_tmp.chmod(0o755)
    vm_dir = VmDir(tmp / "vm")
    vm_dir.path.mkdir(mode=0o700)
    for file in (vm_dir.overlay, vm_dir.reply, vm_dir.serial_log):
        file.touch(0o600)
    Shares(environment=(), certificates=(("key.pem", b"secret"),)).write(*vm_dir.shares, "vm")
    vm_dir.give_to(one)
    assert vm_dir.given_to() == one.uid
    assert may(one, "-w", vm_dir.overlay)
    assert not may(one, "-r", vm_dir.reply)
    assert not may(one, "-w", vm_dir.path)
    assert not may(one, "-r", tmp)
    assert not may(other, "-e", vm_dir.overlay)
    assert not may(User(IDS.last + 1, IDS.last + 1, ()), "-e", vm_dir.path)
    for share in vm_dir.shares:
        (file,) = share.iterdir()
        assert may(one, "-r", share)
        assert may(one, "-r", file)
        assert not may(one, "-w", share)
        assert not may(other, "-e", file)
    vm_dir.clear(disks=False)
    assert vm_dir.given_to() == 0
    assert not any(share.exists() for share in vm_dir.shares)
    assert not may(one, "-e", vm_dir.overlay)


def may(user: User, flag: str, path: Path) -> bool:
    command = [*users.run_as(user), "test", flag, str(path)]
    return subprocess.run(command, check=False, env=confine.environment()).returncode == 0
