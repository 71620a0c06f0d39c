"""Control groups for VMs, in a made-up tree. tests/vm/test_groups.py has the kernel's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.config import QemuConfig
from supervisor.errors import LaunchError
from supervisor.qemu import cgroup, groups
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.groups import Bounds, Groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOST = Bounds(memory_bytes=768 << 20, cpus=5, tasks=192)
ALL = "cpuset cpu io memory hugetlb pids"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that makes a group of this process's, with these files, and returns its path."""

    def make(name: str = "a", *, controllers: str = ALL, pids: str = str(os.getpid())) -> Path:
        group = tmp_path / "root" / name
        group.mkdir(parents=True)
        for directory in (group, group.parent):
            (directory / "cgroup.controllers").write_text(controllers)
            (directory / "cgroup.subtree_control").write_text("")
            (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        (group / "cgroup.procs").write_text(pids)
        (tmp_path / "self").write_text(f"0::/{name}\n")
        monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "root")
        monkeypatch.setattr(cgroup, "_OF_THIS_PROCESS", tmp_path / "self")
        return group

    return make


def test_bounds_are_what_the_vm_was_given_and_what_qemu_needs() -> None:
    plain, kvm = (groups.bounds(QemuConfig(), Accel(kvm=kvm)) for kvm in (False, True))
    guest = QemuConfig().memory_bytes
    assert kvm == Bounds(guest + (256 << 20), cpus=5, tasks=192)
    assert plain.memory_bytes == kvm.memory_bytes + (1 << 30)


def test_a_delegated_group_is_taken_over(tree: Callable[..., Path]) -> None:
    own = tree("a/b")
    assert groups.delegated() == own
    assert (own / "supervisor" / "cgroup.procs").read_text().split() == [str(os.getpid())]
    enabled = (own / "cgroup.subtree_control").read_text().split()
    assert enabled == ["+cpu", "+memory", "+pids"]


def test_a_supervisor_that_was_started_in_its_own_group_stays_there(
    tree: Callable[..., Path],
) -> None:
    """As by systemd's DelegateSubgroup."""
    own = tree("supervisor", pids="1\n2\n")
    assert groups.delegated() == own.parent
    assert (own / "cgroup.procs").read_text() == "1\n2\n"


@pytest.mark.parametrize(
    "given",
    [{"controllers": "cpu pids"}, {"pids": f"{os.getpid()}\n1\n"}],
    ids=["no memory", "others are in it"],
)
def test_a_group_that_is_not_ours_is_left_alone(
    tree: Callable[..., Path], given: dict[str, str]
) -> None:
    own = tree("a", **given)
    before = sorted(path.name for path in own.iterdir())
    assert groups.delegated() is None
    assert sorted(path.name for path in own.iterdir()) == before
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_the_root_of_the_host_is_left_alone(tree: Callable[..., Path]) -> None:
    own = tree("a")
    (own / "cgroup.events").unlink()  # the root has none
    assert groups.delegated() is None


def test_without_version_2_there_is_none(tree: Callable[..., Path], tmp_path: Path) -> None:
    tree("a")
    (tmp_path / "self").write_text("4:memory:/a\n1:name=systemd:/a\n")
    assert groups.delegated() is None


def test_a_vms_group(tmp_path: Path) -> None:
    made = Groups(tmp_path, MOST).make("x")
    assert made == tmp_path / "vm-x"
    assert {file.name: file.read_text().strip() for file in made.iterdir()} == {
        "memory.max": str(768 << 20),
        "memory.oom.group": "1",
        "cpu.max": "500000 100000",
        "pids.max": "192",
    }


def test_a_group_that_cannot_be_made_keeps_the_vm_from_starting(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="delegated"):
        Groups(tmp_path / "gone", MOST).make("x")


@pytest.mark.parametrize(("kills", "seen"), [("0", False), ("1", True)])
def test_a_qemu_that_was_killed_for_memory(tmp_path: Path, kills: str, seen: bool) -> None:
    made = Groups(tmp_path, MOST)
    assert not made.ran_out_of_memory("x")
    (tmp_path / "vm-x").mkdir()
    (tmp_path / "vm-x" / "memory.events").write_text(f"low 0\nmax 9\noom 3\noom_kill {kills}\n")
    assert made.ran_out_of_memory("x") is seen


def test_without_groups_nothing_is_done() -> None:
    none = Groups(None, MOST)
    assert none.make("x") is None
    assert not none.ran_out_of_memory("x")
    none.remove("x")
