"""The composition root. Parts stop in the reverse order of their nesting.

The asyncio loop is outermost, because QMP and gRPC need it to the end. Inside it is the VMs'
nursery, and inside that are the servers. So the VMs' tasks end after the last request.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio

from supervisor import doctor, membership, spans, systemd
from supervisor.api.auth.door import Door, MemberDoor
from supervisor.api.gate import Gate
from supervisor.api.grpc import server as grpc_server
from supervisor.api.http.app import create_app
from supervisor.api.http.connections import serve as hypercorn_serve
from supervisor.api.http.hypercorn import hypercorn_settings
from supervisor.api.http.web_pages import Hosts, names_of
from supervisor.api.sockets import bind_tcp, bind_unix, check_exposure, watched_tls
from supervisor.at_start import access_paths, examine, on_this_host
from supervisor.bridge import open_loop
from supervisor.config import WITHOUT_EFFECT, OnStop
from supervisor.qemu import confine
from supervisor.qemu.host import Clock, Host, is_shutting_down
from supervisor.runs.nursery import open_service
from supervisor.state.store import Store, locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.api.auth.files import Watched
    from supervisor.api.fleet.member import Member
    from supervisor.api.http.connections import Settings
    from supervisor.config import Config
    from supervisor.fleet.fleet import Fleet
    from supervisor.runs.service import Service

log = structlog.stdlib.get_logger()


@attrs.frozen
class Running:
    """A supervisor whose servers answer.

    :param watched: files that are read again on SIGHUP
    :param stopping: set by `stop`
    :param leaving: set by `stop` if the VMs are left running
    """

    service: Service
    fleet: Fleet | None
    door: Door
    watched: Sequence[Watched[Any]]
    gate: Gate
    http_port: int
    grpc_port: int
    stopping: trio.Event
    leaving: trio.Event

    def stop(self, what: OnStop) -> None:
        """Begin to stop. The VMs are ended first, or left to the next supervisor."""
        if what is OnStop.LEAVE:
            self.leaving.set()
        self.stopping.set()

    def reload(self) -> None:
        """Read certificates, tokens and names again. What changed was read again anyhow."""
        for files in self.watched:
            files.reload()

    def hurry(self) -> None:
        """Do not wait for the guests any more, once `stop` was called."""
        self.service.vms.hurry()


async def power_off(config: Config) -> None:
    """End the VMs that a supervisor has left, as its SIGINT would, and serve nobody.

    While the host shuts down, VMs with a restart policy are left to it.

    :raises HostError: if a supervisor runs, or the host does not offer what the settings require
    """
    _tune_process()
    config = await trio.to_thread.run_sync(on_this_host, config)
    host = await trio.to_thread.run_sync(examine, config, Clock())
    tmp = config.qemu.tmp
    with locked(tmp, "it ends its VMs itself on SIGINT; qmp-supervisor shutdown ends some of them"):
        opened = open_service(config, host, Store(tmp), serves=False)
        async with open_loop(), opened as service:
            with trio.move_on_after(config.shutdown.longest_s):
                if await is_shutting_down():
                    await service.vms.leave_all()
                else:
                    await service.vms.end_all()


async def serve(
    config: Config,
    *,
    clock: Clock | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until stopped. Both servers answer when ``started`` is called.

    :raises HostError: if the host does not offer what the settings require
    """
    config = await trio.to_thread.run_sync(on_this_host, config)
    host = await trio.to_thread.run_sync(examine, config, clock or Clock())
    await serve_on(host, config, task_status=task_status)


async def serve_on(
    host: Host,
    config: Config,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until stopped, on a host that was examined.

    :param config: as `on_this_host` answers it
    :raises HostError: if nobody could know who calls, or a port, socket or certificate is not fit
    """
    door = await trio.to_thread.run_sync(open_door, config)
    hypercorn = hypercorn_settings(config)
    for name in config.without_effect:
        log.warning("setting without an effect", name=name, instead=WITHOUT_EFFECT[name])
    with spans.sending(config.jaeger_url):
        await _serve_traced(host, config, door, hypercorn, task_status)


async def _serve_traced(
    host: Host,
    config: Config,
    door: Door,
    hypercorn: Settings,
    task_status: trio.TaskStatus[Running],
) -> None:
    async with open_loop() as loop:
        # With the loop's own handler one stray callback of a library would end the supervisor.
        loop.set_exception_handler(_log_stray)
        tmp = config.qemu.tmp
        http, paths, group = config.http, access_paths(config), config.access.socket_group
        tls = watched_tls("gRPC", config.grpc, partial(grpc_server.certificates, config.grpc))
        # The ports first: a supervisor that cannot serve starts no template and takes up no VM.
        fleet = await trio.to_thread.run_sync(membership.open_fleet, config, host.clock)
        gate = Gate(config.callers, tmp)
        hypercorn.per_caller = gate.connections()
        with (
            locked(tmp),
            gate.open(),
            bind_tcp("HTTP", http.host, http.port, "MANAGER_HTTP") as listener,
            bind_unix(paths.socket, group, "MANAGER_SOCKET") as local,
            bind_unix(paths.grpc_socket, group, "MANAGER_GRPC_SOCKET") as local_grpc,
            membership.bind(fleet) as for_members,
        ):
            # Connections inherit it. Hypercorn waits for a client to read for ever, even when it
            # stops.
            unread_ms = int(config.timing.http_unread_s * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
            port = listener.getsockname()[1]
            async with (
                grpc_server.bind(config.grpc, door, gate, tls, tmp) as bound,
                membership.connected(fleet),
                open_service(config, host, Store(tmp), fleet.owner if fleet else None) as service,
                membership.open_member(fleet, service) as member,
                bound.serve(service, gate, local_grpc, member) as calls,
            ):
                for collector in (gate.requests, *(fleet.collectors() if fleet else ())):
                    service.metrics.registry.register(collector)
                watched = [*door.watched, *(one for one in (hypercorn.tls, tls) if one)]
                running = Running(
                    service,
                    fleet,
                    door,
                    watched,
                    gate,
                    port,
                    bound.port,
                    trio.Event(),
                    trio.Event(),
                )
                hypercorn.bind = [f"fd://{one.detach()}" for one in (listener, local)]
                asked = None
                if member and for_members:
                    asked = attrs.evolve(member, calls=calls), for_members
                await _serve_http(config, hypercorn, running, member, asked, task_status)


def _log_stray(_: object, context: dict[str, Any]) -> None:
    log.error("stray asyncio error", problem=context["message"], exc_info=context.get("exception"))


async def _serve_http(
    config: Config,
    hypercorn: Settings,
    running: Running,
    member: Member | None,
    asked: tuple[Member, socket.socket] | None,
    task_status: trio.TaskStatus[Running],
) -> None:
    """:param asked: what the other members ask, and where"""
    hosts = Hosts([*config.http.names, *await trio.to_thread.run_sync(_certified, config)])
    instance_id = config.instance_id or str(uuid.uuid4())
    check = partial(doctor.examine, config, serves=True)
    service, gate = running.service, running.gate
    async with trio.open_nursery() as nursery:
        over = trio.Event()
        app = create_app(service, instance_id, running.door, gate, hosts, check, member)
        if asked:
            inner, listener = asked
            settings, door = hypercorn_settings(config), MemberDoor(inner.fleet)
            settings.per_caller = gate.connections()
            known = Hosts([inner.fleet.address.host])
            for_members = create_app(service, instance_id, door, gate, known, check, inner)
            serve_members = partial(membership.serve_members, for_members, settings)
            await nursery.start(serve_members, config.fleet.directory, listener, over)
        served = partial(hypercorn_serve, app, hypercorn, shutdown_trigger=over.wait)
        await nursery.start(served)
        nursery.start_soon(systemd.tell, running.service, over)
        log.info("ready", http_port=running.http_port, grpc_port=running.grpc_port)
        task_status.started(running)
        await running.stopping.wait()
        # Before the servers stop, so that callers who wait for a VM are told how it ended.
        with trio.move_on_after(config.shutdown.longest_s):
            leaves = running.leaving.is_set()
            await (service.vms.leave_all() if leaves else service.vms.end_all())
        # Readers of events have got the last event: their streams end in good order.
        running.service.journal.events.close()
        over.set()


def _certified(config: Config) -> list[str]:
    """The host names in the certificate of the HTTP API. Blocking."""
    return names_of(config.http.server_cert) if config.http.server_cert else []


def open_door(config: Config) -> Door:
    """What knows who calls. Blocking.

    :raises HostError: if a server would serve strangers, or a file is not what it should be
    """
    door = Door(config.auth, config.access, access_paths(config).tokens)
    check_exposure(config, knows_tokens=door.knows_tokens)
    return door


#: ``M_MMAP_THRESHOLD`` of mallopt(3), and what is large: a body's part is not, a computation is.
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 256 * 1024


def _return_large_blocks() -> None:
    """Have the C library give large blocks back to the kernel as soon as they are free.

    glibc does so at first, and raises the limit at each of them: after a few computations the rest
    come from heaps, which keep what lies between blocks that are still in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # musl has none, and needs none
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def _tune_process() -> None:
    """Fit this process for a thousand VMs, and for what they entrust to it."""
    confine.forbid_core_files()
    # Computations, replies, disks: every file that is made here is for nobody else.
    os.umask(0o077)
    # Each VM takes three descriptors, and the soft limit is often 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _return_large_blocks()
    # A garbage collection stops everything while it visits its objects. Objects from the start are
    # frozen, and later objects have few reference cycles, so a full one may run rarely. Of the
    # middle generation 400,000 objects took 0.2 s, and 100,000 took 45 ms.
    gc.freeze()
    gc.set_threshold(5_000, 10, 200)
    # How long a thread may hold the interpreter. Worker threads that write records must not delay
    # the loop for longer than a request takes.
    sys.setswitchinterval(0.0005)


async def main(config: Config) -> None:
    """Serve until SIGINT or SIGTERM. After a second signal, do not wait for the guests.

    SIGHUP has files that say who may call read again.
    """
    _tune_process()
    signals_taken = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    actions: dict[int, OnStop] = {
        signal.SIGINT: config.stop.on_sigint,
        signal.SIGTERM: config.stop.on_sigterm,
    }
    with trio.open_signal_receiver(*signals_taken) as signals:
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(_serve_then_cancel, config, nursery)
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    running.reload()
                elif running.stopping.is_set():
                    log.warning("stopping at once", signal=name)
                    running.hurry()
                else:
                    log.info("stopping", signal=name, vms=actions[number])
                    running.stop(actions[number])


async def _serve_then_cancel(
    config: Config, nursery: trio.Nursery, *, task_status: trio.TaskStatus[Running]
) -> None:
    await serve(config, task_status=task_status)
    nursery.cancel_scope.cancel()
