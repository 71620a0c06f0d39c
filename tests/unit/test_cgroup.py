"""What control groups leave of a host, by the files of made-up ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from supervisor.config import NetConfig
from supervisor.qemu import cgroup
from supervisor.runs.admission import host_resources

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30
UNLIMITED = str(2**63 - 4096)


def groups(tmp_path: Path, of_process: str, files: dict[str, str]) -> None:
    (tmp_path / "self").write_text(of_process)
    for name, content in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")


@pytest.fixture(autouse=True)
def _made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "root")
    monkeypatch.setattr(cgroup, "_OF_THIS_PROCESS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("of_process", "files", "memory_bytes", "cpus"),
    [
        ("0::/\n", {}, None, 8),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/cpu.max": "max 100000"}, None, 8),
        ("0::/a/b\n", {"a/memory.max": f"{GIB}", "a/b/memory.max": f"{2 * GIB}"}, GIB, 8),
        ("0::/a\n", {"a/memory.high": f"{GIB}", "a/memory.max": f"{2 * GIB}"}, GIB, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, None, 2),
        ("0::/a\n", {"a/cpu.max": "50000 100000"}, None, 1),
        # A container: the group's path is the host's, or the root of its own namespace.
        ("0::/host/path\n", {"memory.max": f"{GIB}"}, GIB, 8),
        ("0::/../other\n", {"memory.max": f"{GIB}"}, GIB, 8),
        (
            "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/x\n0::/x\n",
            {
                "memory/memory.limit_in_bytes": UNLIMITED,
                "memory/a/memory.limit_in_bytes": f"{GIB}",
                "memory/a/b/memory.limit_in_bytes": UNLIMITED,
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            GIB,
            3,
        ),
    ],
    ids=["none", "max", "ancestor", "high", "cpus", "half", "container", "outside", "version-1"],
)
def test_least_limit_counts(
    tmp_path: Path, of_process: str, files: dict[str, str], memory_bytes: int | None, cpus: int
) -> None:
    groups(tmp_path, of_process, files)
    room = host_resources(NetConfig())
    assert room.memory_bytes == (memory_bytes or psutil.virtual_memory().total)
    assert room.vcpus == cpus


@pytest.mark.parametrize(
    ("files", "available_bytes"),
    [
        (
            {
                "a/memory.max": "100000",
                "a/memory.current": "70000",
                "a/memory.stat": "anon 5\ninactive_file 20000",
            },
            50000,
        ),
        ({"a/memory.max": "100000", "a/memory.current": "110000"}, 0),
    ],
)
def test_memory_that_can_be_taken_now(
    tmp_path: Path, files: dict[str, str], available_bytes: int
) -> None:
    """Cached files can be dropped."""
    groups(tmp_path, "0::/a\n", files)
    assert cgroup.available_bytes() == available_bytes
