"""A supervisor that is root, and whose QEMUs are not: a user a VM, and what that user reaches.

What a guest that has taken over QEMU could do, a process with QEMU's user and groups tries.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psutil
import pytest

from tests.support.namespaces import needs_namespaces
from tests.vm.conftest import Supervisor, started, workplace
from tests.vm.test_qemus import UNPACKED
from tests.vm.test_run import computation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start QEMU as another")

FIRST, LAST = 7_700_000, 7_700_099
QEMU = UNPACKED / "bookworm-backports" / "qemu-system-x86_64"

#: Each line of its input is an expression; each line of its output is what came of it.
_INTRUDER = """
import os, socket, sys
uid, gid, *groups = map(int, sys.argv[1:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
for line in sys.stdin:
    try:
        eval(line)
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


@attrs.frozen
class Running:
    """A VM that was answered."""

    id: str
    pid: int
    directory: Path
    uid: int

    def tries(self, *expressions: str) -> list[str]:
        """What comes of each for a process that has this QEMU's user and groups."""
        process = psutil.Process(self.pid)
        ids = [str(process.uids().real), str(process.gids().real), *_groups(self.pid)]
        return tried_as(ids, *expressions)


def tried_as(ids: Sequence[str], *expressions: str) -> list[str]:
    """The same for a process with this user, group and other groups."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", _INTRUDER, *ids],
        input="\n".join(expressions),
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def ran(supervisor: Supervisor, name: str, **options: Any) -> Running:
    answer = supervisor.run(computation(name), **options)
    assert json.loads(answer["computation"])["id"] == name
    shown = supervisor.show(answer["id"])
    uids = psutil.Process(shown["pid"]).uids()
    assert uids.real == uids.effective == uids.saved
    return Running(shown["id"], shown["pid"], Path(shown["directory"]), uids.real)


@contextmanager
def served(tmp: Path, **settings: str) -> Iterator[Supervisor]:
    with started(tmp, MANAGER_QEMU_RUN_AS=f"{FIRST}-{LAST}", **settings) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def tmp() -> Iterator[Path]:
    with workplace() as place:
        yield place


@pytest.fixture(scope="module")
def supervisor(tmp: Path) -> Iterator[Supervisor]:
    if not QEMU.exists():
        pytest.skip(f"{QEMU} is missing: scripts/test could not unpack Debian's packages")
    with served(tmp, MANAGER_TEMPLATES="auto", MANAGER_QEMU_BIN_PATH=str(QEMU)) as running:
        yield running


@pytest.fixture(scope="module")
def two(supervisor: Supervisor) -> tuple[Running, Running]:
    """Two VMs from one template."""
    supervisor.until("/templates", lambda answer: all_over(answer["templates"]))
    return (
        ran(supervisor, "one", template="require"),
        ran(supervisor, "two", template="require", keep_disk=True),
    )


def all_over(templates: list[dict[str, Any]]) -> bool:
    return bool(templates) and all(one["state"] in ("ready", "failed") for one in templates)


def test_each_vm_has_a_user_of_its_own(two: tuple[Running, Running]) -> None:
    one, two_ = two
    assert one.uid != two_.uid
    assert {one.uid, two_.uid} <= set(range(FIRST + 1, LAST + 1))


def test_a_vm_cannot_reach_another(tmp: Path, two: tuple[Running, Running]) -> None:
    one, other = two
    files = [path for path in other.directory.iterdir() if path.is_file()]
    assert {"overlay.qcow2", "serial.log", "vm.json", "reply"} <= {path.name for path in files}
    attempts = [
        *(f"open({str(file)!r}, 'rb')" for file in files),
        *(f"open({str(file)!r}, 'ab')" for file in files),
        *(f"os.stat({str(file)!r})" for file in files),
        f"os.listdir({str(other.directory)!r})",
        f"os.listdir({str(tmp)!r})",
        f"open({str(tmp / 'mine')!r}, 'wb')",
        f"open('/proc/{other.pid}/mem', 'rb')",
        f"os.listdir('/proc/{other.pid}/fd')",
        f"os.kill({other.pid}, 0)",
        f"os.kill({os.getpid()}, 0)",
    ]
    assert dict(zip(attempts, one.tries(*attempts), strict=True)) == dict.fromkeys(
        attempts, "PermissionError"
    )


def test_a_vm_has_its_disk_and_nothing_else_of_its_own_directory(
    two: tuple[Running, Running],
) -> None:
    """It must not replace a file that the supervisor, which is root, will write to."""
    one, _ = two
    mine = [one.directory / name for name in ("overlay.qcow2", "firmware_vars.fd", "serial.log")]
    assert one.tries(*(f"open({str(file)!r}, 'ab')" for file in mine)) == ["done"] * 3
    others = [path for path in one.directory.iterdir() if path not in mine and path.is_file()]
    attempts = [
        *(f"open({str(file)!r}, 'rb')" for file in others),
        f"os.symlink('/etc/passwd', {str(one.directory / 'vm.json.new')!r})",
        f"os.unlink({str(one.directory / 'serial.log')!r})",
    ]
    assert set(one.tries(*attempts)) == {"PermissionError"}


def test_a_clone_reads_the_template_and_cannot_write_to_it(
    supervisor: Supervisor, tmp: Path, two: tuple[Running, Running]
) -> None:
    one, _ = two
    (template,) = (tmp / "templates").iterdir()
    ram, disk = template / "ram", template / "overlay.qcow2"
    assert one.tries(f"open({str(ram)!r}, 'rb')", f"open({str(disk)!r}, 'rb')") == ["done"] * 2
    assert {file.stat().st_uid for file in template.iterdir()} == {0}
    writes = [f"open({str(file)!r}, 'r+b')" for file in template.iterdir()]
    assert set(one.tries(*writes)) == {"PermissionError"}
    links = Path(f"/proc/{one.pid}/fd").iterdir()
    (held,) = [link.name for link in links if link.readlink() == ram]
    flags = Path(f"/proc/{one.pid}/fdinfo/{held}").read_text().split()[3]
    assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY


def test_a_supervisor_after_it_takes_them_up_and_takes_their_files_back(
    supervisor: Supervisor, tmp: Path, two: tuple[Running, Running]
) -> None:
    one, kept = two
    assert supervisor.end(signal.SIGTERM) == 0
    with served(tmp, MANAGER_TEMPLATES="auto", MANAGER_QEMU_BIN_PATH=str(QEMU)) as after:
        shown = after.until(f"/vms/{one.id}", lambda answer: answer["agent"]["ready"])
        assert shown["pid"] == one.pid
        third = ran(after, "three", template="require")
        assert third.uid not in (one.uid, kept.uid)
        after.post(kept.id, "shutdown")
        files = [kept.directory, *kept.directory.iterdir()]
        assert kept.directory / "overlay.qcow2" in files
        assert {file.stat().st_uid for file in files} == {0}
        assert kept.directory.stat().st_mode & 0o777 == 0o700


def test_all_may_run_as_one_user() -> None:
    with started(MANAGER_QEMU_RUN_AS="nobody") as supervisor:
        headers = {"Prefer": "respond-async"}
        body = {"computation": list(computation("any"))}
        vm_id = supervisor.http.post("/run", json=body, headers=headers).json()["id"]
        # With this machine's own QEMU, which may be older: its guest runs, so the files are open.
        pid = supervisor.until(f"/vms/{vm_id}", lambda one: one["state"] == "running")["pid"]
        assert psutil.Process(pid).uids().real == 65534
        assert "0" not in _groups(pid)
        (capabilities,) = [line for line in _status(pid) if line.startswith("CapEff:")]
        assert int(capabilities.split()[1], 16) == 0
        assert supervisor.http.delete(f"/vms/{vm_id}").status_code == 204


@needs_namespaces
def test_no_user_but_ours_reaches_the_agent_of_a_vm_without_forwards() -> None:
    with started(MANAGER_QEMU_RUN_AS="nobody", MANAGER_FORWARDS="none") as supervisor:
        vm = ran(supervisor, "alone")
        door = vm.directory / "rpc.sock"
        connect = f"socket.socket(socket.AF_UNIX).connect({str(door)!r})"
        replace = f"os.unlink({str(door)!r})"
        assert vm.tries(connect, replace) == ["PermissionError"] * 2
        assert tried_as(["12345", "12345"], connect) == ["PermissionError"]
        assert tried_as(["0", "0"], connect) == ["done"]


def _groups(pid: int) -> list[str]:
    (line,) = [line for line in _status(pid) if line.startswith("Groups:")]
    return line.split()[1:]
