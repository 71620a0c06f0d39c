"""A host made of small files: firmware, a base image, a stand-in for QEMU; a supervisor on it."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import httpx
import trio

from supervisor import app, config
from supervisor.caller import ANYBODY
from supervisor.config import OnStop, Timing
from supervisor.errors import SupervisorError
from supervisor.pb import manager_pb2_grpc, vm_pb2, vm_pb2_grpc
from supervisor.qemu.host import Clock
from supervisor.waiting import Backoff
from tests.support import contract, small_host
from tests.support.guest import Apart, Guest
from tests.support.scenario import Scenario
from tests.support.side_by_side import own_ports

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from supervisor.state.record import Record
    from supervisor.vm.vm import Vm

_CHECKOUT = Path(__file__).parents[2]

#: What a supervisor answers within, even on a machine that is busy with other things.
PATIENCE_S = 60

_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


@attrs.frozen
class Secure:
    """How the clients of a supervisor speak TLS; None: they do not."""

    http: ssl.SSLContext | None = None
    grpc: grpc.ChannelCredentials | None = None


@attrs.frozen
class Supervisor:
    """A running supervisor and clients of it."""

    running: app.Running
    http: httpx.AsyncClient
    channel: grpc.Channel

    @property
    def manager(self) -> manager_pb2_grpc.ManagerServiceStub:
        return manager_pb2_grpc.ManagerServiceStub(self.channel)

    @property
    def vm_service(self) -> vm_pb2_grpc.VmServiceStub:
        return vm_pb2_grpc.VmServiceStub(self.channel)

    def vm(self, vm_id: str) -> Vm:
        return self.running.service.vms.get(vm_id, ANYBODY)

    def only_vm(self) -> Vm:
        (vm,) = self.running.service.vms
        return vm

    async def post(self, computation: bytes, **headers: str) -> httpx.Response:
        """``POST /run``, with the bytes as an array."""
        body = {"computation": list(computation)}
        return await self.http.post("/run", json=body, headers=headers)

    async def run(self, computation: bytes = b"{}") -> dict[str, Any]:
        """A run that must succeed; its answer."""
        answer = await self.post(computation)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def begin(self, computation: bytes = b"{}") -> str:
        """A run that is not waited for; the VM's id."""
        answer = await self.post(computation, Prefer="respond-async")
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def wait_state(self, vm_id: str, *wanted: str) -> None:
        """Return once the VM's state is one of these, by the changes the service tells of."""
        with self.running.service.journal.events.subscribe() as changes:
            while self.vm(vm_id).status.state.value not in wanted:
                await changes.receive()

    async def wait_record(self, vm_id: str, condition: Callable[[Record], bool]) -> None:
        """Return once this is so of the VM's record."""
        vm = self.vm(vm_id)
        await vm.until(lambda: condition(vm.record))

    async def leave(self, *guests: Guest) -> None:
        """Stop, and leave the VMs to the next supervisor: these, and no other."""
        vms = self.running.service.vms
        self.running.stop(OnStop.LEAVE)
        for guest in guests:
            await vms.get(guest.vm_id, ANYBODY).wait_over()
            assert not vms.get(guest.vm_id, ANYBODY).ended

    async def call(self, method: Callable[..., Any], request: object) -> Any:
        """A gRPC call in a thread, so that the supervisor can answer it."""
        return await in_thread(partial(method, request, timeout=PATIENCE_S))


async def in_thread(fn: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(fn)


@asynccontextmanager
async def watching(
    supervisor: Supervisor, vm_id: str = ""
) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """``Watch`` over gRPC: each call of what is yielded waits for the next change."""
    stream = supervisor.vm_service.Watch(vm_pb2.WatchRequest(id=vm_id), timeout=PATIENCE_S)
    try:
        yield partial(in_thread, partial(next, stream))
    finally:
        stream.cancel()


class SetClock(Clock):
    """A clock that a test sets."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def boottime_s(self) -> float:
        return self.now_s


class World:
    """What a supervisor finds on its host. Change ``scenario`` before a VM is started.

    ``image`` is where the base image is to be put.
    """

    def __init__(self, directory: Path, guests: trio.MemoryReceiveChannel[Guest]) -> None:
        self.directory = directory
        self.tmp = directory / "t"
        self.qemu = directory / "qemu"
        self.image = directory / small_host.DISK
        self.ports = free_range()
        #: Of every supervisor here, unless it is started with others.
        self.settings: dict[str, str] = {}
        self.timing = Timing()
        self.clock = Clock()
        self._guests = guests
        #: Left by supervisors of this process, whose children they stay; see `reap`.
        self._left: list[trio.Process] = []
        _write_files(directory, self.qemu)
        self.scenario()

    def hasten(self, **timing: Any) -> None:
        """Have supervisors from now on wait less, or longer, where no setting says how long."""
        self.timing = attrs.evolve(self.timing, **timing)

    def soon(self) -> None:
        """Template builder and pool look all the time, and try at once again what has failed."""
        again = Backoff(0.01, 0.01)
        self.hasten(pool_look_s=0.01, pool_retry=again, template_look_s=0.01, template_retry=again)

    def scenario(self, **behaviour: Any) -> None:
        Scenario(**behaviour).write(self.directory / "scenario.json")

    def environ(self, **settings: str) -> dict[str, str]:
        first, last = self.ports
        return {
            "MANAGER_AUTH": "off",
            "MANAGER_CALLER_RATE": "0",
            "MANAGER_HTTP_PORT": "0",
            "MANAGER_GRPC_PORT": "0",
            **small_host.settings(self.directory, self.qemu, self.tmp),
            "MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{last}",
            **self.settings,
            **settings,
        }

    async def guest(self) -> Guest:
        """The next run of the stand-in that was started and not yet asked for."""
        with trio.fail_after(PATIENCE_S):
            return await self.next_guest()

    async def next_guest(self) -> Guest:
        """The same, however long it takes."""
        guest = await self._guests.receive()
        started = await guest.next()
        assert started["saw"] == "started", started
        guest.vm_id, guest.pid = started["vm"], started["pid"]
        return guest

    @property
    def unasked(self) -> int:
        """Runs of the stand-in that were started and not yet asked for."""
        return self._guests.statistics().current_buffer_used

    def received(self, digest: str) -> bytes:
        """What an agent got that answered with this digest."""
        return (self.directory / f"received-{digest}").read_bytes()

    @asynccontextmanager
    async def serve(
        self, secure: Secure | None = None, /, **settings: str
    ) -> AsyncIterator[Supervisor]:
        """A supervisor with these settings; on leaving it is stopped, without patience.

        Nothing of it may be left then: no task, port or socket. Unless the test had it leave its
        VMs: then these are, for the next one.
        """
        loaded = attrs.evolve(config.load(self.environ(**settings)), timing=self.timing)
        serve = partial(app.serve, loaded, clock=self.clock)
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as nursery:
            running: app.Running = await nursery.start(serve)
            try:
                async with clients(running, secure or Secure()) as supervisor:
                    yield supervisor
            finally:
                self._keep_children(running)
                if not running.leaving.is_set():
                    running.hurry()
                running.stop(OnStop.END)
        assert trio.lowlevel.current_statistics().tasks_living == tasks, "tasks are left"
        left = running.leaving.is_set()
        del running
        # See conftest: grpc.aio's poller serves one loop at a time.
        gc.collect()
        if left:
            return
        assert self.free_again(), "a forwarded port is still in use"
        assert not self.sockets(), "a QMP socket is left"

    def _keep_children(self, running: app.Running) -> None:
        for vm in running.service.vms:
            child = vm.session.qemu._child if vm.session else None
            if child and child.returncode is None:
                self._left.append(child)

    async def reap(self) -> None:
        """Wait for what was left running: a test has to see to its end."""
        for child in self._left:
            await child.wait()
        self._left.clear()

    def kill_left(self) -> None:
        for child in self._left:
            child.kill()

    @asynccontextmanager
    async def serve_apart(self, **settings: str) -> AsyncIterator[Apart]:
        """A supervisor that is a process of its own, and killed on leaving if it still runs."""
        clean = {name: value for name, value in os.environ.items() if "MANAGER_" not in name}
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-m", "supervisor", "serve"],
                    env=clean | self.environ(**settings),
                    stderr=subprocess.PIPE,
                    check=False,
                )
            )
            assert process.stderr
            apart = Apart(process)
            try:
                await nursery.start(apart.read_log)
                async with httpx.AsyncClient(
                    base_url=f"http://localhost:{apart.http_port}",
                    timeout=PATIENCE_S,
                    trust_env=False,
                ) as apart.http:
                    yield apart
            finally:
                process.kill()
        if process.returncode == -signal.SIGKILL:
            for left in self.tmp.glob("*.sock"):  # the next supervisor's to replace
                left.unlink()

    def free_again(self) -> bool:
        """Whether every port a VM may have had can be bound."""
        return all(is_free(port) for port in range(*self.ports))

    def sockets(self) -> list[Path]:
        return list(self.tmp.glob("*/*.sock"))


@asynccontextmanager
async def clients(running: app.Running, secure: Secure) -> AsyncIterator[Supervisor]:
    tls, credentials = secure.http, secure.grpc
    scheme, target = "https" if tls else "http", f"localhost:{running.grpc_port}"
    async with httpx.AsyncClient(
        base_url=f"{scheme}://localhost:{running.http_port}",
        timeout=PATIENCE_S,
        trust_env=False,
        verify=tls or True,
        event_hooks={"response": [contract.check]},
    ) as http:
        with (
            grpc.secure_channel(target, credentials, options=_GRPC_OPTIONS)
            if credentials
            else grpc.insecure_channel(target, options=_GRPC_OPTIONS)
        ) as channel:
            yield Supervisor(running, http, channel)


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    """A world; the stand-ins' connections are closed with it."""
    send, receive = trio.open_memory_channel[Guest](100)
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(directory / "control"))
        listener.listen(100)
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listener, send, stack)
            world = World(directory, receive)
            try:
                yield world
            except BaseException:
                world.kill_left()
                raise
            finally:
                with trio.move_on_after(PATIENCE_S, shield=True) as patience:
                    await world.reap()
                nursery.cancel_scope.cancel()
            assert not patience.cancelled_caught, "processes were left to nobody"


async def _accept(
    listener: trio.socket.SocketType, send: trio.MemorySendChannel[Guest], stack: AsyncExitStack
) -> None:
    while True:
        connection, _ = await listener.accept()
        send.send_nowait(Guest(await stack.enter_async_context(trio.SocketStream(connection))))


def _write_files(directory: Path, qemu: Path) -> None:
    qemu.write_text(
        f"#!{sys.executable} -P\n"
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(_CHECKOUT)!r})\n"
        "from tests.support.scripted_qemu import main\n"
        "main(pathlib.Path(__file__).parent)\n"
    )
    qemu.chmod(0o755)
    small_host.write_firmware(directory)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_range(count: int = 40) -> tuple[int, int]:
    """First and last of so many free ports, below those the system gives out by itself.

    Each of the processes that test side by side has ports of its own to choose from, and so has
    scripts/chaos, which may run beside them: from 22000 on.
    """
    lowest, highest = own_ports(12000, 22000)
    while True:
        first = random.randrange(lowest, highest - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first, first + count - 1


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Somebody else's program on this port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a TIME_WAIT's port too
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors within a group and the groups inside it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def refusal(serving: Any) -> SupervisorError:
    """The error that keeps a supervisor from starting."""
    try:
        async with serving:
            raise AssertionError("it started")
    except* SupervisorError as group:
        (error,) = leaves(group)
    assert isinstance(error, SupervisorError)
    return error
