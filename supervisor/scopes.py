"""Makes a systemd scope for each QEMU, and registers it with systemd-machined. It runs as root.

Only root may have systemd make a scope, so that a supervisor with a user of its own cannot. This
is all that it has done for it: a process of its own becomes ``qmp-supervisor-<id>.scope`` in
``machine.slice``, where it outlives the supervisor's service, and is a machine of ``machinectl``.
`supervisor.qemu.scopes` has the wire.

Everything here blocks: each request has a process of its own, which ends in time whatever it was
sent. Even to close a descriptor of somebody else's can take as long as he likes.

Source: org.freedesktop.systemd1(5) StartTransientUnit, org.freedesktop.machine1(5) RegisterMachine,
systemd.scope(5), sd_listen_fds(3), unix(7), pidfd_open(2).
"""

from __future__ import annotations

import array
import errno
import json
import os
import re
import select
import signal
import socket
import socketserver
import struct
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import cattrs
import structlog
from attrs import field, frozen
from attrs.validators import ge, le
from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    MatchRule,
    MessageType,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from supervisor.errors import HostError
from supervisor.qemu.scopes import LONGEST, unit_name

log = structlog.stdlib.get_logger()

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START
#: For the packet of a client that has connected: others wait meanwhile. And for systemd's answer.
_PACKET_S, _PATIENCE_S = 0.5, 5.0
#: After so long a request's process is ended.
_LONGEST_S = 8
_SYSTEMD = DBusAddress(
    "/org/freedesktop/systemd1",
    bus_name="org.freedesktop.systemd1",
    interface="org.freedesktop.systemd1.Manager",
)
_MACHINED = DBusAddress(
    "/org/freedesktop/machine1",
    bus_name="org.freedesktop.machine1",
    interface="org.freedesktop.machine1.Manager",
)
#: When the host shuts down these end first, since they power guests off, and then the scopes.
_STOPPED_BEFORE = ("qmp-supervisor.service", "qmp-supervisor-guests.service")
_SLICE = "machine.slice"
#: systemd-machined is not installed, or has not forgotten the VM since the supervisor before.
_WELL_ENOUGH = (
    "org.freedesktop.machine1.MachineExists",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
)
_UNKNOWN_PROPERTY = "org.freedesktop.DBus.Error.PropertyReadOnly"
_SCOPE = re.compile(unit_name("[0-9a-f-]{36}").replace(".", r"\."))
_UCRED = struct.Struct("3i")
_REQUESTS = cattrs.Converter(forbid_extra_keys=True)
_MOST = 1 << 62


def _id(text: Any) -> str:
    """:raises ValueError: if it is no id of a VM as we write them"""
    if not isinstance(text, str) or str(uuid.UUID(text)) != text:
        raise ValueError(f"{str(text)[:50]!r} is not the id of a VM")
    return text


@frozen
class _Wanted:
    """A scope for a VM. Its fields are the client's: `supervisor.qemu.groups.Bounds`."""

    vm: str = field(converter=_id)
    memory_bytes: int = field(validator=[ge(1), le(_MOST)])
    cpus: int = field(validator=[ge(1), le(1 << 20)])
    tasks: int = field(validator=[ge(1), le(1 << 20)])


class Refused(Exception):
    """What a client asks for is not done."""


def serve() -> None:
    """Answer on the socket that systemd passes, until this process is ended.

    :raises HostError: if systemd has not started it
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise HostError(
            "no socket was passed", advice="systemd starts it, for qmp-supervisor-scopes.socket"
        )
    with _Server() as server:
        server.serve_forever()


class _Handler(socketserver.BaseRequestHandler):
    """In a process of its own."""

    def handle(self) -> None:
        signal.alarm(_LONGEST_S)
        answer(self.request)


class _Server(socketserver.ForkingMixIn, socketserver.BaseServer):
    """On the socket that systemd has passed."""

    def __init__(self) -> None:
        super().__init__("", _Handler)
        self.socket = socket.socket(fileno=_FIRST_PASSED)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def close_request(self, request: Any) -> None:
        request.close()

    def server_close(self) -> None:
        self.socket.close()
        super().server_close()


def answer(client: socket.socket) -> None:
    """Read one request of a client that has connected, do what it says, and answer."""
    client.settimeout(_PACKET_S)
    problem, descriptors = "", array.array("i")
    try:
        peer, user = _peer(client)
        # Before anything is waited for: a guest that has taken over its QEMU is the same user.
        if _scope_of(peer):
            raise Refused("who asks is in the scope of a VM")
        packet, ancillary, flags, _ = client.recvmsg(LONGEST, socket.CMSG_SPACE(4 * 8))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) != 1:
            raise Refused("a request is one packet and one descriptor")
        _place(_read(packet), descriptors[0], peer, user)
    except (ValueError, RecursionError, cattrs.BaseValidationError):
        problem = "this is no request"
    except (Refused, DBusErrorResponse, OSError) as error:  # a bus that does not answer, too
        problem = str(error) or type(error).__name__
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if problem:
        log.warning("no scope was made", problem=problem)
    with suppress(OSError):  # it has gone
        client.send(json.dumps({"problem": problem}).encode())


def _read(packet: bytes) -> _Wanted:
    """:raises ValueError: or another error of parsing, if it is no request"""
    words = json.loads(packet)
    if not isinstance(words, dict):
        raise ValueError("not an object")
    return _REQUESTS.structure(words, _Wanted)


def _peer(client: socket.socket) -> tuple[int, int]:
    """The pid and the user who have connected: SO_PEERCRED."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, user, _ = _UCRED.unpack(credentials)
    return pid, user


def _place(wanted: _Wanted, pidfd: int, peer: int, user: int) -> None:
    """:raises Refused: if the process is not the user's"""
    pid = _pid(pidfd)
    if pid is None:
        return
    if pid == peer:
        raise Refused("who asks gets no scope")
    status = Path(f"/proc/{pid}/status").read_bytes()
    # Real, effective, saved and of files: a program that is set-uid is not its caller's.
    ids = set(map(int, status.partition(b"\nUid:")[2].split(maxsplit=4)[:4]))
    if user and ids != {user}:
        raise Refused("the process belongs to another user")
    unit = unit_name(wanted.vm)
    placed = _scope_of(pid)
    # A guest that has taken over its QEMU is the supervisor's user: it must not get other bounds.
    if placed and placed != unit:
        raise Refused("the process is in the scope of another VM")
    with open_dbus_connection("SYSTEM", enable_fds=True) as bus:
        if not placed:
            _make(bus, unit, wanted, pidfd)
        # machined takes no descriptor. A process that lives now had its pid all along.
        if _pid(pidfd):
            _register(bus, wanted.vm, pid)


def _scope_of(pid: int) -> str | None:
    """The VM's scope that a process is in."""
    found = _SCOPE.search(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
    return found[0] if found else None


def _pid(descriptor: int) -> int | None:
    """The pid of a pidfd; None if the process has ended.

    :raises Refused: if it is another descriptor
    """
    with suppress(PermissionError, ProcessLookupError):  # of a process, and not ours; or it is gone
        try:
            signal.pidfd_send_signal(descriptor, 0)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise Refused("the descriptor is of no process") from None
            raise
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(r"^Pid:\t(-?\d+)$", info, re.MULTILINE)
    if not found or found[1] == "0":  # 0: not in our namespace
        raise Refused("the descriptor is of no process")
    return None if select.select([descriptor], [], [], 0)[0] else int(found[1])


def _make(bus: DBusConnection, unit: str, wanted: _Wanted, pidfd: int) -> None:
    properties: list[tuple[str, tuple[str, Any]]] = [
        ("Description", ("s", f"QEMU of VM {wanted.vm}")),
        ("Slice", ("s", _SLICE)),
        ("Before", ("as", list(_STOPPED_BEFORE))),
        ("MemoryMax", ("t", wanted.memory_bytes)),
        ("CPUQuotaPerSecUSec", ("t", wanted.cpus * 1_000_000)),
        ("TasksMax", ("t", wanted.tasks)),
        # One that the kernel has killed for its memory is not kept as a failed unit.
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    # By its unique name: everybody may send signals, to everybody.
    (systemd,) = _call(bus, message_bus, "GetNameOwner", "s", (_SYSTEMD.bus_name,))
    ended = MatchRule(
        type="signal", sender=systemd, interface=_SYSTEMD.interface, member="JobRemoved"
    )
    with bus.filter(ended, bufsize=1000) as over:
        _call(bus, message_bus, "AddMatch", "s", (ended.serialise(),))
        job = _start(bus, unit, properties, pidfd)
        while True:  # others' jobs end as well
            _, done, _, result = bus.recv_until_filtered(over, timeout=_PATIENCE_S).body
            if done == job:
                break
    if result != "done":
        raise Refused(f"systemd says of the job: {result}")


def _start(
    bus: DBusConnection, unit: str, properties: list[tuple[str, tuple[str, Any]]], pidfd: int
) -> str:
    """The job's path. Before systemd 254 a process is named by its pid, which another may get."""

    def ask(process: tuple[str, tuple[str, Any]]) -> str:
        body: tuple[Any, ...] = (unit, "fail", [*properties, process], [])
        (job,) = _call(bus, _SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        return str(job)

    try:
        return ask(("PIDFDs", ("ah", [pidfd])))
    except DBusErrorResponse as error:
        if error.name != _UNKNOWN_PROPERTY:
            raise
    pid = _pid(pidfd)
    if pid is None:
        raise Refused("the process has ended")
    return ask(("PIDs", ("au", [pid])))


def _register(bus: DBusConnection, vm_id: str, leader: int) -> None:
    """With systemd-machined, if it is there: it is another package."""
    body = (f"qmp-{vm_id}", uuid.UUID(vm_id).bytes, "qmp-supervisor", "vm", leader, "")
    try:
        _call(bus, _MACHINED, "RegisterMachine", "sayssus", body)
    except DBusErrorResponse as error:
        if error.name not in _WELL_ENOUGH:
            raise


def _call(bus: DBusConnection, to: DBusAddress, method: str, signature: str, body: Any) -> Any:
    """:raises DBusErrorResponse: if it is refused"""
    reply = bus.send_and_get_reply(
        new_method_call(to, method, signature, body), timeout=_PATIENCE_S
    )
    if reply.header.message_type is MessageType.error:
        raise DBusErrorResponse(reply)
    return reply.body
