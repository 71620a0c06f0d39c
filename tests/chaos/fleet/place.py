"""A fleet of three hosts, within namespaces of this process, and what can be done to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import trio

from scripts.hosts import Host, member, open_fleet
from supervisor.bridge import open_loop
from tests.chaos.fleet.observer import PATIENCE_S, Broken, Observer
from tests.support import small_host
from tests.support.world import World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.guest import Guest

_POLL_S = 0.02
_STORE = "24m"
_CLIENTS, _MEMBERS, _ROUTES = 4222, 9022, 6222
_CLOCKS = struct.Struct("=qqq")
_HERE = Path(__file__).parent


async def wait(so: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once something is so of another process. None tells of it."""
    with trio.move_on_after(patience_s):
        while True:
            if so():
                return
            await trio.sleep(_POLL_S)
    raise Broken(f"waited in vain for {what}")


@attrs.define(eq=False)
class Machine:
    """One host of the fleet, and its guests.

    :ivar guests: all that were started, by their VMs' ids
    """

    host: Host
    world: World
    guests: dict[str, Guest] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def tmp(self) -> Path:
        return self.host.directory / "tmp"

    async def keep_guests(self) -> None:
        """Hear what each tells, until cancelled."""

        async def hear(guest: Guest) -> None:
            while (await guest.next())["saw"] != "end":
                pass

        async with trio.open_nursery() as nursery:
            while True:
                guest = await self.world.next_guest()
                self.guests[guest.vm_id] = guest
                nursery.start_soon(hear, guest)

    async def tell_guests(self, do: str, **more: object) -> None:
        for guest in tuple(self.guests.values()):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await guest.order(do, **more)

    # --- the supervisor ---------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.host.supervisor
        return self.host.supervisor.pid

    @property
    def runs(self) -> bool:
        return self.host.supervisor is not None and self.host.supervisor.poll() is None

    def signal(self, number: int) -> None:
        if self.runs:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.host.supervisor
        self.host.supervisor.wait()

    async def stop(self, *signals: int) -> None:
        """In good order."""
        assert self.host.supervisor
        process = self.host.supervisor
        for number in signals:
            self.signal(number)
        await wait(lambda: process.poll() is not None, f"{self.name}'s supervisor to stop")
        if process.returncode:
            raise Broken(f"{self.name}'s supervisor exits with {process.returncode}")

    async def start(self) -> None:
        """Start it again, until it answers."""
        self.host.start_supervisor()
        await self.wait_answers()

    async def wait_answers(self) -> None:
        with trio.move_on_after(PATIENCE_S):
            while True:
                if not self.runs:
                    raise Broken(f"{self.name}'s supervisor ended as it was started")
                with suppress(httpx.TransportError):
                    if (await self.ask("GET", "/hosts")).status_code == 200:
                        return
                await trio.sleep(_POLL_S)
        raise Broken(f"{self.name}'s supervisor does not answer")

    def client(self) -> httpx.AsyncClient:
        """Over its socket, which no fault of the network reaches."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.host.socket))
        return httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=PATIENCE_S
        )

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async with self.client() as http:
            return await http.request(method, path, **more)

    async def wait_knows(self, hosts: int) -> None:
        """Return once it sees so many, itself among them."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                answer = await self.ask("GET", "/hosts")
                if answer.is_success and len(answer.json()["hosts"]) == hosts:
                    return
                await trio.sleep(0.1)
        raise Broken(f"{self.name} does not see all hosts again")

    def is_stopped(self) -> bool:
        """Whether its supervisor has stopped itself where it was to; see `stop_at`."""
        return not self._stop_at.exists() and self.state == "T"

    def stop_at(self, point: str) -> None:
        draft = self._stop_at.with_suffix(".new")
        draft.write_text(point)
        draft.rename(self._stop_at)

    def pass_all(self) -> None:
        self._stop_at.unlink(missing_ok=True)

    @property
    def _stop_at(self) -> Path:
        return self.host.directory / "stop-at"

    @property
    def state(self) -> str:
        """Of its supervisor's process, as the kernel has it: ``T`` if it is stopped."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[0]

    def points(self) -> list[tuple[str, str]]:
        """What it has passed: the name and the run."""
        lines = (self.host.directory / "points").read_text().splitlines()
        return [(" ".join(line.split()[1:-1]), line.split()[-1]) for line in lines]

    # --- its network ------------------------------------------------------------------------

    def filter(self, *rules: str) -> None:
        """:param rules: of nft, each after the name of its chain: ``in`` or ``out``"""
        chains = "".join(
            f"add chain inet chaos {name} {{ type filter hook {hook} priority 0; }}\n"
            for name, hook in (("in", "input"), ("out", "output"))
        )
        added = "".join(f"add rule inet chaos {rule}\n" for rule in rules)
        self._nft(f"add table inet chaos\n{chains}{added}")

    def unfilter(self) -> None:
        self._nft("add table inet chaos\ndelete table inet chaos\n")

    def _nft(self, text: str) -> None:
        command = ["nsenter", f"--net=/proc/{self.host.pid}/ns/net", "nft", "-f", "-"]
        subprocess.run(command, input=text, text=True, check=True)

    def listens(self) -> list[int]:
        """The ports of its VMs that somebody listens on."""
        lines = Path(f"/proc/{self.host.pid}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        ports = [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"]
        first, last = self.world.ports
        return [port for port in ports if first <= port <= last]

    def connected_to(self) -> str:
        """The address of the NATS server that its supervisor has; empty if it has none."""
        lines = Path(f"/proc/{self.host.pid}/net/tcp").read_text().splitlines()[1:]
        for row in (line.split() for line in lines):
            address, _, port = row[2].partition(":")
            if row[3] == "01" and int(port, 16) == _CLIENTS:
                return ".".join(str(one) for one in reversed(bytes.fromhex(address)))
        return ""

    # --- all of it --------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """All in its namespace, but for the one that keeps it."""
        own = os.readlink(f"/proc/{self.host.pid}/ns/net")
        found = []
        for one in os.listdir("/proc"):
            with suppress(OSError):
                if one.isdecimal() and os.readlink(f"/proc/{one}/ns/net") == own:
                    found.append(int(one))
        return [one for one in found if one != self.host.pid]

    def signal_all(self, number: int) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def qemus(self) -> dict[int, str]:
        """Processes that have something of a VM on their command line."""
        found, needle = {}, os.fsencode(self.tmp) + b"/"
        for pid in self.processes():
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if needle in line:
                    found[pid] = line.replace(b"\0", b" ").decode(errors="replace")[:120]
        return found

    def records(self) -> dict[str, dict[str, Any]]:
        """Each VM's record as it is on the disk."""
        found = {}
        for file in self.tmp.glob("*/vm.json"):
            with suppress(OSError, ValueError):
                found[file.parent.name] = json.loads(file.read_text())["vm"]
        return found

    def received(self) -> list[tuple[str, str]]:
        """VM and digest of each computation that an agent here got."""
        try:
            lines = (self.host.directory / "received").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(line.split()[0], line.split()[1]) for line in lines]

    # --- its NATS ---------------------------------------------------------------------------

    def kill_nats(self) -> None:
        assert self.host.nats
        self.host.nats.kill()
        self.host.nats.wait()

    @property
    def store(self) -> Path:
        return self.host.directory / "nats"

    def fill_store(self) -> None:
        with (self.store / "filler").open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty_store(self) -> None:
        (self.store / "filler").unlink()

    def set_clocks(self, real_s: float = 0, boot_s: float = 0, monotonic_s: float = 0) -> None:
        """How far its supervisor's are ahead."""
        if shutil.which("cc") is None:
            raise Broken("no clock can be set without cc, a program of Debian's package gcc")
        numbers = (round(one * 1e9) for one in (real_s, boot_s, monotonic_s))
        with (self.host.directory / "clocks").open("r+b") as file:
            file.write(_CLOCKS.pack(*numbers))


@attrs.define
class Place:
    """The fleet, by the hosts' names."""

    machines: dict[str, Machine]
    observer: Observer

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    def at(self, address: str) -> Machine | None:
        return next((one for one in self if one.host.member.address.host == address), None)


def _do(*words: str) -> None:
    subprocess.run(words, check=True)


def _build_clock(directory: Path) -> dict[str, str]:
    """What preloads it; nothing without a compiler."""
    if shutil.which("cc") is None:
        return {}
    made = directory / "clock.so"
    _do("cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(_HERE / "clock.c"))
    return {"LD_PRELOAD": str(made)}


@asynccontextmanager
async def open_place(directory: Path, *, careless: bool = False) -> AsyncIterator[Place]:
    """A fleet below this directory. This process has namespaces of its own already."""
    clock = _build_clock(directory)
    small_host.write_files(directory)
    observer = Observer()
    async with AsyncExitStack() as stack:
        made = [
            await _machine(one, directory, clock, stack, careless=careless) for one in (1, 2, 3)
        ]
        machines = {one.name: one for one in made}
        hosts = [one.host for one in made]
        async with open_loop(), trio.open_nursery() as nursery:
            for one in made:
                nursery.start_soon(one.keep_guests)
            observes = attrs.evolve(member(4), name="observer")
            try:
                await trio.to_thread.run_sync(open_fleet, directory, hosts, (observes,))
                _do("ip", "address", "add", f"{observes.address.host}/24", "dev", "fleet")
                servers = tuple(f"nats://{one.member.address.host}:{_CLIENTS}" for one in hosts)
                files = directory / "files" / "observer"
                nursery.start_soon(observer.engine.keep_connected, servers, files)
                nursery.start_soon(observer.watch_runs)
                nursery.start_soon(observer.watch_hosts)
                await observer.changed.until(lambda: len(observer.hosts) == len(hosts))
                yield Place(machines, observer)
            finally:
                nursery.cancel_scope.cancel()


async def _machine(
    number: int, directory: Path, clock: dict[str, str], stack: AsyncExitStack, *, careless: bool
) -> Machine:
    one = member(number)
    at = directory / one.name
    (at / "nats").mkdir(parents=True)
    _do("mount", "-t", "tmpfs", "-o", f"size={_STORE}", "none", str(at / "nats"))
    (at / "clocks").write_bytes(_CLOCKS.pack(0, 0, 0))
    world = await stack.enter_async_context(open_world(at))
    shutil.copyfile(directory / small_host.DISK, world.image)
    settings = world.environ(
        MANAGER_FLEET_LABELS=f"zone={'north' if number == 1 else 'south'}",
        MANAGER_TEMPLATES="off",
        MANAGER_MEMORY_OVERCOMMIT="1000",
        MANAGER_VCPU_OVERCOMMIT="1000",
        MANAGER_POWERDOWN_GRACE="100ms",
        CHAOS_CLOCK=str(at / "clocks"),
        **clock,
    )
    program = ("-m", "tests.chaos.fleet.member", str(at), *(["careless"] if careless else []))
    return Machine(Host(one, at, settings, program), world)
