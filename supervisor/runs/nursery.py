"""The VMs' nursery: opened around the servers, closed after them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.runs import retention
from supervisor.runs.held_clones import HeldClones
from supervisor.runs.pool import Pool
from supervisor.runs.service import Service
from supervisor.runs.template_builder import TemplateBuilder
from supervisor.runs.vms import Vms
from supervisor.state import recovery
from supervisor.state.journal import Journal
from supervisor.vm.ownership import Alone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from supervisor.config import Config
    from supervisor.qemu.host import Host
    from supervisor.state.store import Store
    from supervisor.vm.ownership import Ownership


log = structlog.stdlib.get_logger()


@asynccontextmanager
async def open_service(
    config: Config,
    host: Host,
    store: Store,
    ownership: Ownership | None = None,
    *,
    serves: bool = True,
) -> AsyncIterator[Service]:
    """A service that has adopted what an earlier one left.

    :param ownership: what a fleet knows of the runs; None: there is none
    :param serves: whether runs may come: else nothing is made ready for them

    Leaving the context, cancelled or not, leaves the VMs running that `Vms.end_all` has not
    ended.
    """
    async with trio.open_nursery() as nursery:
        closing = trio.Event()
        service: Service = await nursery.start(
            _hold, config, host, store, ownership or Alone(), closing, serves
        )
        try:
            yield service
        finally:
            closing.set()


async def _hold(
    config: Config,
    host: Host,
    store: Store,
    ownership: Ownership,
    closing: trio.Event,
    serves: bool,
    *,
    task_status: trio.TaskStatus[Service],
) -> None:
    """The VMs' nursery, in a task of its own: shielded, for it outlives what uses it."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        recovered = await recovery.recover(config, host.clock, store)
        journal = Journal(store, recovered.sequence, config.timing.reader_buffer)
        vms = Vms(config, host, journal, nursery, ownership)
        pool = Pool(vms)
        held = HeldClones(vms, pool)
        service = Service(vms, pool, held)
        await recovery.announce(recovered, journal)
        for vm in vms.adopt(recovered):
            if vm.record.awaits_answer:
                vms.spawn(service.measure, vm)
        builder = TemplateBuilder(vms, (pool.changed, held.changed))
        forget = partial(retention.keep_within_limits, vms)
        for task in (forget, *((builder.keep, pool.keep, held.keep) if serves else ())):
            nursery.start_soon(_run_housekeeping, task, config.timing.housekeeping_retry_s)
        task_status.started(service)
        await closing.wait()
        with trio.move_on_after(config.shutdown.longest_s):
            await vms.leave_all()
        journal.events.close()
        await vms.dialled.close()
        nursery.cancel_scope.cancel()


async def _run_housekeeping(task: Callable[[], Awaitable[None]], retry_s: float) -> None:
    """What goes wrong beside the VMs must neither take them down nor end the housekeeping."""
    while True:
        try:
            return await task()
        except Exception as error:
            # No descriptor, no thread, a bug.
            log.error("bug in housekeeping", again_in_s=retry_s, exc_info=error)
        await trio.sleep(retry_s)
