"""Finding a VM's process again, whatever else runs on the host."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor.qemu.host import boot_id
from supervisor.qemu.option import escape
from supervisor.qemu.process import ProcessId, find, running_below

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of this process alone: another run of these tests has processes with VMs on their command lines.
TMP = Path(f"/nowhere/{uuid.uuid4()}")

#: Names itself, and changes its user if there is one, before it answers and waits.
_PROGRAM = """
import ctypes, os, sys
name, user = bytes.fromhex(sys.argv[1]), sys.argv[2]
if user:
    os.setuid(int(user))
ctypes.CDLL(None).prctl(15, name)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def running(
    *words: str | bytes, name: bytes = b"qemu", user: int | None = None
) -> Iterator[ProcessId]:
    """A process with these arguments and this name, as a record would have it."""
    program = [sys.executable, "-c", _PROGRAM, name.hex(), "" if user is None else str(user)]
    with subprocess.Popen(
        [*program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield _identity(process.pid)
        process.communicate()


def _identity(pid: int) -> ProcessId:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return ProcessId(pid, int(fields[19]), boot_id(), sudo=False)


def qemu_words(vm_id: str, tmp: Path = TMP) -> list[str]:
    return ["-drive", f"file={escape(tmp / vm_id / 'overlay.qcow2')},if=none", "-uuid", vm_id]


def is_found(vm_id: str, recorded: ProcessId | None, tmp: Path = TMP) -> bool:
    found = find(tmp / vm_id, recorded, running_below(tmp))
    if found:
        os.close(found[1])
    return found is not None


@pytest.fixture
def vm_id() -> str:
    return str(uuid.uuid4())


def test_process_on_record_is_found(vm_id: str) -> None:
    with running("-uuid", vm_id) as recorded:
        found = find(TMP / vm_id, recorded, {})
        assert found
        os.close(found[1])
        assert found[0] == recorded
    assert find(TMP / vm_id, recorded, {}) is None


@pytest.mark.parametrize("name", ["tmp", "c,o m", ",,", "a.b+"])
def test_process_that_is_not_on_record_is_found_by_its_command_line(vm_id: str, name: str) -> None:
    tmp = TMP / name
    with running(*qemu_words(vm_id, tmp)) as expected:
        assert running_below(tmp) == {vm_id: [expected.pid]}
        assert is_found(vm_id, None, tmp)
        assert running_below(TMP / "else") == {}


def test_pid_of_another_process_is_not_taken_for_the_vm(vm_id: str) -> None:
    with running("-uuid", str(uuid.uuid4())) as other:
        assert find(TMP / vm_id, other, {}) is None
    with running("-uuid", vm_id) as later:
        earlier = attrs.evolve(later, start_ticks=later.start_ticks - 1)
        assert find(TMP / vm_id, earlier, {}) is None


def test_pid_from_before_the_last_boot_is_not_looked_for(vm_id: str) -> None:
    with running("-uuid", vm_id) as recorded:
        assert find(TMP / vm_id, attrs.evolve(recorded, boot_id="another"), {}) is None


@pytest.mark.parametrize("boot", [None, "another"], ids=["this-boot", "another-boot"])
def test_recorded_pid_that_is_now_the_id_of_a_thread(vm_id: str, boot: str | None) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.native_id is not None
    try:
        recorded = ProcessId(thread.native_id, 1, boot or boot_id(), sudo=False)
        assert find(TMP / vm_id, recorded, {}) is None
    finally:
        over.set()
        thread.join()


def test_without_a_descriptor_nothing_is_said_about_the_process(vm_id: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running("-uuid", vm_id) as recorded:
        held = os.dup(0)  # the lowest descriptor that was free
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                find(TMP / vm_id, recorded, {})
        finally:
            os.close(held)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", [b"\xff\xfe", b") Z 1 (", b"a\nUid:\t0", b" "])
def test_any_bytes_as_name_and_arguments(vm_id: str, name: bytes) -> None:
    with running(*qemu_words(vm_id), b"\xff\xfe", name=name) as expected:
        assert running_below(TMP) == {vm_id: [expected.pid]}
        assert is_found(vm_id, expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start another user's process")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"Uid:\t0\t0\t0\t0", b"a\nUid:\t0\t0\t0"])
def test_process_of_another_user_is_never_a_vm(vm_id: str, name: bytes) -> None:
    with running(*qemu_words(vm_id), b"\xff\xfe", name=name, user=65534) as intruder:
        assert running_below(TMP) == {}
        assert not is_found(vm_id, intruder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start another user's process")
def test_process_of_the_user_who_has_a_vms_files_is_that_vm_alone(
    short_tmp: Path, vm_id: str
) -> None:
    """Else a QEMU that its guest has taken over could pass itself off as another VM's."""
    other_id = str(uuid.uuid4())
    for name, owner in ((vm_id, 7_700_001), (other_id, 7_700_002)):
        (short_tmp / name).mkdir()
        (short_tmp / name / "overlay.qcow2").touch()
        os.chown(short_tmp / name / "overlay.qcow2", owner, owner)
    with running(*qemu_words(vm_id, short_tmp), user=7_700_001) as own:
        assert running_below(short_tmp) == {vm_id: [own.pid]}
        assert is_found(vm_id, own, short_tmp)
    with running(*qemu_words(other_id, short_tmp), user=7_700_001) as intruder:
        assert running_below(short_tmp) == {}
        assert not is_found(other_id, intruder, short_tmp)


def test_zombie_is_gone(vm_id: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "", "-uuid", vm_id]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert find(TMP / vm_id, _identity(process.pid), {}) is None
