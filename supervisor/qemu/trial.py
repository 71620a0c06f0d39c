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
from typing import TYPE_CHECKING, Any

from supervisor.errors import HostError, LaunchError
from supervisor.qemu import cmdline
from supervisor.qemu.version import Binary, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.config import QemuConfig
    from supervisor.qemu.cmdline import Accel

_QUESTIONS = ("query-version", "query-qmp-schema")
_NAMES = ("query-machines", "query-cpu-definitions")
_TIMEOUT_S = 20.0
_ADVICE = "install the package qemu-system-x86, or set MANAGER_QEMU_BIN_PATH"
_NO_MACHINE = ("-machine", "none")


def look_at(path: str, *, sudo: bool = False) -> Binary:
    """What the binary can do. Blocking. A binary is asked once, and again when its file changes.

    :raises LaunchError: if the binary is missing, does not run or does not answer
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise LaunchError(f"{path} cannot be run: {error.strerror}", advice=_ADVICE) from error
    return _look_at(path, sudo, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache
def _look_at(path: str, sudo: bool, _identity: tuple[int, ...]) -> Binary:
    version, schema = _ask(path, _NO_MACHINE, _QUESTIONS, sudo=sudo)
    try:
        return Binary(path, Version.of(version), _objects(schema))
    except (LookupError, TypeError, ValueError) as error:
        raise LaunchError(
            f"{path} does not answer as QAPI says: {error!r}", advice=_ADVICE
        ) from error


def check(config: QemuConfig, path: str, accel: Accel) -> None:
    """Have QEMU try the settings that need no file. Blocking.

    :raises HostError: if QEMU refuses them; names what is nearest, where a name is unknown
    """
    words = cmdline.trial_args(config, accel)
    try:
        _ask(path, words, (), sudo=config.use_sudo)
    except LaunchError as error:
        raise HostError(error.detail, advice=_advice(config, path, accel)) from error


def _advice(config: QemuConfig, path: str, accel: Accel) -> str:
    machines, cpus = _ask(path, _NO_MACHINE, _NAMES, sudo=config.use_sudo)
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


def _ask(path: str, words: Sequence[str], questions: Sequence[str], *, sudo: bool) -> list[Any]:
    """QEMU's answers, after it was started with *words*.

    :raises LaunchError: if it ends before the last answer
    """
    command = [
        *(["sudo", "-n"] if sudo else []),
        *(path, *words, "-S", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-qmp", "stdio"),
    ]
    asked = [{"execute": name} for name in ("qmp_capabilities", *questions, "quit")]
    try:
        done = subprocess.run(
            command,
            input="".join(json.dumps(one) for one in asked),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
        # QEMU's lines are its greeting, answers in the order of the questions, and events.
        said = [json.loads(line) for line in done.stdout.splitlines()]
        answers = [one["return"] for one in said if "return" in one]
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError) as error:
        raise LaunchError(f"{path} does not answer: {error}", advice=_ADVICE) from error
    if len(answers) != len(asked):
        # Warnings come first; the reason is the last line.
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        # Some errors are followed by a hint of QEMU's, such as "Use -machine help to list ...".
        reason = lines[-2] if len(lines) > 1 and reason.startswith("Use ") else reason
        raise LaunchError(f"{' '.join([path, *words])}: {reason}", advice=_ADVICE)
    return answers[1:-1]
