"""What a real guest reaches, tried from inside by an algorithm that is root there; and who reaches
the agent of one that no port leads to.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from supervisor.pb import agent_pb2
from tests.support.doors import KNOCK, LOOPBACK, Door, listening
from tests.support.guest_images import trusting_image
from tests.support.namespaces import needs_namespaces
from tests.support.small_internet import ALLOWED, PUBLIC, ROUTER
from tests.vm.conftest import PATIENCE_S, started_with_template
from tests.vm.test_run import CLONE, agent_of, computation

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def doors_of_the_host() -> Iterator[list[Door]]:
    """Listeners on the host's loopback and on its own addresses, as a guest sees them."""
    own = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
        and address.address not in LOOPBACK
        and "%" not in address.address
    ]
    with ExitStack() as stack:
        yield [
            (kind, LOOPBACK.get(address, address), stack.enter_context(listening(kind, address)))
            for kind in ("SOCK_STREAM", "SOCK_DGRAM")
            for address in [*LOOPBACK, *own]
        ]


#: What a guest must not reach either. Whether there is something behind depends on the host.
BEYOND: list[Door] = [
    ("SOCK_DGRAM", "10.0.2.3", 53),
    ("SOCK_STREAM", "10.0.2.3", 53),
    ("SOCK_DGRAM", "fec0::3", 53),
    ("SOCK_STREAM", "169.254.169.254", 80),
]


def reached_from(vm: dict[str, Any], doors: list[Door]) -> set[Door]:
    """Those of the doors at which the guest got an answer."""
    agent = agent_of(vm)
    agent.Algo(agent_pb2.AlgoRequest(algorithm=KNOCK), timeout=PATIENCE_S)
    agent.Data(agent_pb2.DataRequest(dataset=json.dumps(doors).encode()), timeout=PATIENCE_S)
    result = agent.Result(agent_pb2.ResultRequest(), timeout=PATIENCE_S).file
    return {tuple(door) for door in json.loads(result)}


@pytest.mark.parametrize(
    "own", [{}, {"MANAGER_QEMU_GUEST_NETWORK": "open"}], ids=["by default", "open"]
)
def test_guest_reaches_nothing_unless_its_network_is_open(own: dict[str, str]) -> None:
    settings: dict[str, Any] = {"MANAGER_QEMU_DISK_IMG_FILE": str(trusting_image())} | own
    with started_with_template(**settings) as supervisor, doors_of_the_host() as doors:
        other, vm = (supervisor.run(computation(name), **CLONE) for name in ("other", "vm"))
        api = [supervisor.http.base_url.port, supervisor.grpc_port]
        agent = next(one["host_port"] for one in other["forwards"] if one["guest_port"] == 7002)
        doors += [("SOCK_STREAM", "10.0.2.2", port) for port in (*api, agent)]
        reached = reached_from(vm, [*doors, *BEYOND])
        assert reached - set(BEYOND) == (set(doors) if own else set())
        assert own or not reached


@needs_namespaces
def test_guest_with_internet_reaches_the_internet_alone() -> None:
    apart = ["unshare", "--map-root-user", "--net", "--mount"]
    program = [sys.executable, "-m", "tests.support.small_internet", str(trusting_image())]
    done = subprocess.run([*apart, *program], stdout=subprocess.PIPE, text=True, check=True)
    told = done.stdout.splitlines()[-1].removeprefix("reached ")
    assert {tuple(door) for door in json.loads(told)} == {
        *(("SOCK_STREAM", address, 80) for address in (*PUBLIC, ALLOWED, ROUTER)),
        *(("SOCK_DGRAM", address, 80) for address in (*PUBLIC, ALLOWED, ROUTER)),
        ("SOCK_DGRAM", "10.0.2.3", 53),
    }
