"""One template and one run from it, on each QEMU that was unpacked beside this machine's own.

scripts/test unpacks them, where this machine gets Debian's packages: see scripts/lib.sh.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.qemu import trial
from supervisor.qemu.version import Version
from tests.vm.conftest import Supervisor, started
from tests.vm.test_run import computation

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(__file__).parents[2] / ".qemu"

#: QEMU's version, at least, by the suite of Debian's that it is in.
SUITES = {"bookworm-backports": Version(10, 0), "trixie-backports": Version(11, 1)}


@pytest.fixture(scope="module", params=SUITES)
def qemu(request: pytest.FixtureRequest) -> str:
    binary = UNPACKED / request.param / "qemu-system-x86_64"
    if not binary.exists():
        pytest.skip(f"{binary} is missing: scripts/test could not unpack Debian's packages")
    return str(binary)


@pytest.fixture(scope="module")
def supervisor(qemu: str) -> Iterator[Supervisor]:
    with started(MANAGER_TEMPLATES="auto", MANAGER_QEMU_BIN_PATH=qemu) as running:
        yield running


@pytest.fixture(scope="module")
def vm(supervisor: Supervisor) -> dict[str, Any]:
    """A VM from a template, after its run."""
    supervisor.until("/templates", lambda answer: all_over(answer["templates"]))
    return supervisor.run(computation("any"), template="require")


def all_over(templates: list[dict[str, Any]]) -> bool:
    return bool(templates) and all(one["state"] in ("ready", "failed") for one in templates)


def test_it_is_the_version_that_is_meant(qemu: str) -> None:
    suite = Path(qemu).parent.name
    assert trial.look_at(qemu).version >= SUITES[suite]


def test_a_template_is_made_and_a_run_is_served_from_it(
    supervisor: Supervisor, vm: dict[str, Any]
) -> None:
    assert json.loads(vm["computation"])["id"] == "any"
    assert supervisor.show(vm["id"])["template"]


def test_qemu_has_nothing_to_say_against_its_command_line(
    supervisor: Supervisor, vm: dict[str, Any]
) -> None:
    directory = Path(supervisor.show(vm["id"])["directory"])
    assert (directory / "qemu.log").read_text() == ""


def test_qemu_keeps_no_descriptor_of_the_template(
    supervisor: Supervisor, vm: dict[str, Any]
) -> None:
    shown = supervisor.show(vm["id"])
    files = [link.readlink().name for link in Path(f"/proc/{shown['pid']}/fd").iterdir()]
    assert "state" not in files


def test_a_cold_boot_powers_off_when_asked(supervisor: Supervisor) -> None:
    cold = supervisor.run(computation("cold"), template="off")
    ended = supervisor.post(cold["id"], "shutdown")
    assert (ended["state"], ended["reason"]) == ("shutoff", "guest-shutdown")
