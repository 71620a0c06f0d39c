"""POST /run and its VM, from the answer to the end, on real QEMU with the real guest."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.pb import (
    agent_pb2,
    agent_pb2_grpc,
    manager_pb2,
    manager_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)
from tests.support.guest_images import trusting_image
from tests.vm.conftest import PATIENCE_S, Supervisor, started

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Averages numbers, as a party to a computation would write it.
AVERAGE = b"""
import socket, sys
numbers = [float(word) for word in sys.argv[1].split()]
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(str(sum(numbers) / len(numbers)).encode())
"""


def computation(name: str) -> bytes:
    return json.dumps({"id": name, "name": f"computation {name}"}).encode()


def host_port(vm: dict[str, Any], guest_port: int) -> int:
    ports = {one["guest_port"]: one["host_port"] for one in vm["forwards"]}
    return int(ports[guest_port])


def agent_of(vm: dict[str, Any]) -> agent_pb2_grpc.AgentServiceStub:
    return agent_pb2_grpc.AgentServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{host_port(vm, 7002)}")
    )


COLD: dict[str, Any] = {"template": "off"}
CLONE: dict[str, Any] = {"template": "require"}

#: The VMs of this module by what is done to them, and what is wished for each. All start at once,
#: and the clones when the template is ready.
FLEET = {
    "looked-at": COLD,
    "asked-to-power-off": COLD,
    "pasted": COLD | {"keep_disk": True},
    "killed": CLONE,
    "panics": CLONE,
    "reboots": CLONE,
    "powers-off": CLONE,
}


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    image = str(trusting_image())
    with started(
        MANAGER_TEMPLATES="auto", MANAGER_QEMU_DISK_IMG_FILE=image, MANAGER_QEMU_SMP_COUNT="2"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(supervisor: Supervisor) -> dict[str, dict[str, Any]]:
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda name: supervisor.run(computation(name), **FLEET[name]), FLEET)
        return dict(zip(FLEET, answers, strict=True))


@pytest.fixture
def vm(fleet: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The one that nothing is done to."""
    return fleet["looked-at"]


def test_runs_at_once_each_reach_their_own_agent(fleet: dict[str, dict[str, Any]]) -> None:
    """The original sent the second computation to the first VM's agent."""
    replies = {name: json.loads(answer["computation"])["id"] for name, answer in fleet.items()}
    assert replies == {name: name for name in FLEET}
    assert len({answer["id"] for answer in fleet.values()}) == len(FLEET)
    assert len({host_port(answer, 7002) for answer in fleet.values()}) == len(FLEET)


def test_answer_is_the_agents(vm: dict[str, Any]) -> None:
    reply = json.loads(vm["computation"])
    assert (reply["id"], reply["name"]) == ("looked-at", "computation looked-at")
    assert vm["state"] == "running"


def test_status_is_what_qemu_says(supervisor: Supervisor, vm: dict[str, Any]) -> None:
    status = supervisor.http.get(f"/vms/{vm['id']}/status", params={"live": "1"}).json()
    assert status["state"] == "running"
    assert status["query_status"] == {"status": "running", "running": True}
    assert status["query_sev"] == {"enabled": False}
    assert status["agent"]["ready"]
    assert status["uptime_s"] > 0


def test_command_line_is_the_one_that_was_logged(
    supervisor: Supervisor, vm: dict[str, Any]
) -> None:
    shown = supervisor.show(vm["id"])
    words = Path(f"/proc/{shown['pid']}/cmdline").read_bytes().decode().split("\0")[:-1]
    by_hand = [word.replace("fd=0", f"path={shown['directory']}/qmp.sock") for word in words]
    assert by_hand == [*shown["argv"], "-S"]
    logged = [line["message"] for line in supervisor.log if line.get("vm") == vm["id"]]
    assert logged[0] == shown["command"]


def test_disk_is_an_overlay(supervisor: Supervisor, vm: dict[str, Any]) -> None:
    """Never a full copy of the image."""
    overlay = Path(supervisor.show(vm["id"])["directory"]) / "overlay.qcow2"
    assert overlay.stat().st_blocks * 512 < 4 * 1024 * 1024


def test_agent_computes_at_the_vms_own_ports(vm: dict[str, Any]) -> None:
    stub = agent_of(vm)
    algorithm = stub.Algo(agent_pb2.AlgoRequest(algorithm=AVERAGE))
    data = stub.Data(agent_pb2.DataRequest(dataset=b"1 2 6"))
    assert algorithm.algorithmID
    assert data.datasetID
    assert stub.Result(agent_pb2.ResultRequest()).file == b"3.0"


def test_no_attestation_is_made_up(vm: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        agent_of(vm).Attestation(agent_pb2.AttestationRequest())
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_guest_powers_off_when_asked(
    supervisor: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    vm = fleet["asked-to-power-off"]
    pid = supervisor.show(vm["id"])["pid"]
    ended = supervisor.http.post(f"/vms/{vm['id']}/shutdown").json()
    assert (ended["state"], ended["reason"]) == ("shutoff", "guest-shutdown")
    assert ended["exit_code"] == 0
    assert not Path(f"/proc/{pid}").exists(), "not even a zombie"
    for forward in vm["forwards"]:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((forward["host_address"], forward["host_port"]))


def test_logged_command_runs_in_a_shell(
    supervisor: Supervisor, fleet: dict[str, dict[str, Any]]
) -> None:
    """Pasted once its VM has ended, it boots the same guest, and its QMP answers."""
    vm = fleet["pasted"]
    supervisor.http.post(f"/vms/{vm['id']}/shutdown", json={"mode": "force"})
    shown = supervisor.show(vm["id"])
    monitor = Path(shown["directory"]) / "qmp.sock"
    by_hand = subprocess.Popen(f"exec {shown['command']}", shell=True)
    try:
        # The rest of the agent's calls need a credential that nobody has any more.
        with grpc.insecure_channel(f"127.0.0.1:{host_port(vm, 7002)}") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            told = health.Check(request, wait_for_ready=True, timeout=PATIENCE_S)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(str(monitor))
            qmp.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            while qmp.recv(4096):
                pass
        assert by_hand.wait(PATIENCE_S) == 0
    finally:
        if by_hand.poll() is None:
            by_hand.kill()
            by_hand.wait()
    assert shlex.split(shown["command"]) == shown["argv"]


@pytest.fixture
def changes(supervisor: Supervisor) -> Iterator[Iterator[vm_pb2.Event]]:
    """Every change of state from now on."""
    with grpc.insecure_channel(f"127.0.0.1:{supervisor.grpc_port}") as channel:
        stream = vm_pb2_grpc.VmServiceStub(channel).Watch(vm_pb2.WatchRequest(), timeout=PATIENCE_S)
        yield stream
        stream.cancel()


def until_ended(changes: Iterator[vm_pb2.Event], vm_id: str) -> vm_pb2.Event:
    ends = (vm_pb2.VM_STATE_SHUTOFF, vm_pb2.VM_STATE_CRASHED)
    return next(one for one in changes if one.id == vm_id and one.state in ends)


def test_killed_qemu_is_a_crash(
    supervisor: Supervisor,
    fleet: dict[str, dict[str, Any]],
    changes: Iterator[vm_pb2.Event],
) -> None:
    vm = fleet["killed"]
    os.kill(supervisor.show(vm["id"])["pid"], signal.SIGKILL)
    end = until_ended(changes, vm["id"])
    assert (end.state, end.reason) == (vm_pb2.VM_STATE_CRASHED, f"exit:-{signal.SIGKILL.value}")


@pytest.mark.parametrize(
    ("name", "order", "state", "reason"),
    [
        ("panics", "c", vm_pb2.VM_STATE_CRASHED, "guest-panicked"),
        ("reboots", "b", vm_pb2.VM_STATE_SHUTOFF, "guest-reset"),
        ("powers-off", "o", vm_pb2.VM_STATE_SHUTOFF, "guest-shutdown"),
    ],
)
def test_what_the_guest_does_to_itself(
    fleet: dict[str, dict[str, Any]],
    changes: Iterator[vm_pb2.Event],
    name: str,
    order: str,
    state: vm_pb2.VmState,
    reason: str,
) -> None:
    """A panic, a reboot and a power-off from inside, by the kernel's magic SysRq."""
    vm = fleet[name]
    stub = agent_of(vm)
    stub.Algo(
        agent_pb2.AlgoRequest(
            algorithm=b"open('/proc/sysrq-trigger', 'w').write('%s')" % order.encode()
        )
    )
    stub.Data(agent_pb2.DataRequest(dataset=b"-"))
    deadly = stub.Result.future(agent_pb2.ResultRequest())
    end = until_ended(changes, vm["id"])
    deadly.cancel()
    assert (end.state, end.reason) == (state, reason)


def test_grpc_run(supervisor: Supervisor) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{supervisor.grpc_port}") as channel:
        manager = manager_pb2_grpc.ManagerServiceStub(channel)
        answer = manager.Run(manager_pb2.RunRequest(computation=computation("grpc")))
    assert json.loads(answer.computation)["id"] == "grpc"
    assert supervisor.show(answer.ID)["state"] == "running"
    assert supervisor.http.delete(f"/vms/{answer.ID}").status_code == 204
    assert supervisor.http.get(f"/vms/{answer.ID}").status_code == 404
