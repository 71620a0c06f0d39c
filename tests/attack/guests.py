"""From inside a guest, by an algorithm that is root there: what it reaches and what it floods."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc

from tests.attack.kinds import Came, From, Need, attack
from tests.support.doors import KNOCK, LOOPBACK, Door, listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attack.kinds import Act
    from tests.attack.place import Place

NETWORK = "the guest's network"
_BELOW = "the guest's packets reach nothing"
_POLL_S = 0.1
_PATIENCE_S = 60.0

TCP, UDP = "SOCK_STREAM", "SOCK_DGRAM"
#: Addresses of the network in which `tests.attack` runs as root; see `tests.attack.network`.
OWN, OWN_6, LINK_LOCAL = "192.0.2.1", "2001:db8::1", "169.254.169.254"

#: What a guest may knock at, by what it tries: kind, address on the host, and the port, if that is
#: not one of ours which answers whoever comes.
DOORS: dict[str, tuple[str, str, Callable[[Place], int] | None]] = {
    "calls the HTTP API on the host's loopback": (TCP, "127.0.0.1", lambda p: p.main.http_port),
    "calls the gRPC API on the host's loopback": (TCP, "127.0.0.1", lambda p: p.main.grpc_port),
    "calls an agent by its forward": (TCP, "127.0.0.1", lambda p: p.agent()[1]),
    "connects to another service on the host's loopback": (TCP, "127.0.0.1", None),
    "sends datagrams to a service on the host's loopback": (UDP, "127.0.0.1", None),
    "connects to the host's loopback by IPv6": (TCP, "::1", None),
    "sends datagrams to the host's loopback by IPv6": (UDP, "::1", None),
}
#: These take an address that the host must have.
FAR_DOORS: dict[str, tuple[str, str, Callable[[Place], int] | None]] = {
    "connects to an address of the host's own": (TCP, OWN, None),
    "sends datagrams to an address of the host's own": (UDP, OWN, None),
    "connects to an address of the host's own by IPv6": (TCP, OWN_6, None),
    "asks the cloud's metadata service, on 169.254.169.254": (TCP, LINK_LOCAL, lambda _: 80),
    "asks the host's resolver over UDP": (UDP, "127.0.0.1", lambda _: 53),
    "asks the host's resolver over TCP": (TCP, "127.0.0.1", lambda _: 53),
    "asks the host's resolver by IPv6": (UDP, "::1", lambda _: 53),
}
#: Of the user network, whatever the host's resolver is.
RESOLVERS = {"127.0.0.1": "10.0.2.3", "::1": "fec0::3"}
#: What other services have.
_TAKEN = {"calls the HTTP API", "calls the gRPC API", "calls an agent"}


def _knock(place: Place) -> set[str]:
    """What is reached, of all doors that there are here; all at once, for each takes its time."""
    doors: dict[Door, str] = {}
    with ExitStack() as stack:
        for what, (kind, address, port) in (
            DOORS | (FAR_DOORS if place.has_network else {})
        ).items():
            number = port(place) if port else 0
            if not any(what.startswith(word) for word in _TAKEN):
                number = stack.enter_context(listening(kind, address, number))
            seen = RESOLVERS[address] if number == 53 else LOOPBACK.get(address, address)
            doors[kind, seen, number] = what
        reached = place.in_guest(KNOCK, list(doors))
    return {doors[kind, address, port] for kind, address, port in reached}


def door(what: str) -> Act:
    def act(place: Place) -> Came:
        return Came("through" if what in place.once("doors", _knock) else "silence")

    return act


for _what in DOORS:
    attack(From.GUEST, f"a guest {_what}", held_by=NETWORK, refusal="silence", below=_BELOW)(
        door(_what)
    )
for _what in FAR_DOORS:
    attack(
        From.GUEST,
        f"a guest {_what}",
        held_by=NETWORK,
        refusal="silence",
        below=_BELOW,
        needs=frozenset({Need.ROOT}),
    )(door(_what))

# --- floods ------------------------------------------------------------------------------------

_FLOOD = b"""
import json, socket, sys
with open("/dev/ttyS0", "wb", buffering=0) as console:
    for _ in range(json.loads(sys.argv[1])):
        console.write(b"x" * 1023 + b"\\n")
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(b"null")
"""
_MOST_KIB = 64  # MANAGER_LOG_SIZE


@attack(
    From.GUEST,
    "a guest fills the host's disk by its console",
    held_by="cutting logs",
    refusal="cut",
    below="bytes to a file",
    through="through",
)
def serial(place: Place) -> Came:
    log = place.main.tmp / place.victim() / "serial.log"
    place.in_guest(_FLOOD, 2 * _MOST_KIB)
    deadline = time.monotonic() + _PATIENCE_S
    while log.stat().st_size > _MOST_KIB * 1024:
        if time.monotonic() > deadline:
            return Came("through", detail=f"{log.stat().st_size} bytes")
        time.sleep(_POLL_S)
    return Came("cut")


#: By the registers for plugging in processors: QEMU tells of each status that is written there.
_EVENTS = rb"""
import json, os, socket, sys, time
port = os.open("/dev/port", os.O_WRONLY)
os.pwrite(port, b"\0", 0xCD8)  # the first processor
os.pwrite(port, b"\2", 0xCD8 + 5)  # a status follows
end_s = time.monotonic() + json.loads(sys.argv[1])
while time.monotonic() < end_s:
    os.pwrite(port, b"\0", 0xCD8 + 8)
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(b"null")
"""
#: Longer than it takes to see that they are too many, and to end the VM.
_FLOOD_S = 60


@attack(
    From.GUEST,
    "a guest keeps the supervisor busy with events of its QEMU",
    held_by="the number of events",
    refusal="ended",
    below="events of a monitor",
    through="through",
    short=False,
)
def events(place: Place) -> Came:
    vm_id = place.victim()
    try:
        place.in_guest(_EVENTS, _FLOOD_S)
    except grpc.RpcError as error:
        told = place.main.ask("GET", f"/vms/{vm_id}/events?limit=100", by="bob").json()["events"]
        causes = [event["cause"] for event in told if event["event"] == "ending"]
        place.main.ask("DELETE", f"/vms/{vm_id}", by="bob")  # the next attack has another VM
        return Came("ended" if causes == ["flood"] else f"{causes}", detail=str(error))
    return Came("through")


_SUSPEND = b"""
import socket, sys
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(b"null")
import subprocess
subprocess.Popen(["sh", "-c", "sleep 1; echo mem > /sys/power/state"], start_new_session=True)
"""


@attack(
    From.GUEST,
    "a guest suspends itself, so that it hears no power button",
    held_by="waking a guest to end it",
    refusal="guest-shutdown",
    below="the end that was asked for is answered",
    through="host-qmp-quit",
    short=False,
)
def suspend(place: Place) -> Came:
    vm_id = place.victim()
    place.in_guest(_SUSPEND, None)
    place.main.until(vm_id, "paused", by="bob")
    ended = place.main.ask("POST", f"/vms/{vm_id}/shutdown", by="bob").json()
    return Came(ended["reason"])
