"""Guests whose agent does not come, ends, or sleeps: on real QEMU, with real images."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.support.guest_images import trusting_image, write_image
from tests.vm.conftest import PATIENCE_S, Supervisor, started, started_with_template
from tests.vm.test_faults import start, wait_for
from tests.vm.test_run import computation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

#: By its memory, of which Linux keeps some: listens elsewhere, has no network, has no agent.
ODD_AGENT = """#!/usr/bin/busybox sh
case $(awk '/MemTotal/ { print ($2 > 500000) + ($2 > 800000) }' /proc/meminfo) in
0) exec nc -ll -p 7003 -e /bin/cat ;;
1)
    driver=/sys/bus/virtio/drivers/virtio_net
    until ls $driver/virtio* $driver/unbind; do sleep 0.01; done >/dev/null 2>&1
    for one in $driver/virtio*; do echo ${one##*/} >$driver/unbind; done ;;
2) rm /usr/lib/guest/agent; exit ;;
esac
exec sleep 1000000
"""

#: What the algorithm sends back after what it has done.
TELL = b"""
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(str(told).encode())
"""
TIME = b"import socket, sys, time; told = time.time()\n" + TELL
KILL_AGENT = b"import os; os.kill(os.getppid(), 9)"
#: To RAM, which a guest tells QEMU of, and not to idle, which some kernels would rather do.
SUSPEND = b"""
open('/sys/power/mem_sleep', 'w').write('deep')
open('/sys/power/state', 'w').write('mem')
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("odd"), ODD_AGENT)


@pytest.fixture(scope="module")
def refusals(odd: Path) -> list[dict[str, Any]]:
    """The problem documents of runs in guests with little, more and most memory."""

    def run(memory: str) -> dict[str, Any]:
        with started(
            MANAGER_QEMU_DISK_IMG_FILE=str(odd), MANAGER_QEMU_MEMORY_SIZE=memory
        ) as supervisor:
            answer: httpx.Response = supervisor.http.post("/run", json={"computation": [1]})
            assert answer.status_code == 504, answer.text
            return dict(answer.json())

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run, ("512M", "768M", "1G")))


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (0, "the guest listens on port 7003, and not on the agent's port 7002"),
        (1, "the guest says: no "),
        (2, "the guest says: the agent cannot be started"),
    ],
    ids=["elsewhere", "no network", "no agent"],
)
def test_run_says_why_there_is_no_agent(
    refusals: list[dict[str, Any]], which: int, words: str
) -> None:
    """At once, and with the console's last lines; the boot timeout is minutes away."""
    document = refusals[which]
    assert words in document["detail"]
    assert "MANAGER_BOOT_TIMEOUT" not in document["detail"]
    assert "\n[guest " in document["advice"]


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    """Of guests whose algorithms may do anything."""
    disk = str(trusting_image())
    with started_with_template(MANAGER_QEMU_DISK_IMG_FILE=disk, MANAGER_HEARTBEAT="1s") as running:
        yield running


@pytest.fixture(scope="module")
def fleet(supervisor: Supervisor) -> dict[str, dict[str, Any]]:
    names = ("killed", "paused", "suspended")
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda name: supervisor.run(computation(name)), names)
        return dict(zip(names, answers, strict=True))


def test_agent_that_is_killed_is_missed_and_comes_back(
    supervisor: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    vm = fleet["killed"]
    with supervisor.events(vm["id"]) as events:
        answer = start(vm, KILL_AGENT)
        lost = wait_for(events, "agent-lost")
        assert lost["reason"] in ("refused", "restarted")
        wait_for(events, "agent")
    with pytest.raises(grpc.RpcError):
        answer.result()
    shown = supervisor.show(vm["id"])["agent"]
    assert shown.pop("last_lost")
    expected = {"ready": True, "address": vm_address(vm), "reason": None, "protected": False}
    assert shown == expected


def vm_address(vm: dict[str, Any]) -> str:
    return next(
        f"{one['host_address']}:{one['host_port']}"
        for one in vm["forwards"]
        if one["guest_port"] == 7002
    )


def test_clock_is_right_after_a_pause(
    supervisor: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    vm = fleet["paused"]
    supervisor.post(vm["id"], "pause")
    time.sleep(20)  # it is this long that the guest's clock stands still
    supervisor.post(vm["id"], "resume")
    set_at = next(one for one in _log(supervisor) if one["message"] == "the guest's clock is set")
    assert set_at["vm"] == vm["id"]
    assert set_at["moved_s"] > 15
    before = time.time()
    told = float(start(vm, TIME).result().file)
    assert before - 2 < told < time.time() + 2


def _log(supervisor: Supervisor) -> Iterator[dict[str, Any]]:
    deadline, seen = time.monotonic() + PATIENCE_S, 0
    while time.monotonic() < deadline:
        while seen < len(supervisor.log):
            yield supervisor.log[seen]
            seen += 1
        time.sleep(0.05)


def test_guest_that_sleeps_is_woken_to_power_off(
    supervisor: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    kernel = json.loads(trusting_image().with_name("manifest.json").read_text())["kernel"]
    if re.fullmatch(r"7\..*-generic", kernel):
        pytest.skip(f"NOT TESTED: Ubuntu's kernel {kernel} hangs while it suspends its devices")
    vm = fleet["suspended"]
    with supervisor.events(vm["id"]) as events:
        answer = start(vm, SUSPEND)
        wait_for(events, "state", state="paused", reason="suspended")
    assert not answer.done()
    ended = supervisor.post(vm["id"], "shutdown")
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout
    # A guest of QEMU 8.2.2 does not run on after its wake-up, so QEMU is told to quit in the end.
    reason = "host-qmp-quit" if " version 8.2" in version else "guest-shutdown"
    assert (ended["state"], ended["reason"]) == ("shutoff", reason)
