"""Starts a QEMU without a guest, to ask what the binary can do and whether it takes the settings.

``qom-list-types`` is not asked: for that list QEMU loads all its modules, and it aborts if one of
them is of another build, as in the middle of an upgrade. The schema names the same objects. Nor is
``query-command-line-options``: the trial with our options tells more than their names.

Source: QEMU's QAPI reference, ``qemu-qmp-ref(7)``.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import subprocess
import tempfile
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import attrs

from supervisor.errors import HostError, LaunchError
from supervisor.qemu import cmdline, confine, users
from supervisor.qemu.version import Binary, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.config import QemuConfig
    from supervisor.qemu.cmdline import Accel
    from supervisor.qemu.users import User

_QUESTIONS = ("query-version", "query-qmp-schema")
_NAMES = ("query-machines", "query-cpu-definitions")
_TIMEOUT_S = 20.0
_ADVICE = "install the package qemu-system-x86, or set MANAGER_QEMU_BIN_PATH"
_NO_MACHINE = ("-machine", "none")
_WITH_KVM = (*_NO_MACHINE, "-accel", "kvm")


@attrs.frozen
class SevPlatform:
    """``query-sev-capabilities``: what an owner makes a launch session with.

    :param pdh: the platform's key for Diffie-Hellman, in base64
    :param cert_chain: the certificates of that key, in base64; of the chip's up to AMD's
    :param cpu0_id: the identity of the first chip, in base64; empty before QEMU 7.1
    """

    pdh: str
    cert_chain: str
    cpu0_id: str
    cbitpos: int
    reduced_phys_bits: int


def sev_platform(path: str, *, sudo: bool, user: User | None) -> SevPlatform:
    """Ask a QEMU without a guest. Blocking.

    :param user: that the trial runs as; None for the supervisor's own
    :raises LaunchError: if this host has no SEV, with QEMU's reason
    """
    questions = ("query-sev-capabilities",)
    (answer,) = _ask(path, _WITH_KVM, questions, sudo=sudo, user=user)
    try:
        return SevPlatform(
            pdh=str(answer["pdh"]),
            cert_chain=str(answer["cert-chain"]),
            cpu0_id=str(answer.get("cpu0-id", "")),
            cbitpos=int(answer["cbitpos"]),
            reduced_phys_bits=int(answer["reduced-phys-bits"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise LaunchError(f"{path} does not answer as QAPI says: {error!r}") from error


def look_at(path: str, *, sudo: bool = False, user: User | None = None) -> Binary:
    """What the binary can do. Blocking. A binary is asked once, and again when its file changes.

    :param user: that the trial runs as; None for the supervisor's own
    :raises LaunchError: if the binary is missing, does not run or does not answer
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise LaunchError(f"{path} cannot be run: {error.strerror}", advice=_ADVICE) from error
    return _look_at(path, sudo, user, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache
def _look_at(path: str, sudo: bool, user: User | None, _identity: tuple[int, ...]) -> Binary:
    version, schema = _ask(path, _NO_MACHINE, _QUESTIONS, sudo=sudo, user=user)
    try:
        return Binary(path, Version.of(version), _objects(schema))
    except (LookupError, TypeError, ValueError) as error:
        raise LaunchError(
            f"{path} does not answer as QAPI says: {error!r}", advice=_ADVICE
        ) from error


def check(config: QemuConfig, path: str, accel: Accel, user: User | None = None) -> None:
    """Have QEMU try the settings that need no file. Blocking.

    :param user: that the trial runs as; None for the supervisor's own
    :raises HostError: if QEMU refuses them; names what is nearest, where a name is unknown
    """
    words = cmdline.trial_args(config, accel)
    try:
        _ask(path, words, (), sudo=config.use_sudo, user=user)
    except LaunchError as error:
        raise HostError(error.detail, advice=_advice(config, path, accel, user)) from error


def _advice(config: QemuConfig, path: str, accel: Accel, user: User | None) -> str:
    machines, cpus = _ask(path, _NO_MACHINE, _NAMES, sudo=config.use_sudo, user=user)
    names = [*machines, *({"name": one["alias"]} for one in machines if "alias" in one)]
    for setting, value, known in (
        ("MANAGER_QEMU_MACHINE", config.machine, names),
        ("MANAGER_QEMU_CPU", cmdline.cpu_model(config, accel), cpus),
    ):
        name = value.partition(",")[0]
        offered = sorted(one["name"] for one in known)
        if name not in offered:
            nearest = difflib.get_close_matches(name, offered, n=1)
            meant = f"did you mean {nearest[0]}? " if nearest else ""
            option = "-machine" if setting.endswith("MACHINE") else "-cpu"
            return f"{meant}{path} {option} help lists what {setting} may be"
    return "see the settings MANAGER_QEMU_MACHINE, _CPU, _SMP_*, _MEMORY_* and _MAX_MEMORY"


def _objects(schema: Sequence[dict[str, Any]]) -> frozenset[str]:
    """The types of ``object-add``. The schema's own names of types are numbers."""
    by_name = {entity["name"]: entity for entity in schema}
    arguments = by_name[by_name["object-add"]["arg-type"]]["members"]
    kind = next(member["type"] for member in arguments if member["name"] == "qom-type")
    return frozenset(by_name[kind]["values"])


def _ask(
    path: str, words: Sequence[str], questions: Sequence[str], *, sudo: bool, user: User | None
) -> list[Any]:
    """QEMU's answers, after it was started with *words*.

    :raises LaunchError: if it ends before the last answer
    """
    command = [
        *(["sudo", "-n"] if sudo else []),
        *users.run_as(user),
        # Ends QEMU in any case: root's process, and that of a supervisor that was killed meanwhile.
        # If it is killed itself, QEMU goes with it.
        *("timeout", f"{_TIMEOUT_S:g}", "setpriv", "--pdeathsig", "KILL"),
        *(path, *words, "-S", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-qmp", "stdio"),
    ]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            answers, exit_code = _converse(command, ("qmp_capabilities", *questions), errors)
        except (OSError, LookupError, ValueError, TypeError) as error:
            raise LaunchError(f"{path} does not answer: {error}", advice=_ADVICE) from error
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    if len(answers) <= len(questions):
        # Warnings come first; the reason is the last line, but for a hint such as "Use -machine
        # help to list supported machines".
        reasons = [line for line in lines if not line.startswith("Use ")]
        reason = reasons[-1] if reasons else f"exit code {exit_code}"
        raise LaunchError(f"{' '.join([path, *words])}: {reason}", advice=_ADVICE)
    return answers[1:]


def _converse(
    command: Sequence[str], questions: Sequence[str], errors: IO[str]
) -> tuple[list[Any], int]:
    """The answers, in the order of the questions, and QEMU's exit code.

    QEMU is told to quit only after its last answer: it would not wait until all of that is read.
    """
    answers: list[Any] = []
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=confine.environment(),
    )
    with suppress(BrokenPipeError), process:  # at a QEMU that ends at once
        _ask_all(process, questions, answers)
    return answers, process.returncode


def _ask_all(process: subprocess.Popen[str], questions: Sequence[str], answers: list[Any]) -> None:
    assert process.stdin
    assert process.stdout
    try:
        for question in questions:
            process.stdin.write(json.dumps({"execute": question}))
        process.stdin.flush()
        # Beside answers, QEMU's lines are its greeting and events.
        while len(answers) < len(questions) and (line := process.stdout.readline()):
            said = json.loads(line)
            if "return" in said:
                answers.append(said["return"])
            if "error" in said:
                raise LaunchError(f"QEMU says: {said['error']['desc']}", advice=_ADVICE)
        process.stdin.write(json.dumps({"execute": "quit"}))
        process.stdin.close()
        process.stdout.read()
    except BaseException:
        process.terminate()  # timeout(1) passes it on; leaving the process's context waits
        raise
