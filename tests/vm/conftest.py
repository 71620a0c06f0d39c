"""A supervisor as an operator starts it, and proof that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = Path(__file__).parents[2] / "img" / "guest.qcow2"

#: Longer than any of these guests needs under emulation on a loaded machine.
PATIENCE_S = 180


@attrs.frozen
class Supervisor:
    """A running ``qmp-supervisor serve``. ``log`` grows as it writes."""

    process: subprocess.Popen[str]
    tmp: Path
    http: httpx.Client
    grpc_port: int
    log: list[dict[str, Any]]

    def run(self, computation: bytes) -> dict[str, Any]:
        answer = self.http.post("/run", json={"computation": list(computation)})
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def show(self, vm_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.http.get(f"/vms/{vm_id}").json()
        return shown

    def qemus(self) -> list[int]:
        """Process ids of all QEMUs that have a file below tmp/ on their command line."""
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.tmp) in word for word in process.info["cmdline"] or ())
            and process.pid != self.process.pid
        ]


@contextmanager
def started(**settings: str) -> Iterator[Supervisor]:
    """A supervisor on free ports with a tmp/ of its own.

    On leaving it is stopped by SIGINT, and nothing of it may be left.
    """
    assert IMAGE.exists(), f"{IMAGE} is missing: build it with 'qmp-supervisor image build'"
    tmp = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MANAGER_")}
    environ = clean | _firmware() | {
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_QEMU_TMP_FILE_LOC": str(tmp),
        "MANAGER_QEMU_DISK_IMG_FILE": str(IMAGE),
        "MANAGER_QEMU_MEMORY_SIZE": "512M",
        "MANAGER_QEMU_SMP_COUNT": "2",
        **settings,
    }  # fmt: skip
    command = [sys.executable, "-m", "supervisor", "serve"]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    log: list[dict[str, Any]] = []
    ready: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read_log() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(json.loads(line))
            if log[-1]["message"] == "ready":
                ready.put(log[-1])
        ready.put(None)

    reader = threading.Thread(target=read_log)
    reader.start()
    try:
        ports = ready.get(timeout=PATIENCE_S)
        assert ports is not None, log
        url = f"http://127.0.0.1:{ports['http_port']}"
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as http:
            yield Supervisor(process, tmp, http, ports["grpc_port"], log)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE_S)
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
        left = [path.name for path in tmp.rglob("*.sock")]
        orphans = [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp) in str(p.info)]
        shutil.rmtree(tmp)
    assert (code, left, orphans) == (0, [], []), log


def _firmware() -> dict[str, str]:
    """OVMF where newer distributions have only the 4 MB build."""
    code, variables = (Path(f"/usr/share/OVMF/OVMF_{part}_4M.fd") for part in ("CODE", "VARS"))
    if Path("/usr/share/OVMF/OVMF_CODE.fd").exists():
        return {}
    return {
        "MANAGER_QEMU_OVMF_CODE_FILE": str(code),
        "MANAGER_QEMU_OVMF_VARS_FILE": str(variables),
    }


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with started() as running:
        yield running
