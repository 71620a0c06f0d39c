"""What all tests share: short directories, and the rule that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


#: The environment's variable that names this directory.
TEMPLATES = "TESTS_TEMPLATES"

# The same examples each time, and as much time as a busy machine needs.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ours")


def pytest_configure(config: pytest.Config) -> None:
    """All processes of a run of tests have one directory for the templates of guests."""
    if not hasattr(config, "workerinput"):
        directory = tempfile.TemporaryDirectory(prefix="qs-templates-", dir="/tmp")
        config.add_cleanup(directory.cleanup)
        os.environ[TEMPLATES] = directory.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have files that wait run beside files that compute: tests of fleets wait for leases to end.

    The quick ones come first. Those with real guests are the longest: the many short ones come
    after them, so that in the end no processor is idle while another has a long one. Else it is the
    order of their names.
    """
    files: dict[str, dict[Path, None]] = {"unit": {}, "fleet": {}, "vm": {}, "": {}}
    for item in items:
        layer = item.path.parent.name
        files[layer if layer in files else ""][item.path] = None
    places = dict.fromkeys(files["unit"], 0.0)
    for some in (list(files["fleet"]), [*files["vm"], *files[""]]):
        places |= {path: (number + 0.5) / len(some) for number, path in enumerate(some)}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose path leaves room for a unix socket's name. At the end no socket is in it.

    pytest's own directories are too deep: such a name holds 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    try:
        yield path
        left = [file for file in path.rglob("*.sock") if file.is_socket()]
        assert not left, "sockets are left"
    finally:
        shutil.rmtree(path)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a process, a zombie or a listening socket of this process behind."""
    children, listening = _children(), _listening()
    yield
    if left := _children() - children:
        assert not [one for one in psutil.process_iter() if one.pid in left], "processes are left"
    assert not _listening() - listening, "listening sockets are left"


def _children() -> set[int]:
    """Each thread has those that it made. psutil would look at all processes."""
    found: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ends
            found += (thread / "children").read_text().split()
    return {int(pid) for pid in found}


def _listening() -> set[tuple[int, object]]:
    return {
        (one.fd, one.laddr)
        for one in psutil.Process().net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }


@pytest.fixture(scope="session")
def base_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty disk, made once."""
    image = tmp_path_factory.mktemp("image") / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    return image
