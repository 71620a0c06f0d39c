"""What a supervisor serves to the other members of its fleet. A host that is alone serves nothing.

Nothing of a fleet's libraries is imported unless there is one.
"""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.api.auth.files import Watched
from supervisor.api.http.connections import serve
from supervisor.api.sockets import bind_tcp, check_pem
from supervisor.errors import HostError
from supervisor.state.journal_id import journal_id
from supervisor.tls import as_tolerant_as_others

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from quart_trio import QuartTrio

    from supervisor.api.fleet.member import Member
    from supervisor.api.http.connections import Settings
    from supervisor.config import Config
    from supervisor.fleet.fleet import Fleet
    from supervisor.qemu.host import Clock
    from supervisor.runs.service import Service


def open_fleet(config: Config, clock: Clock) -> Fleet | None:
    """What this host is a member of; None if it is alone. Blocking.

    :raises HostError: if its files are not what they should be, or a library is missing
    """
    if config.fleet.servers is None:
        return None
    try:
        from supervisor.fleet.fleet import Fleet
        from supervisor.fleet.identity import Identity
    except ModuleNotFoundError as error:
        raise HostError(
            f"MANAGER_FLEET needs {error.name}", advice="pip install 'qmp-supervisor[fleet]'"
        ) from error
    at = config.fleet.directory
    check_pem("fleet", at / "cert.pem", at / "key.pem", at / "ca.pem")
    return Fleet(config, Identity.read(at), clock.boottime_s)


@contextmanager
def bind(fleet: Fleet | None) -> Iterator[socket.socket | None]:
    """Where the other members ask; None without a fleet.

    :raises HostError: if the port is another process's
    """
    if fleet is None:
        yield None
        return
    address = fleet.address
    with bind_tcp("fleet", address.host, address.port, "MANAGER_FLEET_ADDRESS") as listener:
        yield listener


@asynccontextmanager
async def connected(fleet: Fleet | None) -> AsyncIterator[None]:
    """Be connected to the fleet's broker within the body, if there is a fleet."""
    if fleet is None:
        yield
        return
    async with fleet.connected():
        yield


@asynccontextmanager
async def open_member(fleet: Fleet | None, service: Service) -> AsyncIterator[Member | None]:
    """Be a member within the body, if there is a fleet."""
    if fleet is None:
        yield None
        return
    from supervisor.api.fleet.events import FleetEvents
    from supervisor.api.fleet.member import Member
    from supervisor.api.fleet.others import open_others
    from supervisor.api.fleet.runs import FleetRuns

    tls = await trio.to_thread.run_sync(fleet.tls)
    journal = await trio.to_thread.run_sync(journal_id, service.config.qemu.tmp)
    async with open_others(fleet, tls) as others, trio.open_nursery() as nursery:
        nursery.start_soon(fleet.serve, service)
        runs = FleetRuns(fleet, service, others)
        await runs.take_up()
        try:
            yield Member(fleet, others, runs, FleetEvents(service, others, journal))
        finally:
            nursery.cancel_scope.cancel()


async def serve_members(
    app: QuartTrio,
    hypercorn: Settings,
    directory: Path,
    listener: socket.socket,
    over: trio.Event,
    *,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer the other members until the event is set.

    :param hypercorn: as for all servers
    """
    files = [directory / name for name in ("cert.pem", "key.pem", "ca.pem")]
    hypercorn.tls = Watched(files, partial(_server_context, directory))
    hypercorn.bind = [f"fd://{listener.detach()}"]
    await serve(app, hypercorn, shutdown_trigger=over.wait, task_status=task_status)


def _server_context(directory: Path) -> ssl.SSLContext:
    """Who shows no certificate of the fleet's authority gets no answer at all."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    context.set_alpn_protocols(["http/1.1"])
    return as_tolerant_as_others(context)
