"""The VMs' nursery: opened around the servers, closed after them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.runs.service import Service
from supervisor.state import recovery
from supervisor.state.journal import Journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from supervisor.config import Config
    from supervisor.qemu.host import Host
    from supervisor.state.store import Store


log = structlog.stdlib.get_logger()

#: Before housekeeping that has failed is taken up again: no descriptor, no thread, a bug.
_AGAIN_S = 10.0


@asynccontextmanager
async def open_service(config: Config, host: Host, store: Store) -> AsyncIterator[Service]:
    """A service that has taken up what an earlier one left.

    Leaving the context, cancelled or not, leaves the VMs running that `Service.end_all` has
    not ended.
    """
    async with trio.open_nursery() as nursery:
        closing = trio.Event()
        service: Service = await nursery.start(_house, config, host, store, closing)
        try:
            yield service
        finally:
            closing.set()


async def _run_housekeeping(task: Callable[[], Awaitable[None]]) -> None:
    """What goes wrong beside the VMs is not to take them down, nor to end what is done there."""
    while True:
        try:
            return await task()
        except Exception as error:
            log.error("bug in housekeeping", again_in_s=_AGAIN_S, exc_info=error)
        await trio.sleep(_AGAIN_S)


async def _house(
    config: Config,
    host: Host,
    store: Store,
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[Service],
) -> None:
    """The VMs' nursery, in a task of its own: shielded, for it outlives what uses it."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        recovered = await recovery.look(config, store)
        journal = Journal(store, recovered.sequence)
        service = Service(config, host, journal, nursery)
        await recovery.announce(recovered, journal)
        service.inherit(recovered)
        for task in service.housekeeping:
            nursery.start_soon(_run_housekeeping, task)
        task_status.started(service)
        await closing.wait()
        with trio.move_on_after(config.shutdown.longest_s):
            await service.leave_all()
        journal.events.close()
        nursery.cancel_scope.cancel()
