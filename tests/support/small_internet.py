"""A host with an internet of its own, and what a guest on this host reaches: a program.

The host is this process, in namespaces that it makes. The internet is a child in another network
namespace. It answers TCP and UDP on every address it has. Prints the doors at which a guest got an
answer, as JSON; needs no root, but what `supervisor.qemu.network` needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Addresses of the internet: public ones, and ones that no guest may reach.
PUBLIC = ("5.6.7.8", "2a00:99::1")
PRIVATE = ("10.9.9.9", "169.254.169.254", "100.64.1.1", "fd00:9::1", "172.16.5.5")
#: A private network that the settings allow.
ALLOWED = "192.168.77.7"
#: The next host on the way there.
ROUTER, ROUTER_6 = "93.0.0.1", "2a00:77::1"
#: The host's own public addresses.
HOST = ("93.0.0.2", "2a00:77::2")

_SERVE = """
import socket, sys, threading
def answer(address, kind, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as ours:
        ours.bind((address, port))
        if kind == socket.SOCK_DGRAM:
            while True:
                asked, caller = ours.recvfrom(1000)
                ours.sendto(asked[:2] + b"\\x81\\x83" + asked[4:], caller)
        ours.listen()
        while True:
            with ours.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"here")
for address in sys.argv[1:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for port in (53, 80):
            threading.Thread(target=answer, args=(address, kind, port)).start()
print("up", flush=True)
"""


def _ip(*words: str, inside: int | None = None) -> None:
    enter = ["nsenter", f"--net=/proc/{inside}/ns/net"] if inside else []
    subprocess.run([*enter, "ip", *words], check=True)


def _add(address: str, length: int, device: str, inside: int | None = None) -> None:
    # Without a search for doubles, during which nobody can bind to an address of IPv6.
    words = ["nodad"] if ":" in address else []
    _ip("address", "add", f"{address}/{length}", "dev", device, *words, inside=inside)


def _make() -> subprocess.Popen[str]:
    """The internet's process, which answers."""
    internet = subprocess.Popen(
        [
            *("unshare", "--net", "sh", "-c", 'read line && exec "$@"', "-"),
            *(sys.executable, "-c", _SERVE, ROUTER, *PUBLIC, *PRIVATE, ALLOWED),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert internet.stdin is not None
    assert internet.stdout is not None
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{internet.pid}/ns/net") == own:
        os.sched_yield()
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(internet.pid))
    for address, length in ((ROUTER, 24), (ROUTER_6, 64)):
        _add(address, length, "eth0", internet.pid)
    for address in (*PUBLIC, *PRIVATE, ALLOWED):
        _add(address, 128 if ":" in address else 32, "lo", internet.pid)
    for device in ("lo", "eth0"):
        _ip("link", "set", device, "up", inside=internet.pid)
    for address, length in zip(HOST, (24, 64), strict=True):
        _add(address, length, "eth0")
    _ip("link", "set", "eth0", "up")
    _ip("route", "add", "default", "via", ROUTER)
    _ip("route", "add", "default", "via", ROUTER_6, "dev", "eth0")
    internet.stdin.write("\n")
    internet.stdin.flush()
    assert internet.stdout.readline() == "up\n"
    return internet


def _attack(image: str) -> list[Any]:
    # The namespaces come first: these import grpc, which has threads.
    from tests.vm.conftest import started
    from tests.vm.test_network import BEYOND, doors_of_the_host, reached_from
    from tests.vm.test_run import CLONE, computation

    settings: dict[str, Any] = {
        "MANAGER_TEMPLATES": "auto",
        "MANAGER_QEMU_DISK_IMG_FILE": image,
        "MANAGER_QEMU_GUEST_NETWORK": "internet",
        "MANAGER_QEMU_GUEST_NETWORK_ALLOW": f"{ALLOWED}/32",
    }
    with started(**settings) as supervisor, doors_of_the_host() as doors:
        other, vm = (supervisor.run(computation(name), **CLONE) for name in ("other", "vm"))
        api = (supervisor.http.base_url.port or 0, supervisor.grpc_port)
        doors += [("SOCK_STREAM", "10.0.2.2", port) for port in api]
        doors += [("SOCK_STREAM", "10.0.2.2", one["host_port"]) for one in other["forwards"]]
        doors += [
            (kind, address, 80)
            for kind in ("SOCK_STREAM", "SOCK_DGRAM")
            for address in (*PUBLIC, *PRIVATE, ALLOWED, ROUTER)
        ]
        return sorted(reached_from(vm, [*doors, *BEYOND]))


def main() -> None:
    with tempfile.NamedTemporaryFile("w") as file, _make() as internet:
        try:
            file.write(f"nameserver {PRIVATE[0]}\n")
            file.flush()
            target = str(Path("/etc/resolv.conf").resolve())
            subprocess.run(["mount", "--bind", file.name, target], check=True)
            print("reached", json.dumps(_attack(sys.argv[1])))
        finally:
            internet.kill()


if __name__ == "__main__":
    main()
