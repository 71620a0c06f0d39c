"""All VMs of one supervisor: admission, run, list, end. Owns the nursery they live in."""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor.broadcast import Broadcast
from supervisor.config import MAX_COMPUTATION
from supervisor.ending import EndMode
from supervisor.errors import (
    AtCapacity,
    Busy,
    InvalidRequest,
    Stopping,
    SupervisorError,
    TooLarge,
    VmNotFound,
)
from supervisor.metrics import Metrics
from supervisor.ports import PortPool
from supervisor.vm import Vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.config import Config
    from supervisor.launch import Host
    from supervisor.runstate import Change

log = structlog.stdlib.get_logger()

#: Changes of state that a reader may lag behind before it is cut off.
_READER_BUFFER = 256


class Service:
    """The VMs, by id, in the order of their start. ``changes`` tells of each new state."""

    def __init__(self, config: Config, host: Host, nursery: trio.Nursery) -> None:
        self.config = config
        self.host = host
        self.vms: dict[str, Vm] = {}
        self.changes: Broadcast[Change] = Broadcast(_READER_BUFFER)
        self.metrics = Metrics(self.count_by_state)
        self._closing = False
        self._nursery = nursery
        self._ports = PortPool(config.qemu.net)

    def get(self, vm_id: str) -> Vm:
        """:raises VmNotFound:"""
        try:
            return self.vms[vm_id]
        except KeyError:
            raise VmNotFound(vm_id) from None

    async def run(self, computation: bytes) -> Vm:
        """A VM whose agent has answered the computation.

        Cancelled or failing, the VM is ended; what is known of it stays until it is deleted.

        :raises SupervisorError:
        """
        vm = self._admit(computation)
        try:
            await self._run(vm, computation)
        finally:
            if not vm.rundir.path.exists():
                # Refused before there was anything to look into later.
                self.vms.pop(vm.id, None)  # a DELETE may have been faster
        return vm

    def submit(self, computation: bytes) -> Vm:
        """The same without waiting: the VM tells how far it has come.

        :raises SupervisorError: if it is not admitted
        """
        vm = self._admit(computation)
        self._nursery.start_soon(self._run_detached, vm, computation)
        return vm

    async def end(self, vm: Vm, mode: EndMode) -> None:
        """Return once the VM has ended. Being cancelled does not call the end off."""
        vm.ask_to_end(mode)
        await vm.wait_ended()

    async def delete(self, vm: Vm) -> None:
        """End the VM by force if need be, and remove its directory and all trace of it.

        Being cancelled does not leave it half done.
        """
        done = trio.Event()

        async def finish() -> None:
            await self.end(vm, EndMode.FORCE)
            await vm.rundir.remove()
            self.vms.pop(vm.id, None)
            done.set()

        self._nursery.start_soon(finish)
        await done.wait()

    def count_by_state(self) -> Counter[str]:
        return Counter(vm.status.state.value for vm in self.vms.values())

    def hurry(self) -> None:
        """End every VM now, without asking the guests."""
        for vm in self.vms.values():
            vm.ask_to_end(EndMode.FORCE)

    async def end_all(self) -> None:
        """Admit no VM any more, and return once none runs. All graces run at the same time."""
        self._closing = True
        running = [vm for vm in self.vms.values() if not vm.ended]
        if running:
            log.info("ending all VMs", vms=[vm.id for vm in running])
        for vm in running:
            vm.ask_to_end(EndMode.GRACEFUL)
        for vm in running:
            await vm.wait_ended()

    def _admit(self, computation: bytes) -> Vm:
        if not computation:
            raise InvalidRequest("computation is empty", member="computation")
        if len(computation) > MAX_COMPUTATION:
            raise TooLarge(
                f"computation is {len(computation)} bytes, the limit is {MAX_COMPUTATION}",
                member="computation",
            )
        if self._closing:
            raise Stopping
        running = [vm for vm in self.vms.values() if not vm.ended]
        if len(running) >= self.config.limits.max_vms:
            raise AtCapacity(self.config.limits.max_vms)
        url = self.config.agent.url
        if running and not url.is_loopback and url.port is not None:
            raise Busy(
                f"VM {running[0].id} has the only agent there is, at {url}: end it first,"
                " or set MANAGER_AGENT_GRPC_URL so that each VM has its own"
            )
        vm = Vm(str(uuid.uuid4()), self.config, self.host, self._ports, self.changes.send)
        self.vms[vm.id] = vm
        return vm

    async def _run(self, vm: Vm, computation: bytes) -> None:
        with self.metrics.run():
            await self._nursery.start(self._supervise, vm)
            try:
                await vm.relay(computation)
            except BaseException:
                vm.ask_to_end(EndMode.FORCE)
                # Who hears of the failure finds nothing left behind; who went away waits no more.
                await vm.wait_ended()
                raise

    async def _run_detached(self, vm: Vm, computation: bytes) -> None:
        try:
            await self._run(vm, computation)
        except SupervisorError as error:
            log.warning("run failed", vm=vm.id, problem=str(error))
        except Exception as error:
            log.error("bug in a run", vm=vm.id, exc_info=error)

    async def _supervise(self, vm: Vm, *, task_status: trio.TaskStatus[Vm]) -> None:
        """The boundary at which a VM's failure stays its own."""
        try:
            await vm.run(task_status=task_status)
        except Exception as error:
            if "running" not in vm.phases:
                raise  # to whoever waits for the start
            log.error("VM failed", vm=vm.id, problem=str(error), exc_info=error)


@asynccontextmanager
async def open_service(config: Config, host: Host) -> AsyncIterator[Service]:
    """A service; leaving the context, cancelled or not, ends every VM, gracefully first."""
    async with trio.open_nursery() as nursery:
        closing = trio.Event()
        service: Service = await nursery.start(_house, config, host, closing)
        try:
            yield service
        finally:
            closing.set()


async def _house(
    config: Config, host: Host, closing: trio.Event, *, task_status: trio.TaskStatus[Service]
) -> None:
    """The VMs' nursery, in a task of its own: shielded, for it outlives what uses it."""
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.shield = True
        service = Service(config, host, nursery)
        task_status.started(service)
        await closing.wait()
        with trio.move_on_after(config.shutdown.longest_s):
            await service.end_all()
        nursery.cancel_scope.cancel()
