"""Held, reset, failing and deserted VMs, on real QEMU with the real guest.

All guests boot at once, and go through the file in its order: what is done to them while
their first supervisor lives, what its successor finds, and the one after that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from supervisor.pb import agent_pb2
from tests.support.guest_images import trusting_image
from tests.vm.conftest import PATIENCE_S, Supervisor, started, started_with_template, workplace
from tests.vm.test_run import AVERAGE, agent_of, computation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: By what becomes of them.
FLEET = ("reset", "watched", "powers-off-alone", "panics-alone")

SETTINGS = {
    "MANAGER_QEMU_WATCHDOG": "pause",
    # One of the guests is held while its agent has the computation.
    "MANAGER_AGENT_GRPC_TIMEOUT": "10m",
}


def guest() -> dict[str, str]:
    """Algorithms of this guest are root's: they do to it what is done to it here."""
    return {"MANAGER_QEMU_DISK_IMG_FILE": str(trusting_image())}


#: Opens the guest's watchdog, asks it to run out after two seconds, and does not feed it.
STARVE_WATCHDOG = b"""
import fcntl, os, struct, time
watchdog = os.open("/dev/watchdog", os.O_WRONLY)
WDIOC_SETTIMEOUT = 0xC0045706
fcntl.ioctl(watchdog, WDIOC_SETTIMEOUT, struct.pack("i", 2))
time.sleep(3600)
"""

#: Writes 16 MiB that cannot be compressed to the guest's disk, each of them to the end.
FILL_DISK = b"""
import os, socket, sys
disk = os.open("/dev/sda", os.O_WRONLY | os.O_SYNC)
written = sum(os.write(disk, os.urandom(1 << 20)) for _ in range(16))
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(str(written).encode())
"""

#: A sudden end, by the kernel's magic SysRq.
SYSRQ = b"open('/proc/sysrq-trigger', 'w').write('%s')"


def start(vm: dict[str, Any], algorithm: bytes, dataset: bytes = b"-") -> Any:
    """Run an algorithm in the guest; the future of what it answers."""
    stub = agent_of(vm)
    request = agent_pb2.AlgoRequest(algorithm=algorithm)
    stub.Algo(request, timeout=PATIENCE_S, wait_for_ready=True)
    stub.Data(agent_pb2.DataRequest(dataset=dataset), timeout=PATIENCE_S)
    return stub.Result.future(agent_pb2.ResultRequest(), timeout=PATIENCE_S)


def status(shown: dict[str, Any]) -> tuple[str, str]:
    return shown["state"], shown["reason"]


def wait_for(events: Iterator[dict[str, Any]], kind: str, **data: object) -> dict[str, Any]:
    return next(one for one in events if one["event"] == kind and data.items() <= one.items())


# --- the first supervisor -------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as tmp:
        yield tmp


@pytest.fixture(scope="module")
def first(place: Path) -> Iterator[Supervisor]:
    with started_with_template(place, **SETTINGS, **guest()) as running:
        yield running


@contextmanager
def small_disk(tmp: Path, megabytes: int) -> Iterator[None]:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "small", tmp], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", tmp], check=True)


@pytest.fixture(scope="module")
def cramped() -> Iterator[Supervisor | None]:
    """A supervisor whose tmp/ is on a file system of 8 MiB; None for want of root."""
    if os.geteuid() != 0:
        yield None
        return
    with workplace() as tmp, small_disk(tmp, 8), started(tmp, **guest()) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(first: Supervisor, cramped: Supervisor | None) -> dict[str, dict[str, Any]]:
    places = dict.fromkeys(FLEET, first) | ({"full": cramped} if cramped else {})
    with ThreadPoolExecutor() as pool:
        interrupted = pool.submit(held_in_relay, first)
        answers = pool.map(lambda one: one[1].run(computation(one[0])), places.items())
        vms = dict(zip(places, answers, strict=True))
        return vms | {"interrupted": interrupted.result()}


def held_in_relay(supervisor: Supervisor) -> dict[str, Any]:
    """A VM that is held while its agent is at its computation, a long one for an emulated CPU."""
    long = b'{"id": "interrupted", "metadata": {"numbers": [%s0]}}' % (b"1.5," * 400_000)
    body = {"computation": list(long)}
    answer = supervisor.http.post("/run", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    vm_id = answer.json()["id"]
    with supervisor.events(vm_id, after=0) as events:
        wait_for(events, "relay", state="sent")
    held = supervisor.post(vm_id, "pause")
    assert held["relay"]["state"] == "sent"
    return held


def test_held_guest_does_not_answer_and_goes_on(
    first: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    vm = fleet["reset"]
    assert status(first.post(vm["id"], "pause")) == ("paused", "paused")
    result = agent_of(vm).Algo.future(agent_pb2.AlgoRequest(algorithm=AVERAGE))
    live = first.http.get(f"/vms/{vm['id']}/status", params={"live": "1"}).json()
    assert live["query_status"]["status"] == "paused"
    assert not result.done()
    assert status(first.post(vm["id"], "resume")) == ("running", "running")
    assert result.result(timeout=PATIENCE_S).algorithmID


def test_starved_watchdog_holds_the_guest(
    first: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    """As MANAGER_QEMU_WATCHDOG says; and a reset leaves it held."""
    vm_id = fleet["watched"]["id"]
    with first.events(vm_id) as events:
        starved = start(fleet["watched"], STARVE_WATCHDOG)
        assert wait_for(events, "watchdog")["action"] == "pause"
        wait_for(events, "state", state="paused", reason="watchdog")
    starved.cancel()
    assert first.post(vm_id, "reset")["state"] == "paused"


def test_full_disk_holds_the_guest_until_there_is_room(
    cramped: Supervisor | None, fleet: dict[str, dict[str, Any]]
) -> None:
    """The guest never learns of it. The VM's own record has no room either, meanwhile."""
    if cramped is None:
        pytest.skip("NOT TESTED: a full disk takes root, to mount a small file system")
    vm_id = fleet["full"]["id"]
    with cramped.events(vm_id) as events:
        result = start(fleet["full"], FILL_DISK)
        failure = wait_for(events, "io-error")
        assert (failure["operation"], failure["action"]) == ("write", "stop")
        assert failure["nospace"] is True
        wait_for(events, "state", state="paused", reason="io-error")
        cramped.http.post(f"/vms/{vm_id}/resume")
        wait_for(events, "state", state="paused", reason="io-error")
    assert not result.done()
    subprocess.run(["mount", "-o", "remount,size=64m", cramped.tmp], check=True)
    assert status(cramped.post(vm_id, "resume")) == ("running", "running")
    assert result.result().file == b"%d" % (16 << 20)
    lines = (cramped.tmp / vm_id / "events.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    numbers = [event["sequence"] for event in recorded]
    assert numbers == sorted(set(numbers))
    assert any(event["event"] == "io-error" for event in recorded)


def test_reset_guest_boots_again(first: Supervisor, fleet: dict[str, dict[str, Any]]) -> None:
    vm = fleet["reset"]
    pid = first.show(vm["id"])["pid"]
    shown = first.post(vm["id"], "reset")
    assert (status(shown), shown["pid"]) == (("running", "running"), pid)
    with first.events(vm["id"], shown["sequence"]) as events:
        wait_for(events, "agent")
    assert start(vm, AVERAGE, b"1 2 6").result().file == b"3.0"


#: Holds 64 MiB of memory that no guest has used before.
FILL_MEMORY = b"""
import socket, sys
held = bytearray(64 << 20)
held[::4096] = bytes([1]) * (len(held) // 4096)
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(str(len(held)).encode())
"""


def test_clone_on_a_full_tmpfs_has_all_its_memory() -> None:
    """Where reading a hole in a file takes a page, so that a template made there has none."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk takes root, to mount a small file system")
    with (
        workplace() as tmp,
        small_disk(tmp, 600),
        started(tmp, MANAGER_TEMPLATES="auto") as running,
    ):
        vm = running.run(computation("full"), template="require")
        fill = ["dd", "if=/dev/zero", f"of={tmp / 'fills'}", "bs=64k"]
        assert subprocess.run(fill, capture_output=True, check=False).returncode == 1
        assert start(vm, FILL_MEMORY).result().file == b"%d" % (64 << 20)
        assert running.show(vm["id"])["state"] == "running"


# --- the second, after the first was killed -------------------------------------------------


def until_event(vm: dict[str, Any], order: bytes, name: str) -> None:
    """Have the guest end itself, while there is nobody but us to hear what QEMU says of it."""
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(PATIENCE_S)
        qmp.connect(f"{vm['directory']}/qmp.sock")
        qmp.sendall(b'{"execute": "qmp_capabilities"}')
        deadly = start(vm, SYSRQ % order)
        assert any(json.loads(line).get("event") == name for line in qmp.makefile())
        deadly.cancel()


@pytest.fixture(scope="module")
def before(first: Supervisor, fleet: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the first supervisor knew when it was killed. Then two of the guests end."""
    known = {name: first.show(vm["id"]) for name, vm in fleet.items() if name != "full"}
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    until_event(known["powers-off-alone"], b"o", "SHUTDOWN")
    until_event(known["panics-alone"], b"c", "GUEST_PANICKED")
    return known


@pytest.fixture(scope="module")
def second(place: Path, before: dict[str, dict[str, Any]]) -> Iterator[Supervisor]:
    with started(place, **SETTINGS, **guest()) as running:
        yield running


def test_running_vm_is_taken_up(second: Supervisor, before: dict[str, dict[str, Any]]) -> None:
    known = before["reset"]
    shown = second.until(f"/vms/{known['id']}", lambda vm: vm["monitor"] == "ok")
    assert status(shown) == ("running", "running")
    same = ("pid", "forwards", "argv", "created_at", "relay")
    assert {name: shown[name] for name in same} == {name: known[name] for name in same}
    assert start(known, AVERAGE, b"2 4").result().file == b"3.0"


def test_held_vm_is_taken_up_held(second: Supervisor, before: dict[str, dict[str, Any]]) -> None:
    """Though QEMU calls the state of a guest that was reset while held ``prelaunch``."""
    known = before["watched"]
    shown = second.http.get(f"/vms/{known['id']}/status", params={"live": "1"}).json()
    assert shown["query_status"]["status"] == "prelaunch"
    assert shown["state"] == "paused"
    resumed = second.post(known["id"], "resume")
    assert (status(resumed), resumed["pid"]) == (("running", "running"), known["pid"])
    # Its agent, started anew, is open to all once the supervisor has found it.
    with second.events(known["id"], resumed["sequence"]) as events:
        wait_for(events, "agent")
    assert start(known, AVERAGE, b"1 2 6").result().file == b"3.0"


@pytest.mark.parametrize(
    ("name", "end"),
    [
        # Only the event says whether the guest powered off or rebooted.
        ("powers-off-alone", ("shutoff", "shutdown")),
        ("panics-alone", ("crashed", "guest-panicked")),
    ],
)
def test_end_that_nobody_saw(
    second: Supervisor, before: dict[str, dict[str, Any]], name: str, end: tuple[str, str]
) -> None:
    known = before[name]
    with second.events(known["id"], known["sequence"]) as events:
        seen = wait_for(events, "state", state=end[0])
    assert status(seen) == end
    # No child of ours: who reaps it may take a while.
    left = [one.info for one in psutil.process_iter(["pid", "status"])]
    assert known["pid"] not in [one["pid"] for one in left if one["status"] != psutil.STATUS_ZOMBIE]


def test_relay_that_was_cut_off(second: Supervisor, before: dict[str, dict[str, Any]]) -> None:
    """It is not sent again: nobody knows whether the agent has begun. The guest lives on."""
    known = before["interrupted"]
    with second.events(known["id"], known["sequence"]) as events:
        wait_for(events, "relay", state="interrupted")
    shown = second.show(known["id"])
    assert (shown["state"], shown["relay"]["state"]) == ("paused", "interrupted")
    assert status(second.post(known["id"], "resume")) == ("running", "running")
    assert start(known, AVERAGE, b"1 2 6").result().file == b"3.0"
    assert second.show(known["id"])["relay"]["state"] == "interrupted"


# --- the third, after the second was asked to go --------------------------------------------


def test_sigterm_leaves_and_sigint_ends(
    place: Path, second: Supervisor, before: dict[str, dict[str, Any]]
) -> None:
    living = {before[name]["pid"] for name in ("reset", "watched", "interrupted")}
    assert set(second.qemus()) == living
    assert second.end(signal.SIGTERM) == 0
    assert set(second.qemus()) == living
    with started(place, **guest()) as third:
        numbers = [vm["id"] for vm in third.http.get("/vms").json()["vms"] if not vm["ended"]]
        assert len(numbers) == len(living)
        with third.events(before["reset"]["id"], after=0) as events:
            seen = [next(events)["sequence"] for _ in range(5)]
        assert seen == sorted(set(seen))
        assert third.end(signal.SIGINT) == 0
    assert third.qemus() == []
