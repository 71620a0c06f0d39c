"""A real guest dials the supervisor: through its network, its QEMU's and the namespace around it.

The guest passes on a connection that comes to its port 7002 to where its agent is told to dial. So
a stand-in for the successor's agent, which is a program of the test's, is what comes out there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.pb import cvms_pb2
from tests.fake.test_dialled import IN_JSON, MANIFEST
from tests.support.dialling_agent import Dialling, dialling
from tests.support.guest_images import write_image
from tests.support.namespaces import needs_namespaces
from tests.support.world import free_range
from tests.vm.conftest import PATIENCE_S, started
from tests.vm.test_users import FIRST, LAST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.conftest import Supervisor

pytestmark = needs_namespaces

#: Tries to reach more than it was given, and says what answered.
_AGENT = """#!/usr/bin/python3
import os, socket, threading

console = open("/dev/console", "w", buffering=1)
url = os.environ["AGENT_CVM_GRPC_URL"]
host, _, port = url.partition(":")
for other in (SUPERVISOR, int(port) + 1):
    try:
        socket.create_connection((host, other), 2).close()
        print("agent: reached", other, file=console)
    except OSError:
        pass
print("agent: dials", url, file=console)

def copy(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

listener = socket.create_server(("", 7002))
while True:
    inward, _ = listener.accept()
    outward = socket.create_connection((host, int(port)))
    for ends in ((inward, outward), (outward, inward)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
"""


@pytest.fixture(scope="module")
def image_and_port() -> Iterator[tuple[Path, int]]:
    """A disk whose guest tries the port, and the port: a supervisor's."""
    with tempfile.TemporaryDirectory(prefix="qs-dialling-", dir="/tmp") as name:
        directory, port = Path(name), free_range(1)[0]
        directory.chmod(0o755)  # for another user's QEMU
        yield write_image(directory / "image", _AGENT.replace("SUPERVISOR", str(port))), port


@contextmanager
def tun_for_all() -> Iterator[None]:
    """What udev sees to wherever it runs: each user may open the device that pasta needs."""
    device = Path("/dev/net/tun")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    try:
        yield
    finally:
        device.chmod(mode)


@contextmanager
def agent_in(supervisor: Supervisor, vm_id: str) -> Iterator[Dialling]:
    console = supervisor.tmp / vm_id / "serial.log"
    said = "agent: dials 10.0.2.2:701"
    # The ways that are closed were tried before.
    supervisor.until(f"/vms/{vm_id}", lambda _: console.exists() and said in console.read_text())
    assert "agent: reached" not in console.read_text()
    forwards = supervisor.show(vm_id)["forwards"]
    (port,) = [one["host_port"] for one in forwards if one["guest_port"] == 7002]
    with dialling(f"127.0.0.1:{port}", vm_id) as agent:
        yield agent


@pytest.mark.parametrize("kind", ["none", "internet", "another user's QEMU"])
def test_guest_dials_and_gets_its_manifest(image_and_port: tuple[Path, int], kind: str) -> None:
    disk, port = image_and_port
    settings: dict[str, Any] = {
        "MANAGER_AGENT_DIALS": "chunked",
        "MANAGER_HTTP_PORT": str(port),
        "MANAGER_QEMU_DISK_IMG_FILE": str(disk),
    }
    tun: AbstractContextManager[None] = nullcontext()
    if kind == "internet":
        settings["MANAGER_QEMU_GUEST_NETWORK"] = kind
    if kind == "another user's QEMU":
        if os.geteuid() != 0:
            pytest.skip("only root can start QEMU as another")
        settings["MANAGER_QEMU_RUN_AS"] = f"{FIRST}-{LAST}"
        tun = tun_for_all()
    with tun, started(**settings) as supervisor:
        asked = {"computation": list(IN_JSON)}
        answer = supervisor.http.post("/run", json=asked, headers={"Prefer": "respond-async"})
        vm_id = answer.json()["id"]
        with agent_in(supervisor, vm_id) as agent:
            assert agent.manifests.get(timeout=PATIENCE_S) == MANIFEST
            path = f"/vms/{vm_id}"
            supervisor.until(path, lambda vm: vm["relay"]["state"] == "answered")
            with supervisor.events(vm_id) as events:
                agent.say(agent_log=cvms_pb2.AgentLog(message="hello", level="INFO"))
                assert next(one["message"] for one in events if "message" in one) == "hello"
            assert supervisor.get(f"{path}/computation")["state"] == "ReceivingAlgorithm"
        supervisor.until(path, lambda vm: vm["agent"]["last_lost"] == "its stream ended")
        # The guest, and what passes it on, are as they were.
        with agent_in(supervisor, vm_id):
            supervisor.until(path, lambda vm: bool(vm["agent"]["ready"]))
        supervisor.http.delete(path)
