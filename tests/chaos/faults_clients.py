"""What clients may do: go away, not read, talk nonsense; and agents that never answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from typing import TYPE_CHECKING

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.case import Case

_CLIENTS = 100


def _post(case: Case, number: int, prefer: str = "") -> bytes:
    computation = {"name": f"{case.tmp.name}-client-{number}", "hold": True}
    body = json.dumps({"computation": list(json.dumps(computation).encode())}).encode()
    head = (
        "POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{prefer}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@contextlib.contextmanager
def _connections(case: Case, count: int) -> Iterator[list[socket.socket]]:
    assert case.supervisor
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(("127.0.0.1", case.supervisor.port), 20))
            for _ in range(count)
        ]


@kind(
    "100 clients gone in the middle of their runs",
    times=2,
    settings={"MANAGER_MAX_VMS": "4", "MANAGER_QUEUE": "200"},
)
def gone(case: Case) -> None:
    case.serve()
    with _connections(case, _CLIENTS) as clients:
        for number, client in enumerate(clients):
            client.sendall(_post(case, number))
        case.wait(
            lambda: (
                len(case.ask("GET", "/vms")[1]["vms"]) == 4
                and all(vm["agent_ready"] for vm in case.ask("GET", "/vms")[1]["vms"])
            ),
            "four VMs at work",
        )
    case.wait(lambda: all(vm["ended"] for vm in case.ask("GET", "/vms")[1]["vms"]), "their end")


@kind(
    "100 clients gone, supervisor SIGKILLed",
    short=0,
    times=2,
    settings={"MANAGER_MAX_VMS": "4", "MANAGER_QUEUE": "200"},
)
def gone_and_killed(case: Case) -> None:
    case.serve()
    with _connections(case, _CLIENTS) as clients:
        for number, client in enumerate(clients):
            client.sendall(_post(case, number))
        case.wait(lambda: len(case.ask("GET", "/vms")[1]["vms"]) == 4, "four VMs")
    case.crash()


@kind("requests cut off half-way, and garbage", short=0, times=2)
def garbage(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    whole = _post(case, 0)
    for words in (whole[:40], whole[:-10], b"\x16\x03\x01\x02\x00", b"\0" * 5000, b"GET \r\n\r\n"):
        with _connections(case, 5) as clients:
            for client in clients:
                client.sendall(words)
    case.until_monitor(vm_id, "ok")


@kind("readers of events that do not read", times=2)
def not_reading(case: Case) -> None:
    case.serve()
    with _connections(case, 50) as readers:
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            reader.sendall(b"GET /events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        vm_id = case.run()
        for _ in range(20):
            case.control(vm_id, "pause")
            case.control(vm_id, "resume")
        case.crash()


@kind("agent never answers, run's client gone", short=0, times=2)
def silent_agent(case: Case) -> None:
    case.serve()
    with _connections(case, 1) as (client,):
        client.sendall(_post(case, 1))
        case.wait(lambda: bool(case.ask("GET", "/vms")[1]["vms"]), "the VM")
        vm_id = case.ask("GET", "/vms")[1]["vms"][0]["id"]
        case.until(vm_id, lambda vm: vm["relay"]["state"] == "sent")
    case.until_ended(vm_id)


@kind("agent never answers in time", times=2, settings={"MANAGER_AGENT_GRPC_TIMEOUT": "300ms"})
def late_agent(case: Case) -> None:
    case.serve()
    vm_id = case.run(wait=False, hold=True)
    vm = case.until_ended(vm_id)
    case.expect(vm["relay"]["state"] == "failed", f"the relay is {vm['relay']}")
    case.crash()


@kind("supervisor SIGKILLed with a computation at the agent, which answers then", times=3)
def answered_too_late(case: Case) -> None:
    case.serve()
    vm_id = case.run(hold=True)
    case.crash()
    case.place.agents.release()
    case.serve()
    case.until(vm_id, lambda vm: vm["relay"]["state"] == "interrupted")


@kind("one idempotency key, supervisor SIGKILLed between", times=3)
def same_key(case: Case) -> None:
    case.serve()
    body = {"computation": list(json.dumps({"name": f"{case.tmp.name}-key"}).encode())}
    headers = {"Prefer": "respond-async", "Idempotency-Key": "one"}
    _, first = case.ask("POST", "/run", body, **headers)
    case.told.add(first["id"])
    case.until(first["id"], lambda vm: vm["relay"]["state"] == "answered")
    case.crash()
    case.serve()
    _, second = case.ask("POST", "/run", body, **headers)
    case.expect(second["id"] == first["id"], "the same run was begun twice")


@kind("file descriptors of the supervisor exhausted", short=0, times=2)
def no_descriptors(case: Case) -> None:
    case.serve(descriptors=80)
    vm_id = case.run()
    assert case.supervisor
    with contextlib.ExitStack() as stack:
        for _ in range(120):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", case.supervisor.port))
        case.signal_qemu(vm_id, signal.SIGKILL)
        case.wait_no_qemu(vm_id)
    case.until_ended(vm_id, "crashed", "exit:-9")
    # Connections that were closed before they said a word are kept for some seconds.
    fds = f"/proc/{case.supervisor.pid}/fd"
    case.wait(lambda: len(os.listdir(fds)) < 40, "the descriptors")
