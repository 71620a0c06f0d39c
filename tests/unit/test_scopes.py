"""Who makes scopes refuses what is not his client's. scripts/deb has a systemd that makes them."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor import scopes
from supervisor.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VM = "5d1c8b7a-7b1e-4a52-9d0e-3a1d6d7f0a11"
WANTED = {"vm": VM, "memory_bytes": 1 << 30, "cpus": 3, "tasks": 140}
NOBODY = 65534
GROUPS = next(
    (
        path
        for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
        if (path / "cgroup.procs").exists()
    ),
    Path("/nonexistent"),
)


def _may_make_groups() -> bool:
    return os.getuid() == 0 and os.access(GROUPS, os.W_OK) and (GROUPS / "cgroup.procs").exists()


@contextmanager
def process(**options: Any) -> Iterator[int]:
    """A pidfd of a process that waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, **options) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)
            child.kill()


def ask(packet: bytes, descriptors: Sequence[int]) -> str:
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client, server:
        passed = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if descriptors else []
        client.sendmsg([packet], ancillary)
        scopes.answer(server)
        return str(json.loads(client.recv(4096))["problem"])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 4000,
        b"{}",
        json.dumps({"vm": VM}).encode(),
        *(
            json.dumps(WANTED | wrong).encode()
            for wrong in (
                {"vm": "init"},
                {"vm": VM.upper()},
                {"vm": f"{VM}/../x"},
                {"vm": None},
                {"memory_bytes": 0},
                {"memory_bytes": 1 << 64},
                {"cpus": -1},
                {"tasks": 1 << 30},
                {"Slice": "system.slice"},
            )
        ),
    ],
)
def test_no_request(packet: bytes) -> None:
    before = open_descriptors()
    with process() as pidfd:
        assert ask(packet, [pidfd]) == "this is no request"
    assert open_descriptors() == before


def test_one_packet_and_one_descriptor() -> None:
    refused = "a request is one packet and one descriptor"
    packet = json.dumps(WANTED).encode()
    before = open_descriptors()
    with process() as pidfd:
        assert ask(packet, []) == refused
        assert ask(packet, [pidfd, pidfd]) == refused
        assert ask(packet, [pidfd] * 40) == refused
        assert ask(packet + b" " * 5000, [pidfd]) == refused
    assert open_descriptors() == before


def test_descriptor_of_something_else() -> None:
    with open(os.devnull) as file:
        refused = ask(json.dumps(WANTED).encode(), [file.fileno()])
    assert refused == "the descriptor is of no process"


def test_process_that_has_ended_needs_none() -> None:
    with ExitStack() as stack:
        child = subprocess.Popen(["true"])
        pidfd = os.pidfd_open(child.pid)
        stack.callback(os.close, pidfd)
        child.wait()
        assert ask(json.dumps(WANTED).encode(), [pidfd]) == ""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
@pytest.mark.parametrize("owner", [0, 1])
def test_process_of_another_user(owner: int) -> None:
    ask_as_nobody = f"""if True:
        import os, socket, sys
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect("\\0" + sys.argv[1])
        socket.send_fds(client, [sys.argv[2].encode()], [int(sys.argv[3])])
        print(client.recv(4096).decode())
    """
    name = f"qmp-supervisor-test-{os.getpid()}-{owner}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        process(user=owner) as pidfd,
    ):
        listener.bind(f"\0{name}")
        listener.listen()
        words = [name, json.dumps(WANTED), str(pidfd)]
        asking = subprocess.Popen(
            [sys.executable, "-c", ask_as_nobody, *words],
            pass_fds=[pidfd],
            stdout=subprocess.PIPE,
        )
        with asking:
            server, _ = listener.accept()
            with server:
                scopes.answer(server)
            told, _ = asking.communicate()
    assert json.loads(told) == {"problem": "the process belongs to another user"}


@pytest.mark.skipif(not _may_make_groups(), reason="needs root, and control groups of version 2")
def test_no_qemu_gets_other_bounds() -> None:
    """The kernel's group is made here as systemd makes it."""
    group = GROUPS / f"qmp-supervisor-{VM[:-1]}2.scope"
    group.mkdir()
    try:
        with process() as pidfd:
            pid = Path(f"/proc/self/fdinfo/{pidfd}").read_text().split("Pid:")[1].split()[0]
            (group / "cgroup.procs").write_text(pid)
            refused = ask(json.dumps(WANTED).encode(), [pidfd])
            assert refused == "the process is in the scope of another VM"
    finally:
        group.rmdir()


@pytest.mark.skipif(not _may_make_groups(), reason="needs root, and control groups of version 2")
def test_a_guest_that_asks_is_not_waited_for() -> None:
    group = GROUPS / f"qmp-supervisor-{VM[:-1]}3.scope"
    group.mkdir()
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    try:
        (group / "cgroup.procs").write_text("0")
        with client, server:
            scopes.answer(server)  # nothing was sent
            told = json.loads(client.recv(4096))["problem"]
        assert told == "who asks is in the scope of a VM"
    finally:
        (GROUPS / before / "cgroup.procs").write_text("0")
        group.rmdir()


def test_who_asks_gets_no_scope() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert ask(json.dumps(WANTED).encode(), [pidfd]) == "who asks gets no scope"
    finally:
        os.close(pidfd)


def test_started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(HostError, match="no socket was passed"):
        scopes.serve()
