"""The composition root. Parts stop in the reverse order of their nesting.

The asyncio loop is outermost, because QMP and gRPC need it to the end. Inside it is the VMs'
nursery, and inside that are the servers. So the VMs' tasks end after the last request.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import structlog
import trio
from hypercorn.config import Config as HypercornConfig

from supervisor.api.grpc.server import bind as bind_grpc
from supervisor.api.http.app import create_app
from supervisor.api.http.connections import serve as hypercorn_serve
from supervisor.api.sockets import bind_tcp, check_pem, open_to_all
from supervisor.bridge import open_loop
from supervisor.config import OnStop
from supervisor.errors import HostError, LaunchError
from supervisor.qemu import accel, confine, firmware, network, trial
from supervisor.qemu.host import Clock, Host
from supervisor.runs.nursery import open_service
from supervisor.state.store import Store, locked
from supervisor.state.tmp_dir import check_tmp
from supervisor.state.vm_dir import check_image

if TYPE_CHECKING:
    from supervisor.config import Config
    from supervisor.runs.service import Service

log = structlog.stdlib.get_logger()


@attrs.frozen
class Running:
    """A supervisor whose servers answer.

    :param stopping: set by `stop`
    :param leaving: set by `stop` if the VMs are left running
    """

    service: Service
    http_port: int
    grpc_port: int
    stopping: trio.Event
    leaving: trio.Event

    def stop(self, what: OnStop) -> None:
        """Begin to stop. The VMs are ended first, or left to the next supervisor."""
        if what is OnStop.LEAVE:
            self.leaving.set()
        self.stopping.set()

    def hurry(self) -> None:
        """Do not wait for the guests any more, once `stop` was called."""
        self.service.vms.hurry()


def on_this_host(config: Config) -> Config:
    """The configuration with this host's firmware and the resolved path of tmp/. Blocking."""
    qemu = config.qemu
    chosen = firmware.choose(qemu, firmware.read_descriptors())
    # Resolved, because a VM is found again by the path on its command line.
    qemu = attrs.evolve(qemu, tmp=Path(os.path.realpath(qemu.tmp)), firmware=chosen)
    return attrs.evolve(config, qemu=qemu)


def examine(config: Config, clock: Clock) -> Host:
    """Check this host against the settings. Blocking. Logs a warning for each thing VMs will lack.

    :raises HostError: if the host does not offer what the settings require
    """
    check_tmp(config.qemu.tmp)
    agent = config.agent
    check_pem("TLS to agents", agent.client_cert, agent.client_key, agent.ca_certs)
    for name, server in (("HTTP", config.http), ("gRPC", config.grpc)):
        check_pem(name, server.server_cert, server.server_key, server.client_ca_certs)
    qemu = accel.find_qemu(config.qemu)
    decided, warnings = accel.decide(config.qemu, qemu)
    trial.check(config.qemu, qemu, decided)
    trial.look_at(qemu, sudo=config.qemu.use_sudo)  # now, and not while the first run waits
    descriptors = firmware.read_descriptors()
    if problem := firmware.mismatch(config.qemu.firmware, descriptors):
        raise HostError(problem.detail, advice=problem.advice)
    try:
        firmware.check_pair(config.qemu.firmware, descriptors)
        check_image(config.qemu.disk)
    except LaunchError as error:
        # No error: the missing file can be added while the supervisor runs. Until then each run
        # fails with this error.
        warnings.append(str(error))
    if danger := network.danger(config.qemu.net):
        warnings.append(str(danger))
    for warning in [*warnings, *open_to_all(config)]:
        log.warning(warning)
    return Host(qemu, config.qemu.use_sudo, decided, clock)


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
    hypercorn = _hypercorn(config)
    if config.jaeger_url:
        log.warning("MANAGER_JAEGER_URL is set, but there is no tracing yet")
    async with open_loop() as loop:
        # With the loop's own handler one stray callback of a library would end the supervisor.
        loop.set_exception_handler(_log_stray)
        tmp = config.qemu.tmp
        http = config.http
        # The ports first: a supervisor that cannot serve starts no template and takes up no VM.
        with locked(tmp), bind_tcp("HTTP", http.host, http.port, "MANAGER_HTTP") as listener:
            # Connections inherit it. Hypercorn waits for a client to read for ever, even when it
            # stops.
            unread_ms = int(config.timing.http_unread_s * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
            port = listener.getsockname()[1]
            async with (
                bind_grpc(config.grpc) as bound,
                open_service(config, host, Store(tmp)) as service,
                bound.serve(service),
            ):
                running = Running(service, port, bound.port, trio.Event(), trio.Event())
                await _serve_http(config, hypercorn, listener, running, task_status)


def _log_stray(_: object, context: dict[str, Any]) -> None:
    log.error("stray asyncio error", problem=context["message"], exc_info=context.get("exception"))


async def _serve_http(
    config: Config,
    hypercorn: HypercornConfig,
    listener: socket.socket,
    running: Running,
    task_status: trio.TaskStatus[Running],
) -> None:
    app = create_app(running.service, config.instance_id or str(uuid.uuid4()))
    async with trio.open_nursery() as nursery:
        hypercorn.bind = [f"fd://{listener.detach()}"]
        over = trio.Event()
        served = partial(hypercorn_serve, app, hypercorn, shutdown_trigger=over.wait)
        await nursery.start(served)
        log.info("ready", http_port=running.http_port, grpc_port=running.grpc_port)
        task_status.started(running)
        await running.stopping.wait()
        # Before the servers stop, so that callers who wait for a VM are told how it ended.
        with trio.move_on_after(config.shutdown.longest_s):
            if running.leaving.is_set():
                await running.service.vms.leave_all()
            else:
                await running.service.vms.end_all()
        # Readers of events have got the last event: their streams end in good order.
        running.service.journal.events.close()
        over.set()


def _hypercorn(config: Config) -> HypercornConfig:
    """Hypercorn's settings, except the socket."""
    http = config.http
    hypercorn = HypercornConfig()
    hypercorn.include_server_header = False
    hypercorn.graceful_timeout = 1
    hypercorn.keep_alive_timeout = config.timing.http_idle_s
    hypercorn.keep_alive_max_requests = 2**31  # pollers keep their connection open
    hypercorn.loglevel = "WARNING"
    hypercorn.errorlog = logging.getLogger("hypercorn.error")  # so that our formatter writes it
    if http.server_cert:
        hypercorn.certfile = str(http.server_cert)
        hypercorn.keyfile = str(http.server_key)
    if http.client_ca_certs:
        hypercorn.ca_certs = str(http.client_ca_certs)
        hypercorn.verify_mode = ssl.CERT_REQUIRED
    return hypercorn


def _tune_process() -> None:
    """Fit this process for a thousand VMs, and for what they entrust to it."""
    confine.forbid_core_files()
    # Computations, replies and disks: what is made here belongs to the supervisor's user alone.
    os.umask(0o077)
    # Each VM takes three descriptors, and the soft limit is often 1024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # A full garbage collection stops everything while it visits all objects. Objects from the
    # start are frozen, and later objects have few reference cycles, so it may run rarely.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    # How long a thread may hold the interpreter. Worker threads that write records must not delay
    # the loop for longer than a request takes.
    sys.setswitchinterval(0.0005)


async def main(config: Config) -> None:
    """Serve until SIGINT or SIGTERM. After a second signal, do not wait for the guests."""
    _tune_process()
    actions: dict[int, OnStop] = {
        signal.SIGINT: config.stop.on_sigint,
        signal.SIGTERM: config.stop.on_sigterm,
    }
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(_serve_then_cancel, config, nursery)
            async for number in signals:
                name = signal.Signals(number).name
                if running.stopping.is_set():
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
