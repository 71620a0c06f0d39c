"""A supervisor as an operator starts it, and proof that it leaves nothing behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import psutil

from supervisor.image import image
from tests.conftest import TEMPLATES
from tests.support.side_by_side import own_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

IMAGE = Path(__file__).parents[2] / "img" / "guest.qcow2"

#: The images that tests build are packed quickly, not well.
image.ZSTD_LEVEL = 3

#: Of supervisors whose VMs are clones, each made when it is wanted.
CLONES = {"MANAGER_TEMPLATES": "auto", "MANAGER_HELD_CLONES": "0"}

#: Longer than any of these guests needs under emulation on a loaded machine.
PATIENCE_S = 400


@attrs.frozen
class Supervisor:
    """A running ``qmp-supervisor serve``. ``log`` grows as it writes."""

    process: subprocess.Popen[str]
    tmp: Path
    http: httpx.Client
    grpc_port: int
    log: list[dict[str, Any]]

    def get(self, path: str) -> dict[str, Any]:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def until(self, path: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What is answered there, once this is so of it: it is asked again at each event."""
        deadline = time.monotonic() + PATIENCE_S
        with self.http.stream("GET", "/events") as events:
            lines = events.iter_lines()
            while not condition(answer := self.get(path)):
                assert time.monotonic() < deadline, answer
                next(lines)
        return answer

    def run(self, computation: bytes, **options: Any) -> dict[str, Any]:
        answer = self.http.post("/run", json={"computation": list(computation), **options})
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def show(self, vm_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.http.get(f"/vms/{vm_id}").json()
        return shown

    def post(self, vm_id: str, action: str) -> dict[str, Any]:
        """The action's answer and all else that ``GET /vms/<id>`` says after it.

        :param action: pause, resume, reset, shutdown
        """
        answer = self.http.post(f"/vms/{vm_id}/{action}")
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return self.show(vm_id) | changed

    @contextmanager
    def events(self, vm_id: str, after: int | None = None) -> Iterator[Iterator[dict[str, Any]]]:
        """The VM's events from now on; with ``after``, first those since that one.

        The iterator fails when nothing has come of it for longer than `PATIENCE_S`.
        """
        params = {} if after is None else {"after": str(after)}
        with self.http.stream("GET", f"/vms/{vm_id}/events", params=params) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            next(lines)  # the supervisor listens for us from here on
            yield _parsed(lines)

    def end(self, number: signal.Signals) -> int:
        """End the supervisor, and leave to the next one what it leaves; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def qemus(self) -> list[int]:
        """Process ids of all QEMUs that have a file below tmp/ on their command line."""
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.tmp) in word for word in process.info["cmdline"] or ())
            and process.pid != self.process.pid
        ]


def _parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE_S
    for line in lines:  # a comment at least every 15 seconds
        assert time.monotonic() < deadline, "the event did not come"
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def workplace() -> Iterator[Path]:
    """A tmp/ for supervisors, one after another. In the end nothing of them may be left."""
    tmp = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    try:
        with nothing_left_in(tmp):
            yield tmp
    finally:
        shutil.rmtree(tmp)


@contextmanager
def nothing_left_in(tmp: Path) -> Iterator[None]:
    """In the end there is no socket, and no process of what is there."""
    try:
        yield
    finally:
        left = [path.name for path in tmp.rglob("*.sock")]
        orphans = [one for one in psutil.process_iter(["cmdline"]) if str(tmp) in str(one.info)]
        for one in orphans:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    assert (left, orphans) == ([], [])


@contextmanager
def started(at: Path | None = None, **settings: str) -> Iterator[Supervisor]:
    """A supervisor on free ports, with a tmp/ of its own unless there is one to take up.

    On leaving it is stopped by SIGINT, unless it was ended before, by `Supervisor.end`.
    """
    assert IMAGE.exists(), f"{IMAGE} is missing: build it with 'qmp-supervisor image build'"
    with nullcontext(at) if at else workplace() as tmp, _process(tmp, settings) as supervisor:
        yield supervisor


@contextmanager
def started_with_template(at: Path | None = None, **settings: str) -> Iterator[Supervisor]:
    """As `started`, and it finds a template: its VMs are clones.

    For tests of what a guest does after its boot, which takes a processor twelve seconds.
    """
    settings = CLONES | settings
    with nullcontext(at) if at else workplace() as tmp:
        put_template(tmp, settings)
        with started(tmp, **settings) as supervisor:
            # Another one would be made if these are not the settings of what was put there.
            supervisor.until("/templates", lambda now: bool(now["templates"]))
            assert _is_ready(supervisor.get("/templates"))
            yield supervisor


def put_template(tmp: Path, settings: Mapping[str, str]) -> None:
    """Copy a template for these settings to there. It is made once in a run of all tests."""
    machine = {name: value for name, value in settings.items() if name.startswith("MANAGER_QEMU_")}
    key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    kept = Path(os.environ[TEMPLATES], key)
    with kept.with_suffix(".lock").open("w") as lock:  # other processes may want the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with workplace() as place:
                with started(place, **CLONES | machine) as supervisor:
                    supervisor.until("/templates", _is_ready)
                shutil.move(place / "templates", kept)
    subprocess.run(["cp", "--archive", "--sparse=always", kept, tmp / "templates"], check=True)
    (template,) = (tmp / "templates").iterdir()
    # A disk has the path of the one below it.
    below, disk = template / "overlay.qcow2", template / "clone.qcow2"
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", below, disk], check=True)


def _is_ready(answer: dict[str, Any]) -> bool:
    return [one["state"] for one in answer["templates"]] == ["ready"]


@contextmanager
def _process(tmp: Path, settings: Mapping[str, str]) -> Iterator[Supervisor]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MANAGER_")}
    environ = clean | {
        "MANAGER_AUTH": "off",
        "MANAGER_CALLER_RATE": "0",
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_QEMU_TMP_FILE_LOC": str(tmp),
        "MANAGER_QEMU_DISK_IMG_FILE": str(IMAGE),
        "MANAGER_QEMU_MEMORY_SIZE": "512M",
        # Its boot takes a seventh less of a processor's time than with two.
        "MANAGER_QEMU_SMP_COUNT": "1",
        # Most tests are of boots; the guest that becomes a template would only take their time.
        "MANAGER_TEMPLATES": "off",
        # Other tests' guests may keep the processors busy.
        "MANAGER_START_TIMEOUT": "2m",
        "MANAGER_CLONE_TIMEOUT": "2m",
        "MANAGER_BOOT_TIMEOUT": f"{PATIENCE_S - 20}s",
        "MANAGER_QEMU_HOST_FWD_RANGE": "{}-{}".format(*own_ports(2000, 12000)),
        **settings,
    }  # fmt: skip
    command = [str(Path(sys.prefix, "bin", "qmp-supervisor")), "serve"]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    log: list[dict[str, Any]] = []
    ready: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read_log() -> None:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                log.append({"message": line})  # seen if it is not JSON
                log[-1] = json.loads(line)
                if log[-1]["message"] == "ready":
                    ready.put(log[-1])
        finally:
            ready.put(None)

    reader = threading.Thread(target=read_log)
    reader.start()
    code = 0
    try:
        ports = ready.get(timeout=PATIENCE_S)
        assert ports is not None, log
        url = f"http://127.0.0.1:{ports['http_port']}"
        # Who is asked calls as the supervisor's own user, over the unix socket.
        uds = str(tmp / "api.sock") if environ["MANAGER_AUTH"] == "on" else None
        way = httpx.HTTPTransport(uds=uds)
        with httpx.Client(base_url=url, timeout=PATIENCE_S, transport=way) as http:
            yield Supervisor(process, tmp, http, ports["grpc_port"], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE_S)
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
    assert code == 0, log
