"""What the real QEMU of this machine says of itself, and of settings that it does not take."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from supervisor import at_start, config, doctor
from supervisor.errors import HostError, LaunchError
from supervisor.qemu import trial
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.host import Clock
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config, QemuConfig

EMULATED = Accel(kvm=False)


def with_settings(settings: dict[str, str]) -> QemuConfig:
    """:param settings: without their prefix, MANAGER_QEMU_"""
    return with_settings_of_all(settings).qemu


def with_settings_of_all(settings: dict[str, str]) -> Config:
    return config.load({f"MANAGER_QEMU_{name}": value for name, value in settings.items()})


@pytest.fixture
def qemu() -> str:
    found = shutil.which("qemu-system-x86_64")
    assert found
    return found


def test_the_version_is_the_one_that_qemu_prints(qemu: str) -> None:
    printed = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    assert f"version {trial.look_at(qemu).version}" in printed.stdout


def test_the_objects_are_those_that_qemu_takes(qemu: str) -> None:
    listed = subprocess.run([qemu, "-object", "help"], capture_output=True, text=True, check=True)
    objects = trial.look_at(qemu).objects
    assert {"memory-backend-file", "iothread"} <= objects
    assert ("monitor-qmp" in objects) == ("monitor-qmp" in listed.stdout)


def test_a_binary_is_asked_again_when_its_file_changes(tmp_path: Path, qemu: str) -> None:
    wrapper = tmp_path / "qemu"

    def write(*lines: str) -> None:
        new = tmp_path / "new"
        new.write_text("\n".join(("#!/bin/sh", *lines, "")))
        new.chmod(0o755)
        new.replace(wrapper)

    write(f"echo x >>{tmp_path}/asked", f'exec {qemu} "$@"')
    assert trial.look_at(str(wrapper)) == trial.look_at(str(wrapper))
    assert (tmp_path / "asked").read_text() == "x\n"
    write("echo it is broken >&2", "exit 1")
    with pytest.raises(LaunchError, match="it is broken"):
        trial.look_at(str(wrapper))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"MACHINE": "q35,smm=off", "CPU": "qemu64,+avx", "SMP_COUNT": "2", "SMP_MAXCPUS": "2"},
        {"WATCHDOG": "reset"},
    ],
)
def test_good_settings_are_taken(qemu: str, settings: dict[str, str]) -> None:
    trial.check(with_settings(settings), qemu, EMULATED)


@pytest.mark.parametrize(
    ("settings", "detail", "advice"),
    [
        ({"MACHINE": "q53"}, "unsupported machine type", "did you mean q35?"),
        ({"MACHINE": "foo"}, "unsupported machine type", "-machine help lists"),
        ({"CPU": "EPIC"}, "unable to find CPU model 'EPIC'", "did you mean EPYC?"),
        ({"CPU": "max,+nonsense"}, "nonsense", "MANAGER_QEMU_MACHINE"),
        ({"MACHINE": "q35,nonsense=on"}, "nonsense", "MANAGER_QEMU_MACHINE"),
        ({"SMP_MAXCPUS": "100000"}, "100000", "_SMP_"),
    ],
    ids=str,
)
def test_settings_that_qemu_refuses(
    qemu: str, settings: dict[str, str], detail: str, advice: str
) -> None:
    with pytest.raises(HostError) as refusal:
        trial.check(with_settings(settings), qemu, EMULATED)
    assert detail in refusal.value.detail
    assert advice in refusal.value.advice


def test_no_supervisor_starts_with_a_machine_that_its_qemu_does_not_have(short_tmp: Path) -> None:
    settings = {"MACHINE": "q53", "TMP_FILE_LOC": str(short_tmp), "ENABLE_KVM": "false"}
    wrong = at_start.on_this_host(with_settings_of_all(settings))
    with pytest.raises(HostError, match="unsupported machine type"):
        at_start.examine(wrong, Clock())
    found = doctor.check_machine(wrong.qemu, kvm=False)
    assert found.verdict is doctor.Verdict.FAIL
    assert "did you mean q35?" in found.advice


def test_real_qemu_says_why_there_is_no_sev(qemu: str) -> None:
    """Without KVM, or without SEV in it. The trial's time being over is another reason."""
    with pytest.raises(LaunchError) as raised:
        trial.sev_platform(qemu, sudo=False, user=None)
    assert re.search("KVM|kvm|SEV", raised.value.detail)


def test_qemu_goes_with_a_timeout_that_is_killed(tmp_path: Path) -> None:
    """Its stand-in waits for ever, and says who it is."""
    qemu = tmp_path / "qemu"
    lines = ("echo $$ >pid.new", "mv pid.new pid", "exec sleep 1000")
    qemu.write_text("\n".join(("#!/bin/sh", f"cd {tmp_path}", *lines)))
    qemu.chmod(0o755)

    def kill_timeout() -> None:
        while not (tmp_path / "pid").exists():
            pass
        process = psutil.Process(int((tmp_path / "pid").read_text()))
        os.kill(process.ppid(), signal.SIGKILL)
        process.wait(PATIENCE_S)

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_timeout)
        with pytest.raises(LaunchError):
            trial.look_at(str(qemu))
        killed.result()
