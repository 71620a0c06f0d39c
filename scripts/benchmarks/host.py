"""A supervisor with a host of its own: a directory of small files, and stand-ins for QEMU."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.support import small_host

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What a supervisor may take to start or to stop, on a machine that is busy.
_PATIENCE_S = 120.0
_POLL_S = 0.01
_UUID_LENGTH = 36
_CHECKOUT = Path(__file__).parents[2]


class Host:
    """A directory with firmware, a disk, and both programs that can take QEMU's place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tmp = directory / "t"
        #: `peer.py`, made fast to start.
        self.peer = directory / "peer"
        #: A real QEMU, without a machine.
        self.qemu = directory / "qemu"
        #: Where peers that powered off note when.
        self.sent = directory / "sent"
        self.peer.write_text(
            f"#!{sys.executable} -ISE\n"
            "import sys\n"
            f"sys.path.insert(0, {str(_CHECKOUT)!r})\n"
            "from scripts.benchmarks.peer import main\n"
            f"main({str(self.sent)!r})\n"
        )
        self.peer.chmod(0o755)
        small_host.write_machineless(self.qemu)
        small_host.write_files(directory)

    def environ(self, ports: str, **settings: str) -> dict[str, str]:
        """What a supervisor is started with: limits that nobody reaches."""
        others = {name: value for name, value in os.environ.items() if "MANAGER" not in name}
        return others | {
            **small_host.settings(self.directory, self.peer, self.tmp),
            "MANAGER_AUTH": "off",
            "MANAGER_CALLER_RATE": "0",
            "MANAGER_HTTP_PORT": "0",
            "MANAGER_GRPC_PORT": "0",
            "MANAGER_QEMU_HOST_FWD_RANGE": ports,
            "MANAGER_MAX_VMS": "100000",
            "MANAGER_MEMORY_OVERCOMMIT": "100000",
            "MANAGER_VCPU_OVERCOMMIT": "100000",
            "MANAGER_QUEUE": "100000",
            "MANAGER_KEEP_ENDED": "100000",
            **settings,
        }

    def left(self) -> list[psutil.Process]:
        return left(self.tmp)


def left(tmp: Path) -> list[psutil.Process]:
    """What still runs of the VMs whose directories are there."""
    names = {path.name for path in tmp.iterdir()} if tmp.exists() else set()
    ids = {name for name in names if len(name) == _UUID_LENGTH}
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if ids.intersection(process.info["cmdline"] or ())
    ]


class Supervisor:
    """``qmp-supervisor serve``, its log in a file."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self._log = directory / "supervisor.log"
        command = [sys.executable, "-m", "supervisor", "serve"]
        with self._log.open("wb") as output:
            #: Seconds since the epoch, as all moments here.
            self.executed_at = time.time()
            self.process = subprocess.Popen(command, env=environ, stderr=output)
        try:
            ready = self._wait_ready()
        except BaseException:
            self.kill()
            raise
        self.ready_at = datetime.fromisoformat(ready["ts"]).timestamp()
        self.port: int = ready["http_port"]
        self.measured = psutil.Process(self.process.pid)

    def _wait_ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self._log.read_text().splitlines():
                if '"ready"' in line and (entry := json.loads(line))["message"] == "ready":
                    return dict(entry)
            time.sleep(_POLL_S)
        sys.exit(f"bench: the supervisor did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """End it and its VMs; the seconds that took. The second signal does not ask guests."""
        started = time.monotonic()
        for _ in range(2):
            self.process.send_signal(signal.SIGINT)
            time.sleep(_POLL_S)
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - started

    # --- what it takes ---

    def memory(self) -> int:
        """Proportional set size, in bytes."""
        return memory(self.process.pid)["Pss"]

    def cpu(self) -> float:
        """Seconds of all its threads, user and system; not of its children."""
        times = self.measured.cpu_times()
        return float(times.user + times.system)

    def descriptors(self) -> int:
        return int(self.measured.num_fds())


def memory(pid: int) -> dict[str, int]:
    """What the kernel says of a process's memory, in bytes: ``Rss``, ``Pss``, … (proc(5))."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = (line.split(":", 1) for line in rollup.splitlines()[1:])
    return {name: int(value.split()[0]) * 1024 for name, value in fields}


@contextmanager
def opened(keep: bool = False) -> Iterator[Host]:
    """A host; with it goes all that runs there.

    :param keep: leave the directory
    """
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    host = Host(directory)
    try:
        yield host
    finally:
        for process in host.left():
            process.kill()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def supervisor(host: Host, ports: str, **settings: str) -> Iterator[Supervisor]:
    """A supervisor of stand-ins, stopped on leaving."""
    with running(host.directory, host.environ(ports, **settings)) as started:
        yield started


@contextmanager
def running(directory: Path, environ: dict[str, str]) -> Iterator[Supervisor]:
    """A supervisor, stopped on leaving.

    :param directory: for its log
    """
    started = Supervisor(directory, environ)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


def raise_descriptor_limit(wanted: int | None) -> int:
    """Set the limit that children inherit, to the hard one if none is wanted; what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(wanted or hard, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
