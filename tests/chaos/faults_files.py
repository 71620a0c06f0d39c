"""What may happen to tmp/: full, read-only, damaged records, leftovers of another time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.case import Case

_SMALL = "2M"


def _mounted(case: Case, *arguments: str) -> None:
    """Something on tmp/, until the case is judged."""
    case.tmp.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(case.tmp)], capture_output=True, check=False)
    if done.returncode:
        case.skip("mounting is for root")
    case.unmounts += 1


def fill(case: Case) -> Path:
    """The file that takes all room there is."""
    filling = case.tmp / "filling"
    with filling.open("ab", buffering=0) as opened:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    opened.write(bytes(size))
    return filling


def small(case: Case, size: str = _SMALL) -> None:
    """A tmp/ that a few VMs fill."""
    _mounted(case, "-t", "tmpfs", "-o", f"size={size},mode=0700", "chaos")


@kind("tmp/ full: states change meanwhile", times=3)
def full(case: Case) -> None:
    small(case)
    case.serve()
    held, ended, killed = case.run(), case.run(), case.run()
    filling = fill(case)
    case.control(held, "pause")
    case.shut_down(ended)
    case.signal_qemu(killed, signal.SIGKILL)
    case.until_ended(killed, "crashed", "exit:-9")
    filling.unlink()
    case.control(held, "resume")
    # What could not be written is written with the next change; an ended VM has none.
    case.events_lost = True


@kind("tmp/ full: a run", times=3)
def full_run(case: Case) -> None:
    small(case)
    case.serve()
    vm_id = case.run()
    filling = fill(case)
    computation = {"computation": list(b'{"name": "none"}')}
    status, answer = case.ask("POST", "/run", computation, Prefer="respond-async")
    case.expect(status == 500, f"POST /run answers {status}: {answer}")
    filling.unlink()
    case.until_monitor(vm_id, "ok")


@kind("tmp/ full: a disk of a run does not fit", short=0, times=2)
def full_later(case: Case) -> None:
    small(case)
    case.serve()
    filling = fill(case)
    os.truncate(filling, filling.stat().st_size - 65536)
    vm_id = case.run(wait=False)
    case.until_ended(vm_id, "crashed")
    filling.unlink()


@kind("tmp/ full: supervisor SIGKILLed and back", short=0, times=3)
def full_and_killed(case: Case) -> None:
    small(case)
    case.serve()
    vm_id = case.run()
    filling = fill(case)
    case.control(vm_id, "pause")
    last = case.show(vm_id)["sequence"]
    case.expect(case.reader.wait_for(last, 20), "a reader does not hear what cannot be written")
    case.crash()
    filling.unlink()
    filling = fill(case)
    case.serve()
    case.until(vm_id, lambda vm: vm["state"] == "paused" and vm["monitor"] == "ok")
    filling.unlink()
    case.control(vm_id, "resume")


@kind("tmp/ full: supervisor SIGKILLed, room made, and back", times=3)
def full_killed_and_freed(case: Case) -> None:
    """What a reader was told is not on record; no number is to mean something else later."""
    small(case)
    case.serve()
    vm_id = case.run()
    filling = fill(case)
    case.control(vm_id, "pause")
    last = case.show(vm_id)["sequence"]
    case.expect(case.reader.wait_for(last, 20), "a reader does not hear what cannot be written")
    case.crash()
    filling.unlink()
    case.serve()
    case.until(vm_id, lambda vm: vm["state"] == "paused" and vm["monitor"] == "ok")


@kind("tmp/ full: a VM ends, supervisor SIGKILLed", times=3)
def full_end_and_killed(case: Case) -> None:
    small(case)
    case.serve()
    ended, gone = case.run(), case.run()
    filling = fill(case)
    case.shut_down(ended)
    case.delete(gone)
    case.crash()
    filling.unlink()
    case.serve()
    case.until_ended(ended)
    case.events_lost = True


@kind("tmp/ read-only", times=2)
def read_only(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    _mounted(case, "--bind", str(case.tmp))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(case.tmp)], check=True)
    case.control(vm_id, "pause")
    computation = {"computation": list(b'{"name": "none"}')}
    status, answer = case.ask("POST", "/run", computation, Prefer="respond-async")
    case.expect(status == 500, f"POST /run answers {status}: {answer}")
    subprocess.run(["mount", "-o", "remount,bind,rw", str(case.tmp)], check=True)
    case.control(vm_id, "resume")


@kind("tmp/ read-only as a supervisor starts", short=0, times=2)
def read_only_start(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    _mounted(case, "--bind", str(case.tmp))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(case.tmp)], check=True)
    case.serve(wait=False)
    code = case.wait_dead()
    case.expect(code == 1, f"it exits with {code}")
    subprocess.run(["mount", "-o", "remount,bind,rw", str(case.tmp)], check=True)
    case.serve()
    case.until_monitor(vm_id, "ok")


# --- records ----------------------------------------------------------------------------------


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(500))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _missing(file: Path) -> None:
    file.unlink()


def _other_version(file: Path) -> None:
    content = json.loads(file.read_bytes())
    content["version"] = 99
    file.write_text(json.dumps(content))


def _of_another(file: Path) -> None:
    content = json.loads(file.read_bytes())
    content["vm"]["id"] = str(uuid.uuid4())
    file.write_text(json.dumps(content))


def _a_directory(file: Path) -> None:
    file.unlink()
    (file / "deeper").mkdir(parents=True)


def _members_of_the_wrong_kind(file: Path) -> None:
    content = json.loads(file.read_bytes())
    content["vm"]["process"] = {"pid": "many"}
    file.write_text(json.dumps(content))


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": _garbage,
    "empty": _empty,
    "truncated": _truncated,
    "missing": _missing,
    "of another version": _other_version,
    "of another VM": _of_another,
    "a directory": _a_directory,
    "of wrong types": _members_of_the_wrong_kind,
}


def _damaged(damage: Callable[[Path], None]) -> Callable[[Case], None]:
    def harm(case: Case) -> None:
        """Of a VM that runs, one that is held, one that has ended, one that ends meanwhile."""
        case.serve()
        running, held, ended, killed = case.run(), case.run(), case.run(), case.run()
        case.control(held, "pause")
        case.shut_down(ended)
        case.crash()
        case.signal_qemu(killed, signal.SIGKILL)
        case.damaged |= case.told
        for vm_id in case.told:
            damage(case.tmp / vm_id / "vm.json")
        case.serve()
        case.until_monitor(running, "ok")
        case.until(held, lambda vm: vm["state"] == "paused")
        case.until_ended(ended)
        case.until_ended(killed)
        case.replies.clear()

    return harm


for _name, _damage in _DAMAGES.items():
    _short = int(_damage in (_garbage, _missing))
    kind(f"vm.json {_name}", times=2, short=_short)(_damaged(_damage))


@kind("events.jsonl ends in half a line", times=2)
def half_line(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.shut_down(case.run())
    case.crash()
    for file in (case.tmp / "events.jsonl", *case.tmp.glob("*/events.jsonl")):
        with file.open("ab") as opened:
            opened.write(b'{"sequence": 99999, "at": "2026-')
    case.serve()
    case.until_monitor(vm_id, "ok")


@kind("events.jsonl removed", short=0, times=2)
def no_events(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    (case.tmp / vm_id / "events.jsonl").unlink()
    case.serve()
    case.until_monitor(vm_id, "ok")


@kind("vm.json and events.jsonl removed, VM running", times=2)
def no_record(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    for name in ("vm.json", "events.jsonl"):
        (case.tmp / vm_id / name).unlink()
    case.damaged.add(vm_id)
    case.replies.clear()
    case.serve()


@kind("a running VM's directory removed, supervisor down", times=2)
def no_directory(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    shutil.rmtree(case.tmp / vm_id)
    case.damaged.add(vm_id)
    case.replies.clear()
    case.serve()


@kind("a running VM's directory removed, supervisor up", short=0, times=2)
def no_directory_watched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    shutil.rmtree(case.tmp / vm_id)
    case.control(vm_id, "pause")
    case.shut_down(vm_id)
    case.until_ended(vm_id)
    case.delete(vm_id)
    case.events_lost = True


# --- what another time left -------------------------------------------------------------------


@kind("records of another boot of the host", times=3)
def another_boot(case: Case) -> None:
    case.serve()
    vm_id, ended = case.run(), case.run()
    case.shut_down(ended)
    case.crash()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.wait_no_qemu(vm_id)

    def change(content: dict[str, Any]) -> None:
        content["vm"]["process"]["boot_id"] = str(uuid.uuid4())

    case.edit_record(vm_id, change)
    case.serve()
    case.until_ended(vm_id, "crashed", "host-reboot")


@kind("the pid on record is another process's now", times=3)
def another_process(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGKILL)
    case.wait_no_qemu(vm_id)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:

            def change(content: dict[str, Any]) -> None:
                content["vm"]["process"]["pid"] = bystander.pid

            case.edit_record(vm_id, change)
            case.serve()
            case.until_ended(vm_id, "crashed", "exit:unknown")
            case.expect(bystander.poll() is None, "a process was killed that is nobody's")
        finally:
            bystander.kill()


@kind("directories .new and .gone of a crash", times=2)
def leftovers(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    for ending in (".new", ".gone"):
        vm = str(uuid.uuid4())
        left = case.tmp / f"{vm}{ending}"
        left.mkdir()
        case.forgotten.add(vm)
        (left / "overlay.qcow2").write_bytes(b"disk")
        (left / "vm.json.new").write_bytes(b"{")
    case.serve()
    case.until_monitor(vm_id, "ok")


@kind("files and links where VMs' directories would be", times=2)
def files_in_place(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.planted = {case.tmp / str(uuid.uuid4()) for _ in range(4)}
    file, link, loop, fifo = case.planted
    file.write_bytes(b"not a directory")
    link.symlink_to("/nowhere")
    loop.symlink_to(loop)
    os.mkfifo(fifo)
    case.serve()
    case.until_monitor(vm_id, "ok")


@kind("vm.json cannot be replaced", short=0, times=2)
def immutable(case: Case) -> None:
    """The directory takes no new names."""
    case.serve()
    vm_id = case.run()
    directory = case.tmp / vm_id
    done = subprocess.run(["chattr", "+i", str(directory)], capture_output=True, check=False)
    if done.returncode:
        case.skip("chattr is for root, and not for every file system")
    case.undo.callback(subprocess.run, ["chattr", "-i", str(directory)], check=False)
    case.control(vm_id, "pause")
    subprocess.run(["chattr", "-i", str(directory)], check=True)
    case.control(vm_id, "resume")
