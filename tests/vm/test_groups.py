"""Control groups for VMs, by a kernel that has them: this host may have none of version 2.

So our module runs in a guest, as its first process, with the guest's kernel and Python. A QEMU
there is a process that takes memory or makes threads.
"""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import files as files_of
from pathlib import Path
from typing import Any

import pytest

from supervisor.image.cpio import write_cpio
from tests.vm.conftest import IMAGE, PATIENCE_S

_CHECKOUT = Path(__file__).parents[2]

#: The first process of the guest. What it finds out is one line of JSON on the console.
_INIT = """#!/usr/bin/python3
import ctypes, json, os, signal, subprocess, sys, threading, traceback
from pathlib import Path
sys.path.insert(0, "/test")
libc = ctypes.CDLL(None, use_errno=True)

def mount(kind, where):
    os.makedirs(where, exist_ok=True)
    libc.mount(kind, where.encode(), kind, 0, None)

mount(b"proc", "/proc")
mount(b"sysfs", "/sys")
mount(b"devtmpfs", "/dev")
mount(b"cgroup2", "/sys/fs/cgroup")
found = {}
try:
    from supervisor.qemu import groups
    root = Path("/sys/fs/cgroup")
    found["at the root"] = str(groups.delegated())
    service = root / "service"
    service.mkdir()
    groups._write(root / "cgroup.subtree_control", "+cpu +memory +pids")
    groups.enter(service, os.getpid())
    base = groups.delegated()
    found["base"] = str(base)
    found["again"] = str(groups.delegated())
    vms = groups.Groups(base, groups.Bounds(64 << 20, 2, 8))

    def run(vm_id, program):
        group = vms.make(vm_id)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read(1)\\n" + program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        groups.enter(group, child.pid)
        return child

    good = run("good", "print('up', flush=True); sys.stdin.read(1)")
    good.stdin.write(".")
    good.stdin.flush()
    good.stdout.readline()
    greedy = run("greedy", "b = b'x' * (200 << 20); print(len(b))")
    greedy.communicate(".")
    found["greedy"] = greedy.returncode
    found["greedy ran out"] = vms.ran_out_of_memory("greedy")
    found["good ran out"] = vms.ran_out_of_memory("good")
    found["good lives"] = good.poll() is None
    many = run("many", '''
import threading
over = threading.Event()
try:
    for number in range(100):
        threading.Thread(target=over.wait, daemon=True).start()
except RuntimeError:
    print(number)
''')
    found["threads"] = int(many.communicate(".")[0])
    vms.remove("good")
    found["busy stays"] = (base / "vm-good").is_dir()
    good.communicate(".")
    for name in ("good", "greedy", "many"):
        vms.remove(name)
    found["left"] = sorted(path.name for path in base.iterdir() if path.is_dir())
    vms.make("greedy")
    found["greedy ran out again"] = vms.ran_out_of_memory("greedy")
    found["cpu"] = (base / "vm-greedy" / "cpu.max").read_text().strip()
except BaseException:
    found["error"] = traceback.format_exc()
print("\\nFOUND " + json.dumps(found), flush=True)
libc.reboot(0x4321FEDC)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("groups")
    root = place / "root"
    for name in ("__init__.py", "errors.py", "guest_text.py", "qemu/__init__.py"):
        _copy(_CHECKOUT / "supervisor" / name, root / "test" / "supervisor" / name)
    for name in ("groups.py", "cgroup.py"):
        _copy(_CHECKOUT / "supervisor/qemu" / name, root / "test/supervisor/qemu" / name)
    for file in files_of("attrs") or []:
        if file.suffix == ".py":
            _copy(Path(str(file.locate())), root / "test" / str(file))
    # The guest lacks what it is linked with; what is tried here does not call it.
    (root / "test" / "psutil.py").touch()
    (root / "first").write_text(_INIT)
    (root / "first").chmod(0o755)
    initramfs = place / "initrd.img"
    with initramfs.open("wb") as archive:
        # The kernel takes several archives, one after another; the compressed one must be last.
        write_cpio(root, archive, 0)
        archive.write((IMAGE.parent / "initrd.img").read_bytes())
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-cpu", "max", "-m", "768M", "-display", "none"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(IMAGE.parent / "vmlinuz"), "-initrd", str(initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/first"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE_S,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-3000:]
    answer: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    assert "error" not in answer, answer["error"]
    return answer


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(file.read_bytes())
    to.chmod(0o644)


def test_a_delegated_group_is_found_and_the_root_is_not_taken(found: dict[str, Any]) -> None:
    assert found["at the root"] == "None"
    assert found["base"] == found["again"] == "/sys/fs/cgroup/service"


def test_a_qemu_that_takes_too_much_memory_is_killed_and_takes_nobody_along(
    found: dict[str, Any],
) -> None:
    assert (found["greedy"], found["greedy ran out"]) == (-9, True)
    assert (found["good lives"], found["good ran out"]) == (True, False)


def test_threads_are_bounded(found: dict[str, Any]) -> None:
    assert found["threads"] < 8


def test_time_is_bounded(found: dict[str, Any]) -> None:
    assert found["cpu"] == "200000 100000"


def test_a_group_goes_with_its_qemu_and_not_before(found: dict[str, Any]) -> None:
    assert found["busy stays"]
    assert found["left"] == ["supervisor"]


def test_what_a_qemu_did_is_not_taken_for_the_next_ones(found: dict[str, Any]) -> None:
    assert not found["greedy ran out again"]
