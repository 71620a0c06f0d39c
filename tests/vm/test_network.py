"""What a real guest reaches, tried from inside by an algorithm that is root there."""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from supervisor.pb import agent_pb2
from tests.support.small_internet import ALLOWED, PUBLIC, ROUTER
from tests.support.trusting_guest import trusting_image
from tests.vm.conftest import PATIENCE_S, started
from tests.vm.test_run import CLONE, agent_of, computation

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Knocks at each address and port of its data set, all at once. The result is a list of those that
#: sent something back, as a resolver and an agent behind a forward do as well.
KNOCK = rb"""
import json, socket, subprocess, sys, threading

with open("/proc/sys/net/ipv6/conf/eth0/accept_dad", "w") as setting:
    setting.write("0")
subprocess.run(["ip", "-6", "address", "add", "fec0::15/64", "dev", "eth0"])
subprocess.run(["ip", "-6", "route", "add", "default", "via", "fe80::2", "dev", "eth0"])
REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
QUESTION = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"
reached = []

def knock(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, getattr(socket, kind)) as connection:
        connection.settimeout(20)
        try:
            connection.connect((address, port))
            if port != 53:
                connection.send(REQUEST)
            elif kind == "SOCK_DGRAM":
                connection.send(QUESTION)
            else:
                connection.send(len(QUESTION).to_bytes(2, "big") + QUESTION)
            if connection.recv(100):
                reached.append([kind, address, port])
        except OSError:
            pass

threads = [threading.Thread(target=knock, args=one) for one in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(json.dumps(reached).encode())
"""

#: Kind of socket, address and port.
Door = tuple[str, str, int]


class _Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"here")


class _Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(b"here", self.client_address)


@contextmanager
def listening(kind: str, address: str) -> Iterator[int]:
    """A port of the host that answers whoever reaches it."""
    stream = kind == "SOCK_STREAM"
    base = socketserver.TCPServer if stream else socketserver.UDPServer
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server_class = type("Server", (base,), {"address_family": family})
    with server_class((address, 0), _Stream if stream else _Datagram) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


#: How slirp's guests see the host's loopback.
LOOPBACK = {"127.0.0.1": "10.0.2.2", "::1": "fec0::2"}


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


@pytest.mark.parametrize("network", ["none", "open"])
def test_guest_reaches_nothing_unless_its_network_is_open(network: str) -> None:
    settings: dict[str, Any] = {
        "MANAGER_TEMPLATES": "auto",
        "MANAGER_QEMU_DISK_IMG_FILE": str(trusting_image()),
        "MANAGER_QEMU_GUEST_NETWORK": network,
    }
    with started(**settings) as supervisor, doors_of_the_host() as doors:
        other, vm = (supervisor.run(computation(name), **CLONE) for name in ("other", "vm"))
        api = [supervisor.http.base_url.port, supervisor.grpc_port]
        agent = next(one["host_port"] for one in other["forwards"] if one["guest_port"] == 7002)
        doors += [("SOCK_STREAM", "10.0.2.2", port) for port in (*api, agent)]
        reached = reached_from(vm, [*doors, *BEYOND])
        assert reached - set(BEYOND) == (set(doors) if network == "open" else set())
        assert network == "open" or not reached


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
