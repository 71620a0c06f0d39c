"""The documentation's shell blocks, run as a reader would: page by page, on a real guest.

A page's blocks run in order, in one bash session, in a directory that looks like a checkout after
``scripts/quickstart``. A page that starts no supervisor itself finds one running. Only ports are
exchanged for free ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import pages
from tests.support.side_by_side import own_ports
from tests.vm.conftest import (
    IMAGE,
    PATIENCE_S,
    Supervisor,
    nothing_left_in,
    put_template,
    started_with_template,
    workplace,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What `scripts/quickstart` writes, and time for a guest on a busy machine.
_SETTINGS = {
    "MANAGER_AUTH": "off",
    "MANAGER_QEMU_DISK_IMG_FILE": "img/guest.qcow2",
    "MANAGER_QEMU_MEMORY_SIZE": "512M",
    "MANAGER_QEMU_SMP_COUNT": "2",
    "MANAGER_START_TIMEOUT": "2m",
    "MANAGER_CLONE_TIMEOUT": "2m",
    "MANAGER_BOOT_TIMEOUT": f"{PATIENCE_S - 20}s",
}
_STARTS_A_SUPERVISOR = re.compile(r"^[^#\n]*qmp-supervisor serve", re.MULTILINE)

_SCRIPTS = {
    page: "".join(block.commands for block in pages.blocks(page) if block.mark == "run")
    for page in pages.PAGES
}
_OWN = [page for page in pages.PAGES if _STARTS_A_SUPERVISOR.search(_SCRIPTS[page])]
_SHARED = [page for page in pages.PAGES if _SCRIPTS[page] and page not in _OWN]


@pytest.fixture(scope="module")
def shared_supervisor() -> Iterator[Supervisor]:
    with started_with_template(MANAGER_HELD_CLONES="2") as running:
        yield running


@pytest.mark.parametrize("page", _SHARED, ids=pages.name)
def test_page(page: Path, short_tmp: Path, shared_supervisor: Supervisor) -> None:
    (short_tmp / "tmp").symlink_to(shared_supervisor.tmp)
    environ = {
        "MANAGER_HTTP_PORT": str(shared_supervisor.http.base_url.port),
        "MANAGER_GRPC_PORT": str(shared_supervisor.grpc_port),
    }
    try:
        _run(page, short_tmp, environ)
    finally:
        for vm in shared_supervisor.get("/vms")["vms"]:
            shared_supervisor.http.delete(f"/vms/{vm['id']}")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where one page after another has its supervisor.

    A template is there, as for who has read the README before: else each page takes as long as two
    boots.
    """
    with workplace() as directory:
        (directory / "tmp").mkdir()
        put_template(directory / "tmp", _SETTINGS | {"MANAGER_QEMU_DISK_IMG_FILE": str(IMAGE)})
        yield directory


@pytest.mark.parametrize("page", _OWN, ids=pages.name)
def test_page_with_a_supervisor_of_its_own(page: Path, place: Path) -> None:
    _clear(place, but=place / "tmp" / "templates")
    with nothing_left_in(place):
        first, last = own_ports(12000, 20000)
        with _free_port() as http, _free_port() as grpc:
            environ = {
                "MANAGER_HTTP_PORT": str(http),
                "MANAGER_GRPC_PORT": str(grpc),
                "MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{last}",
            }
        _run(page, place, environ)


def _clear(directory: Path, but: Path) -> None:
    for path in directory.iterdir():
        if path == but:
            continue
        if path in but.parents:
            _clear(path, but)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _run(page: Path, directory: Path, environ: dict[str, str]) -> None:
    script = _SCRIPTS[page]
    for ours, port in (("9021", "MANAGER_HTTP_PORT"), ("7001", "MANAGER_GRPC_PORT")):
        for host in ("localhost", "127.0.0.1"):
            script = script.replace(f"{host}:{ours}", f"{host}:{environ[port]}")
    _check_out(directory)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MANAGER_")}
    path = f"{Path(sys.prefix, 'bin')}:{clean['PATH']}"
    with (directory / "session.txt").open("w+") as output:
        session = subprocess.Popen(
            ["bash", "-euxo", "pipefail", "-c", script],
            cwd=directory,
            env=clean | {"PATH": path, "HOME": str(directory)} | environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None  # it hangs
        try:
            with suppress(subprocess.TimeoutExpired):
                code = session.wait(PATIENCE_S)
        finally:
            # A supervisor in the background outlives a page that fails.
            with suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGKILL)
            session.wait()
        output.seek(0)
        log = directory / "supervisor.log"
        assert code == 0, output.read() + (log.read_text() if log.exists() else "")


def _check_out(directory: Path) -> None:
    """Make a directory look like this checkout after ``scripts/quickstart``."""
    for name in ("docs", "protos", "scripts", "supervisor", "tests"):
        (directory / name).symlink_to(pages.ROOT / name)
    (directory / "img").symlink_to(IMAGE.parent)
    (directory / ".venv").symlink_to(sys.prefix)
    lines = (f"{name}={value}\n" for name, value in _SETTINGS.items())
    (directory / "supervisor.env").write_text("".join(lines))


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
