"""Starts VMs by the thousand, one after another or many at once, and keeps what a hung one shows.

    scripts/bench campaign --cold 200 --clones 1000 [--at-once 1] [--record FILE] [--evidence DIR]

A VM hangs if its agent has not answered after --patience seconds. Its console and log, what the
supervisor says, and twice `info registers -a`, `irq`, `pic`, `jit` and `status` are kept; then
it is given the same time again, and deleted. What was counted is added to the record, also when
Ctrl-C ends it. Emulated unless --kvm is given.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Console

from scripts.benchmarks import client, guest, host, start, supervised

if TYPE_CHECKING:
    import argparse

console = Console()

_POLL_S = 0.05
_APART_S = 5.0
_QUESTIONS = ("info status", "info registers -a", "info irq", "info pic", "info jit")

#: A second monitor for each QEMU, since the first is the supervisor's.
_WRAPPER = """#!/bin/sh
for word; do
    [ "$before" != -uuid ] || id=$word
    before=$word
done
[ -n "$id" ] || exec {qemu} "$@"
exec {qemu} "$@" -chardev "socket,id=look,path={looks}/$id,server=on,wait=off" \\
    -mon chardev=look,mode=control
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cold", type=int, default=200, help="cold boots; default: 200")
    parser.add_argument("--clones", type=int, default=1000, help="clones; default: 1000")
    parser.add_argument(
        "--at-once", type=int, default=1, help="VMs that start together; default: 1"
    )
    parser.add_argument("--patience", type=float, default=300, help="seconds; default: 300")
    parser.add_argument("--kvm", action="store_true", help="with KVM")
    parser.add_argument("--record", type=Path, default=Path("results/campaign.json"))
    parser.add_argument("--evidence", type=Path, default=Path("campaign-evidence"))


def main(wanted: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for way, count in (("cold", wanted.cold), ("clone", wanted.clones)):
        if count:
            _count(way, count, wanted)


def _count(way: str, count: int, wanted: argparse.Namespace) -> None:
    tally = Tally(count)
    before, began = os.getloadavg(), time.monotonic()
    with start.directory() as directory:
        environ = _environ(directory, way, wanted)
        with host.running(directory, environ) as supervisor:
            starters = [
                threading.Thread(target=_starts, args=(supervisor, directory, way, wanted, tally))
                for _ in range(wanted.at_once)
            ]
            try:
                if way == "clone":
                    with client.Connection(supervisor.port) as connection:
                        supervised.wait_for_template(connection)
                for starter in starters:
                    starter.start()
                while any(starter.is_alive() for starter in starters):
                    time.sleep(1)
                    if console.is_terminal:
                        console.print(f"{way}: {tally.said()}", end="\r")
            finally:
                tally.stop()
                for starter in starters:
                    if starter.ident:
                        starter.join()
                took = time.monotonic() - began
                _record(wanted, way, tally, took, before[0])
    if tally.problems:
        sys.exit(f"bench: {way}: {tally.problems[0]}")


@attrs.define
class Tally:
    """What all threads count together."""

    wanted: int
    seconds: list[float] = attrs.field(factory=list)
    hung: list[dict[str, Any]] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _begun: int = attrs.field(default=0, init=False)
    _stopped: bool = attrs.field(default=False, init=False)

    def begin(self) -> bool:
        """Whether there is another to start."""
        with self._lock:
            self._begun += 1
            return self._begun <= self.wanted and not self.problems and not self._stopped

    def stop(self) -> None:
        self._stopped = True

    def said(self) -> str:
        return f"{len(self.seconds)} of {self.wanted} answered, {len(self.hung)} hung"


def _environ(directory: Path, way: str, wanted: argparse.Namespace) -> dict[str, str]:
    qemu = shutil.which("qemu-system-x86_64")
    looks = directory / "looks"
    looks.mkdir()
    wrapper = directory / "qemu"
    wrapper.write_text(_WRAPPER.format(qemu=qemu, looks=looks))
    wrapper.chmod(0o755)
    beyond = f"{wanted.patience * 3:g}s"
    return guest.environ(
        directory / "t",
        kvm=wanted.kvm,
        MANAGER_QEMU_BIN_PATH=str(wrapper),
        MANAGER_BOOT_TIMEOUT=beyond,
        MANAGER_CLONE_TIMEOUT=beyond,
        MANAGER_AGENT_GRPC_TIMEOUT=beyond,
        MANAGER_TEMPLATES="off" if way == "cold" else "auto",
        MANAGER_HELD_CLONES="0",
    )


def _starts(
    supervisor: host.Supervisor, directory: Path, way: str, wanted: argparse.Namespace, tally: Tally
) -> None:
    try:
        with client.Connection(supervisor.port) as connection:
            while tally.begin():
                _start(connection, directory, way, wanted, tally)
    except Exception as error:
        tally.problems.append(repr(error))


def _start(
    connection: client.Connection,
    directory: Path,
    way: str,
    wanted: argparse.Namespace,
    tally: Tally,
) -> None:
    body = {"computation": "e30=", "template": "off" if way == "cold" else "require"}
    began = time.perf_counter()
    request = client.post("/run", json.dumps(body).encode(), "respond-async")
    status, answer = connection.json(request)
    if status != 202:
        raise guest.Unmeasured(f"POST /run was answered {status}: {answer}")
    vm_id = answer["id"]
    vm = _followed(connection, vm_id, wanted.patience)
    took = time.perf_counter() - began
    if vm["relay"]["state"] == "answered":
        tally.seconds.append(took)
    else:
        kept = wanted.evidence / f"{way}-{vm_id}"
        _keep(kept, directory, vm)
        vm = _followed(connection, vm_id, wanted.patience)
        late = vm["relay"]["state"] == "answered"
        tally.hung.append({"vm": vm_id, "evidence": str(kept), "answered_later": late})
    connection.json(client.delete(f"/vms/{vm_id}"))


def _followed(connection: client.Connection, vm_id: str, patience_s: float) -> dict[str, Any]:
    """The VM once it has answered, has failed, or the time is over."""
    deadline = time.monotonic() + patience_s
    while True:
        vm = supervised.show(connection, vm_id)
        waits = vm["relay"]["state"] in ("waiting", "sent")
        if not waits or time.monotonic() > deadline:
            return vm
        time.sleep(_POLL_S)


# --- what a hung one shows ------------------------------------------------------------------


def _keep(kept: Path, directory: Path, vm: dict[str, Any]) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "vm.json").write_text(json.dumps(vm, indent=2))
    for name in ("serial.log", "qemu.log"):
        with suppress(OSError):
            shutil.copy(directory / "t" / vm["id"] / name, kept / name)
    for look in (1, 2):
        with suppress(OSError):
            (kept / f"monitor-{look}.txt").write_text(_asked(directory / "looks" / vm["id"]))
        time.sleep(_APART_S)


def _asked(path: Path) -> str:
    """What QEMU's monitor for people says of the machine."""
    found = []
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(30)
        opened.connect(str(path))
        with opened.makefile("rw") as lines:
            lines.readline()  # the greeting
            _command(lines, "qmp_capabilities")
            for question in _QUESTIONS:
                words = {"command-line": question}
                answer = _command(lines, "human-monitor-command", arguments=words)
                found.append(f"{question}\n{answer.get('return', answer)}")
    return "\n".join(found)


def _command(lines: Any, name: str, **more: object) -> dict[str, Any]:
    lines.write(json.dumps({"execute": name, **more}) + "\n")
    lines.flush()
    while True:
        answer = dict(json.loads(lines.readline()))
        if "return" in answer or "error" in answer:
            return answer


# --- the record -----------------------------------------------------------------------------


def _record(wanted: argparse.Namespace, way: str, tally: Tally, took_s: float, load: float) -> None:
    one = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "way": way,
        "accelerator": "kvm" if wanted.kvm else "tcg",
        "at_once": wanted.at_once,
        "answered": len(tally.seconds),
        "hung": tally.hung,
        "median_s": round(statistics.median(tally.seconds), 3) if tally.seconds else None,
        "longest_s": round(max(tally.seconds), 3) if tally.seconds else None,
        "took_s": round(took_s),
        "load_before": round(load, 2),
        "cpus": os.cpu_count(),
    }
    kept = json.loads(wanted.record.read_text()) if wanted.record.exists() else []
    wanted.record.parent.mkdir(parents=True, exist_ok=True)
    wanted.record.write_text(json.dumps([*kept, one], indent=2) + "\n")
    console.print(f"{way}: {tally.said()}; {wanted.record}")
