"""What may happen to a template: as it is made, and on disk."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from typing import TYPE_CHECKING

from tests.chaos.claim_clones import HOME
from tests.chaos.faults_files import fill, small
from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.case import Case

    Harm = Callable[[Case], None]

QUICK = {
    "MANAGER_START_TIMEOUT": "1s",
    "MANAGER_CLONE_TIMEOUT": "5s",
    "MANAGER_HEARTBEAT": "200ms",
    "MANAGER_QMP_TIMEOUT": "1s",
    "MANAGER_QUIT_GRACE": "300ms",
    "MANAGER_TERM_GRACE": "300ms",
}
#: Files do not make a QEMU hang that starts without them, so it has its time, on a busy host too.
_DAMAGED = {name: value for name, value in QUICK.items() if name != "MANAGER_START_TIMEOUT"}
#: So many VMs in a row that do not come up from a template make it one of no use.
OF_NO_USE = 3

#: The steps of the QEMU that becomes a template.
_BUILDS = {
    "starts": "QMP set-action, before #1",
    "runs": "QMP cont, after #1",
    "is prepared": "agent Prepare, before #1",
    "is held": "QMP stop, before #1",
    "is to be written": "QMP getfd, before #1",
    "is written": "QMP migrate, before #1",
    "has been written": "migrate to its end, after #1",
}


def go_on(case: Case) -> None:
    """Of a supervisor that was stopped at a step."""
    case.signal(signal.SIGCONT)


def _directory(case: Case) -> Path:
    return case.tmp / HOME / case.until_template()


def fell_back(case: Case, vm_id: str) -> int:
    """How often a VM was booted after all."""
    return sum(one["event"] == "fallback" and one["vm"] == vm_id for one in case.reader.seen)


def _falls_back(case: Case, vm_id: str) -> None:
    case.wait(lambda: fell_back(case, vm_id) == 1, "its fallback")


# --- as it is made ----------------------------------------------------------------------------


def _builder(case: Case) -> str:
    (vm_id,) = (one for one in case.records() if case.qemus(one))
    return vm_id


def _as_it_is_made(point: str, number: int) -> Harm:
    def harm(case: Case) -> None:
        """What is written already may do: then the template is none the worse for it."""
        case.serve(wait=False, stop_at=point)
        case.until_stopped()
        case.signal_qemu(_builder(case), number)
        go_on(case)
        case.wait_ready()

    return harm


for _name, _point in _BUILDS.items():
    kind(f"template: QEMU SIGKILLed as it {_name}", templates=True, times=1, short=0)(
        _as_it_is_made(_point, signal.SIGKILL)
    )
    kind(
        f"template: QEMU SIGSTOPped as it {_name}", templates=True, times=1, short=0, settings=QUICK
    )(_as_it_is_made(_point, signal.SIGSTOP))


@kind("template: its VM deleted as it is made", templates=True, short=0)
def deleted_as_it_is_made(case: Case) -> None:
    case.serve(stop_at="QMP cont, after #1", wait=False)
    case.until_stopped()
    vm_id = _builder(case)
    go_on(case)
    case.wait_ready()
    status, answer = case.ask("DELETE", f"/vms/{vm_id}")
    case.expect(status in (204, 404), f"DELETE answers {status}: {answer}")


@kind("template: supervisor SIGTERMed (leave) as it is made", templates=True)
def left_as_it_is_made(case: Case) -> None:
    case.serve(stop_at="QMP stop, before #1", wait=False)
    case.until_stopped()
    case.signal(signal.SIGTERM)
    go_on(case)
    case.expect(case.wait_dead() == 0, "the supervisor fails")
    case.serve()
    case.until_template()


@kind("template: supervisor SIGINTed (end) as it is made", templates=True, short=0)
def ended_as_it_is_made(case: Case) -> None:
    case.serve(stop_at="QMP migrate, before #1", wait=False)
    case.until_stopped()
    case.signal(signal.SIGINT)
    go_on(case)
    case.expect(case.wait_dead() == 0, "the supervisor fails")


@kind("template: the image replaced as it is made", templates=True, short=0)
def another_image_as_it_is_made(case: Case) -> None:
    case.serve(stop_at="QMP stop, before #1", wait=False)
    case.until_stopped()
    case.place.another_image()
    go_on(case)
    case.wait_ready()


def _full_as_it_is_made(point: str) -> Harm:
    def harm(case: Case) -> None:
        small(case, "64M")  # the guest's memory of 16 MiB takes all of its room at once there
        case.serve(wait=False, stop_at=point)
        case.until_stopped()
        filling = fill(case)
        go_on(case)
        case.wait_ready()
        case.wait(
            lambda: any(
                row["state"] == "failed" for row in case.ask("GET", "/templates")[1]["templates"]
            ),
            "that it fails",
        )
        case.events_lost = True
        filling.unlink()
        if "manifest" in point:
            case.crash()  # what could not be written of a VM that has ended is not written later

    return harm


for _name, _point in {
    "its disk": "start qemu-img, before #1",
    "its state": "QMP getfd, before #1",
    "an empty overlay": "start qemu-img, before #2",
    "its manifest": "write templates/DIGEST/manifest.new #1",
}.items():
    kind(f"template: tmp/ full before {_name}", templates=True, times=2, short=0)(
        _full_as_it_is_made(_point)
    )


# --- on disk ----------------------------------------------------------------------------------


def _truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _removed(file: Path) -> None:
    file.unlink()


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def _damaged(name: str, damage: Callable[[Path], None]) -> Harm:
    def harm(case: Case) -> None:
        """Runs are answered all the same, and another takes its place."""
        case.serve()
        before = case.run(template="require")
        damage(_directory(case) / name)
        for _ in range(OF_NO_USE):
            _falls_back(case, case.run())
        case.until_monitor(before, "ok")
        case.shut_down(before, "force")

    return harm


def _damaged_unwatched(name: str, damage: Callable[[Path], None]) -> Harm:
    def harm(case: Case) -> None:
        case.serve()
        before = case.run(template="require")
        directory = _directory(case)
        case.crash()
        damage(directory / name)
        case.serve()
        case.until_monitor(before, "ok")
        case.expect(case.until_template() != directory.name, "a damaged template is ready")
        case.run(template="require")
        case.crash()
        case.serve()
        case.shut_down(before, "force")

    return harm


for _file in ("state", "ram", "clone.qcow2", "firmware_vars.fd", "overlay.qcow2", "manifest.json"):
    for _damage in (_truncated, _removed, _empty, _garbage):
        _unlike = _damage is _garbage and _file not in ("state", "manifest.json")
        if _unlike:
            continue  # of the right length: nobody looks
        _words = f"template's {_file} {_damage.__name__.removeprefix('_')}"
        _short = int((_file, _damage) in (("state", _truncated), ("manifest.json", _garbage)))
        kind(f"{_words}, then runs", templates=True, times=1, short=_short, settings=_DAMAGED)(
            _damaged(_file, _damage)
        )
        _short = int((_file, _damage) == ("manifest.json", _removed))
        kind(
            f"{_words}, supervisor down", templates=True, times=1, short=_short, settings=_DAMAGED
        )(_damaged_unwatched(_file, _damage))


@kind(
    "template's state truncated, then runs that require it",
    templates=True,
    short=0,
    settings=_DAMAGED,
)
def required(case: Case) -> None:
    case.serve()
    _truncated(_directory(case) / "state")
    for _ in range(OF_NO_USE):
        vm_id = case.run(template="require", wait=False)
        case.expect(case.until_ended(vm_id)["relay"]["state"] == "failed", "it was answered")


@kind("template's state truncated, supervisor SIGKILLed, then a run that requires it",
      templates=True, short=0)  # fmt: skip
def required_later(case: Case) -> None:
    case.serve()
    state = _directory(case) / "state"
    case.crash()
    _truncated(state)
    case.serve()
    case.run(template="require")


@kind("template's directory removed under a VM, supervisor SIGKILLed and back", templates=True)
def directory_removed(case: Case) -> None:
    case.serve()
    vm_id = case.run(template="require")
    directory = _directory(case)
    case.crash()
    shutil.rmtree(directory)
    case.serve()
    case.until_monitor(vm_id, "ok")
    case.until_template()
    case.control(vm_id, "pause")
    case.control(vm_id, "resume")


@kind("template's directory removed under a VM, supervisor up", templates=True, short=0)
def directory_removed_watched(case: Case) -> None:
    case.serve()
    vm_id = case.run(template="require")
    shutil.rmtree(_directory(case))
    for _ in range(OF_NO_USE):
        case.run()
    case.until_monitor(vm_id, "ok")
    case.shut_down(vm_id)


@kind("leftovers in templates/", templates=True, short=0)
def leftovers(case: Case) -> None:
    case.serve()
    directory = _directory(case)
    case.crash()
    half = directory.with_name("0123456789abcdef")
    half.mkdir()
    (half / "ram").write_bytes(bytes(4096))
    case.serve()
    case.expect(not half.exists(), "half a template is left")


@kind("a file and a link in templates/", templates=True, short=0)
def strangers(case: Case) -> None:
    case.serve()
    home = _directory(case).parent
    case.crash()
    (home / "0123456789abcdef").write_bytes(b"not a directory")
    (home / "fedcba9876543210").symlink_to("/nowhere")
    case.undo.callback(partial(_clear_away, home))
    case.serve()
    case.until_template()


def _clear_away(home: Path) -> None:
    for path in home.iterdir():
        if not path.is_dir():
            path.unlink()


@kind("the image replaced under a template and a VM, supervisor SIGKILLed", templates=True)
def another_image(case: Case) -> None:
    case.serve()
    vm_id = case.run(template="require")
    old = _directory(case)
    case.place.another_image()
    case.crash()
    case.serve()
    case.until_template()
    case.expect(old.is_dir(), "a VM's disk lay on what was removed")
    case.control(vm_id, "pause")
    case.crash()
    case.serve()
    case.expect(case.until_template() != old.name, "the old template is used")
    case.shut_down(vm_id, "force")
    case.wait(lambda: not old.exists(), "the removal of the old template")


@kind("templates turned off, and on again, with a VM from one", templates=True, short=0)
def off_and_on(case: Case) -> None:
    case.serve()
    vm_id = case.run(template="require")
    digest = case.until_template()
    case.crash()
    case.serve(settings={"MANAGER_TEMPLATES": "off"})
    case.until_monitor(vm_id, "ok")
    case.run()
    case.crash()
    case.serve()
    case.expect(case.until_template() == digest, "it has another digest")
