"""A fleet on one machine: hosts in network namespaces of their own, and real guests.

    scripts/fleet [--hosts 3] [--directory DIR] [--check]

Until Ctrl-C the fleet serves, each host over DIR/<name>/tmp/api.sock. With --check it is put to use
and to the test instead: runs to each host; a member and a server of NATS that are killed; a host
that is cut off, one that is drained. Emulated guests. Run by unshare, whose namespaces go with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx

from supervisor.config import Address
from supervisor.fleet import authority
from supervisor.fleet.authority import Member

_CHECKOUT = Path(__file__).parents[1]
_PATIENCE_S = 180.0
_NET = "10.9.0"
_NAMES = "abcdefgh"


def _do(*words: str) -> None:
    subprocess.run(words, check=True)


@attrs.define
class Host:
    """One host: its namespace, its NATS server if it has one, its supervisor.

    :param settings: of its supervisor, beside those of the fleet
    :param program: of its supervisor, for Python
    """

    member: Member
    directory: Path
    settings: dict[str, str]
    program: tuple[str, ...] = ("-m", "supervisor", "serve")
    pid: int = 0
    nats: subprocess.Popen[bytes] | None = None
    supervisor: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def socket(self) -> Path:
        return self.directory / "tmp" / "api.sock"

    def inside(self, *words: str, log: str, **environ: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("ab") as output:
            return subprocess.Popen(
                ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words],
                env=os.environ | environ,
                stdout=output,
                stderr=output,
                cwd=self.directory,
            )

    def make_namespace(self, number: int) -> None:
        """Its own network, with one wire to the others."""
        keeper = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.pid = keeper.pid
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{self.pid}/ns/net").readlink() == own:
            time.sleep(0.01)
        wire = f"wire{number}"
        _do("ip", "link", "add", wire, "type", "veth", "peer", "eth0", "netns", str(self.pid))
        _do("ip", "link", "set", wire, "master", "fleet", "up")
        enter = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip")
        address = f"{self.member.address.host}/24"
        _do(*enter, "address", "add", address, "dev", "eth0")
        for device in ("lo", "eth0"):
            _do(*enter, "link", "set", device, "up")

    def start_nats(self) -> None:
        program = str(Path(sys.executable).with_name("nats-server"))
        if (self.directory / "nats.conf").exists():
            self.nats = self.inside(
                program, "-c", str(self.directory / "nats.conf"), log="nats.log"
            )

    def start_supervisor(self) -> None:
        lines = (self.directory / "fleet.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines) | {
            **self.settings,
            "MANAGER_QEMU_TMP_FILE_LOC": str(self.directory / "tmp"),
        }
        self.supervisor = self.inside(
            *(sys.executable, *self.program), log="supervisor.log", **settings
        )

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=_PATIENCE_S)

    def cut_off(self) -> None:
        """Nothing leaves or reaches it any more."""
        _do("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", "set", "eth0", "down")

    def join_again(self) -> None:
        _do("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", "set", "eth0", "up")

    def lose(self) -> None:
        """As by a loss of power: supervisor and guests are gone at once."""
        assert self.supervisor
        self.supervisor.kill()
        self.supervisor.wait()
        for one in Path("/proc").iterdir():
            if one.name.isdecimal() and self._is_guest(one):
                os.kill(int(one.name), signal.SIGKILL)

    def _is_guest(self, process: Path) -> bool:
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            return False
        return b"qemu" in command and f"{self.directory}/tmp".encode() in command


def member(number: int) -> Member:
    """One of the fleet, counted from 1."""
    return Member(_NAMES[number - 1], Address(f"{_NET}.{number}", 9022))


def with_guests(one: Member, directory: Path) -> Host:
    """A host with real ones."""
    settings = {
        "MANAGER_FLEET_LABELS": f"host={one.name}",
        "MANAGER_QEMU_DISK_IMG_FILE": str(_CHECKOUT / "img" / "guest.qcow2"),
        "MANAGER_QEMU_MEMORY_SIZE": "512M",
        "MANAGER_QEMU_SMP_COUNT": "2",
        "MANAGER_QEMU_SMP_MAXCPUS": "2",
        "MANAGER_HELD_CLONES": "1",
    }
    return Host(one, directory / one.name, settings)


def open_fleet(directory: Path, made: list[Host], more: tuple[Member, ...] = ()) -> None:
    """Have the hosts be a fleet, each of which answers and knows all others.

    :param more: members that are no hosts; their files are in ``files/`` of the directory
    """
    hosts = len(made)
    _do("mount", "-t", "tmpfs", "none", "/run")  # what would be shared with the machine
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "link", "add", "fleet", "type", "bridge")
    _do("ip", "link", "set", "fleet", "up")
    for number, host in enumerate(made, 1):
        host.make_namespace(number)
    _install(directory, [*(host.member for host in made), *more], made)
    for host in made:
        host.start_nats()
    for host in made:
        host.start_supervisor()
    for host in made:
        _wait(f"{host.name} to know the others", lambda host=host: len(_hosts(host)) == hosts)


def _install(directory: Path, members: list[Member], hosts: list[Host]) -> None:
    """Each host's files, with its own paths in them."""
    shared = directory / "files"
    for host in hosts:
        authority.make(shared, members, installed=host.directory, store=host.directory / "nats")
        host.directory.mkdir(exist_ok=True)
        for file in (shared / host.name).iterdir():
            (host.directory / file.name).write_bytes(file.read_bytes())


def _hosts(host: Host) -> list[dict[str, Any]]:
    try:
        with host.client() as http:
            answer = http.get("/hosts")
    except httpx.TransportError:
        return []
    return list(answer.json()["hosts"]) if answer.status_code == 200 else []


def _wait(what: str, condition: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"fleet: waited for {what} in vain")
        time.sleep(0.2)


# --- the check ------------------------------------------------------------------------------


class Posted(threading.Thread):
    """A run that is not waited for at once."""

    def __init__(self, at: Host, **members: Any) -> None:
        super().__init__(daemon=True)
        self._at = at
        self._members = members
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        with self._at.client() as http:
            self.answer = http.post("/run", json={"computation": "e30=", **self._members})

    def wait(self) -> httpx.Response:
        self.join(_PATIENCE_S)
        if self.answer is None:
            sys.exit(f"fleet: a run at {self._at.name} was not answered")
        return self.answer


def _at(name: str) -> dict[str, Any]:
    return {"host": {"labels": {"host": name}}}


def _vms(host: Host) -> list[dict[str, Any]]:
    with host.client() as http:
        return list(http.get("/vms?purpose=run").json()["vms"])


def _expect(what: str, found: object, wanted: object) -> None:
    print(f"{'ok' if found == wanted else 'NOT'}: {what}", flush=True)
    if found != wanted:
        sys.exit(f"fleet: {what}: {found!r}, not {wanted!r}")


def check(hosts: list[Host]) -> None:
    a, b, c = hosts[:3]
    for host in hosts:
        answer = Posted(a, **_at(host.name)).wait()
        _expect(f"a run posted to a is answered by {host.name}", answer.status_code, 200)
    for host in hosts:
        _expect(f"{host.name} lists all VMs", len(_vms(host)), len(hosts))
    vm_id = next(vm["id"] for vm in _vms(a) if vm["host"] == "c")
    with b.client() as http:
        _expect("c's VM is shown by b", http.get(f"/vms/{vm_id}").json()["id"], vm_id)

    assert b.nats
    b.nats.kill()
    b.nats.wait()
    answer = Posted(a, **_at("c")).wait()
    _expect("a run is answered with one server of NATS less", answer.status_code, 200)
    b.start_nats()

    with c.client() as http:
        drained = http.post("/host/drain", json={}).json()
    _expect("c is drained", drained["draining"], True)
    waiting = Posted(b, **_at("c"))
    time.sleep(2)
    _expect("its runs wait for it", waiting.answer, None)
    with c.client() as http:
        http.post("/host/resume", json={})
    _expect("and are answered once it takes runs again", waiting.wait().status_code, 200)

    b.cut_off()
    _wait("a to hold b for lost", lambda: len(_hosts(a)) == len(hosts) - 1)
    answer = Posted(a, **_at("b")).wait()
    _expect("nobody serves what only a lost host could", answer.status_code, 409)
    b.join_again()
    _wait("b to be back", lambda: len(_hosts(a)) == len(hosts))
    _expect("b answers again", Posted(a, **_at("b")).wait().status_code, 200)

    _check_as_it_boots(hosts)

    c.lose()
    _wait("a to hold c for lost", lambda: len(_hosts(a)) == len(hosts) - 1)
    _expect("a goes on", Posted(a).wait().status_code, 200)
    c.start_supervisor()
    _wait("c to be back", lambda: len(_hosts(a)) == len(hosts))
    _expect("c answers again", Posted(b, **_at("c")).wait().status_code, 200)


def _own(host: Host) -> int:
    """How many runs it has whose VMs have not ended."""
    with host.client() as http:
        vms = http.get("/vms?purpose=run&host=self").json()["vms"]
    return sum(not vm["ended"] for vm in vms)


def _check_as_it_boots(hosts: list[Host]) -> None:
    """What a supervisor is killed with, or stopped with for longer than its lease."""
    a, b, c = hosts[:3]
    cold, before = {"template": "off"}, _own(b)
    posted = Posted(a, **cold, **_at("b"))
    _wait("b to boot a guest", lambda: _own(b) > before)
    assert b.supervisor
    b.supervisor.kill()
    b.supervisor.wait()
    b.start_supervisor()
    _expect("a run outlives the supervisor of its host", posted.wait().status_code, 200)

    for host in (a, c):
        with host.client() as http:
            http.post("/host/drain", json={})
    before = _own(b)
    posted = Posted(a, **cold)
    _wait("b to boot another", lambda: _own(b) > before)
    b.supervisor.send_signal(signal.SIGSTOP)
    for host in (a, c):
        with host.client() as http:
            http.post("/host/resume", json={})
    answer = posted.wait()
    _expect("a run is answered whose host was stopped", answer.status_code, 200)
    b.supervisor.send_signal(signal.SIGCONT)
    _wait("b to end what another host has done", lambda: _own(b) == before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fleet", description=__doc__)
    parser.add_argument("--hosts", type=int, default=3, choices=range(1, len(_NAMES) + 1))
    parser.add_argument("--directory", type=Path, help="where its files are; default: a new one")
    parser.add_argument("--check", action="store_true", help="put it to the test, and end")
    wanted = parser.parse_args()
    with ExitStack() as stack:
        directory = wanted.directory
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        directory.mkdir(exist_ok=True)
        members = [member(number) for number in range(1, wanted.hosts + 1)]
        hosts = [with_guests(one, directory.resolve()) for one in members]
        open_fleet(directory.resolve(), hosts)
        if wanted.check:
            check(hosts)
            return
        for host in hosts:
            print(f"MANAGER_SOCKET={host.socket} qmp-supervisor host ls")
        print("Ctrl-C ends it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
