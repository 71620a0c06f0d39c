"""All VMs of one supervisor, by id: started, adopted, supervised, removed."""

from __future__ import annotations

import contextvars
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import trio

from supervisor import spans
from supervisor.agent import dialled
from supervisor.agent.dialled_server import Dialled
from supervisor.config import RestartPolicy, Tee, TemplateUse
from supervisor.errors import (
    AtCapacity,
    Busy,
    LaunchError,
    NotTheirs,
    Stopping,
    SupervisorError,
    VmNotFound,
)
from supervisor.qemu.host import is_shutting_down
from supervisor.qemu.ports import PortPool
from supervisor.runs.admission import Admission, Resources, host_resources
from supervisor.state import file_errors
from supervisor.state.record import (
    EndCause,
    EndMode,
    Launch,
    Phase,
    Purpose,
    Record,
    RelayState,
    RunOptions,
)
from supervisor.state.secret import Secret
from supervisor.tee import binding
from supervisor.templates.registry import Templates
from supervisor.vm.task import Left, VmTask
from supervisor.vm.vm import Vm
from supervisor.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from supervisor.caller import Caller
    from supervisor.config import Config
    from supervisor.qemu.host import Host
    from supervisor.qemu.users import User
    from supervisor.state.journal import Journal
    from supervisor.state.record import Event
    from supervisor.state.recovery import Recovered
    from supervisor.state.shares import Shares
    from supervisor.tee.facts import Technology
    from supervisor.vm.ownership import Ownership

log = structlog.stdlib.get_logger()


class Vms:
    """The VMs in the order of their start, their room, their templates, and their nursery.

    :ivar coming: the room of spare VMs that are not listed yet
    :ivar dialled: where agents come out that dial the supervisor
    :ivar ended: notified whenever a VM's task is over
    """

    def __init__(
        self,
        config: Config,
        host: Host,
        journal: Journal,
        nursery: trio.Nursery,
        ownership: Ownership,
    ) -> None:
        self.config = config
        self.host = host
        self.journal = journal
        self.admission = Admission(config.limits, host_resources(config.qemu.net))
        self.templates = Templates(config, host)
        self.dialled = Dialled(config.qemu.tmp)
        self.ended = Signal()
        self.closed = trio.Event()
        self.coming: list[Resources] = []
        self._by_id: dict[str, Vm] = {}
        #: VMs that are ended only to be removed.
        self._deleting: set[str] = set()
        #: VMs that have room and are not listed yet; and notified whenever there is one less.
        self._starting = 0
        self._started = Signal()
        self._nursery = nursery
        self._ownership = ownership
        self._context = contextvars.copy_context()
        self.ports = PortPool(config.qemu.net)

    def __iter__(self) -> Iterator[Vm]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, vm_id: str) -> bool:
        return vm_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, vm_id: str, caller: Caller) -> Vm:
        """A VM that this caller may use, as its owner may.

        :raises VmNotFound: for an id that nobody has and for a VM that the caller does not see,
            alike
        :raises NotTheirs: if the caller has a part in it, and no more
        """
        vm = self.see(vm_id, caller)
        if not caller.sees(vm.record.owner):
            raise NotTheirs(vm_id, "all but its parts", "its owner")
        return vm

    def see(self, vm_id: str, caller: Caller) -> Vm:
        """A VM that this caller may look at: every party of it may.

        :raises VmNotFound: as `get`
        """
        vm = self._by_id.get(vm_id)
        if vm is None or not _sees(caller, vm):
            raise VmNotFound(vm_id)
        return vm

    def get_for(self, part: str, vm_id: str, caller: Caller) -> Vm:
        """A VM of which this part is the caller's.

        :param part: as in `Parties.of`
        :raises VmNotFound: as `get`
        :raises NotTheirs: if the part is another's, or there is none
        """
        vm = self.see(vm_id, caller)
        parties = vm.record.options.parties
        if parties is None:
            return self.get(vm_id, caller)
        if caller.name not in parties.of(part):
            raise NotTheirs(vm_id, part, " and ".join(parties.of(part)) or "nobody")
        return vm

    def tells(self, event: Event, caller: Caller) -> bool:
        """Whether an event is of a run that this caller has a part in."""
        vm = self._by_id.get(event.vm_id or "")
        # Before its run the VM was the pool's.
        is_of_run = vm is not None and bool(event.owner) and event.owner == vm.record.owner
        return vm is not None and is_of_run and _sees(caller, vm)

    def seen_by(self, caller: Caller) -> list[Vm]:
        return [vm for vm in self if _sees(caller, vm)]

    def listed_for(self, caller: Caller) -> list[Vm]:
        """The same without clones that are held, with which there is nothing to be done."""
        return [
            vm for vm in self.seen_by(caller) if vm.record.purpose is not Purpose.HELD or vm.ended
        ]

    # --- starting ---------------------------------------------------------------------------

    async def start(
        self,
        room: Resources,
        options: RunOptions,
        computation: bytes | None,
        requested_s: float,
        purpose: Purpose = Purpose.RUN,
        owner: str = "",
        shares: Shares | None = None,
    ) -> Vm:
        """A VM on record, and its task.

        :param room: has been taken for it, and is given back if it cannot be put on record
        :param shares: what its guest reads over 9p. A VM that has them is bound to its environment
            as others are to their computation
        :param requested_s: when it was asked for, by the host's clock
        :raises LaunchError: if its record cannot be written
        :raises Busy: if another VM has the only agent there is
        :raises Stopping: if the supervisor stops
        """
        self._starting += 1
        vm_id = str(uuid.uuid4())
        bound_to = shares.environment_of(vm_id) if shares else computation or b""
        if options.dials:
            shares = dialled.shares()
        record = Record(
            id=vm_id,
            created_at=datetime.now(UTC),
            options=options,
            owner=owner,
            purpose=purpose,
            relay=RelayState.IDLE if computation is None else RelayState.WAITING,
            memory_bytes=room.memory_bytes,
            vcpus=room.vcpus,
            launch=Launch.ASKED if options.attest else Launch.PLAIN,
            bound_to=binding.field(options.technology, bound_to).hex(),
            phases={Phase.QUEUE: self.host.clock.boottime_s() - requested_s},
        )
        secret, user = Secret.new(), None
        try:
            if self.closing:
                raise Stopping
            self._check_agent(owner)
            user = self.host.users.take()
            record = await self.journal.create(record, computation, secret, shares)
        except BaseException as error:
            self.admission.leave(room)
            self.host.users.give_back(user)
            if isinstance(error, OSError):
                raise self.unrecorded(record.id, error) from error
            raise
        finally:
            self._starting -= 1
            self._started.notify()
        vm = self._add(record, secret, requested_s)
        vm.reached(Phase.DIRECTORY)
        self.spawn(self._supervise, vm, None, user)
        return vm

    def has_room_for(self, purpose: Purpose) -> bool:
        """Whether `start_spare` would find room now."""
        return self.admission.has_room(self._room_of(purpose))

    def _room_of(self, purpose: Purpose) -> Resources:
        return Resources.of_new_vm(self.config.qemu, purpose, self._technology_of(purpose))

    def _technology_of(self, purpose: Purpose) -> Technology | None:
        # Templates are plain: the memory of a confidential guest cannot be copied.
        return self.host.accel.tee if purpose is Purpose.POOL else None

    async def start_spare(self, purpose: Purpose) -> Vm | None:
        """A VM without a computation; None if there is no room for it now."""
        technology, room = self._technology_of(purpose), self._room_of(purpose)
        if self.closing or not self.admission.try_enter(room):
            return None
        gives_way = purpose is not Purpose.TEMPLATE
        if gives_way:
            self.coming.append(room)
        options = RunOptions(
            template=(
                TemplateUse.REQUIRE if purpose is Purpose.HELD else self.config.start.templates
            ),
            forwards=self.config.qemu.net.forwards,
            dials=self.config.qemu.net.dials,
            tee=Tee(technology or Tee.NONE),
            tee_policy=str(self.config.qemu.tee.policy) if technology else "",
        )
        try:
            vm = await self.start(room, options, None, self.host.clock.boottime_s(), purpose)
        except SupervisorError as error:
            log.warning("VM not started", purpose=purpose, problem=str(error))
            return None
        finally:
            if gives_way:
                self.coming.remove(room)
        if self.admission.waiting and gives_way:
            # A run came meanwhile, and found neither room nor a spare VM that could give way.
            log.info("giving up", vm=vm.id, purpose=purpose, why="a run needs room")
            self.discard(vm)
        return vm

    def adopt(self, recovered: Recovered) -> list[Vm]:
        """List what an earlier supervisor left. Return what has not ended: each gets a task."""
        self.templates.load(recovered.records)
        alive = []
        for record in recovered.records:
            vm = self._add(record, recovered.secrets.get(record.id))
            if record.purpose in (Purpose.TEMPLATE, Purpose.HELD):
                self.discard(vm)  # its making was cut short, or is as good as a new one
            if not record.ended:
                self.admission.take(Resources.on_record(record))
                try:
                    user = self.host.users.take(vm.dir.given_to())
                except AtCapacity as error:  # its QEMU is gone: its next one would have none
                    log.error("VM not taken up", vm=vm.id, problem=str(error))
                    vm.request_end(EndMode.FORCE, EndCause.RUN_FAILED, str(error))
                    user = None
                self.spawn(self._supervise, vm, Left(recovered.processes.get(record.id)), user)
                alive.append(vm)
        return alive

    def unrecorded(self, vm_id: str, error: OSError) -> LaunchError:
        """What to tell if a VM cannot be put on record."""
        consequence = f"VM {vm_id} cannot be put on record, so it is not started"
        return file_errors.launch_error(error, self.config.qemu.tmp / vm_id, consequence)

    def _check_agent(self, owner: str) -> None:
        if not self.config.agent.is_fixed:
            return
        holders = [
            # Another's VM has no id for this caller.
            f"VM {vm.id}" if vm.record.owner == owner else "another VM"
            for vm in self
            if not vm.ended
        ]
        if self._starting > 1:
            holders.append("another VM that is being started")
        if holders:
            raise Busy(
                f"{holders[0]} has the only agent there is, at {self.config.agent.url}",
                advice="end that VM first, or set MANAGER_AGENT_GRPC_URL so that each VM has an"
                " agent of its own",
            )

    def _add(self, record: Record, secret: Secret | None, requested_s: float | None = None) -> Vm:
        vm = Vm(record, self.config, self.journal, self.host.clock, secret, requested_s)
        self._by_id[vm.id] = vm
        return vm

    async def _supervise(self, vm: Vm, left: Left | None, user: User | None) -> None:
        try:
            task = VmTask(
                vm, self.host, user, self.ports, self.templates, self.dialled, self._ownership
            )
            await task.run(left)
        finally:
            self.host.users.give_back(user)
            self.admission.leave(Resources.on_record(vm.record))
            self.ended.notify()

    def spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Begin a task that outlives the request that begins it, and takes only its trace along.

        Else the request's body would stay in memory for as long as the VM runs.
        """
        context = self._context.copy()
        spans.carry_into(context)
        context.run(self._nursery.start_soon, task, *args)

    # --- removing ---------------------------------------------------------------------------

    async def delete(self, vm: Vm, mode: EndMode = EndMode.FORCE) -> None:
        """End the VM if need be, and remove its directory and all trace of it.

        Being cancelled does not leave it half done.
        """
        await self.discard(vm, mode).wait()
        await vm.wait_ended()

    def discard(self, vm: Vm, mode: EndMode = EndMode.FORCE) -> trio.Event:
        """Begin to do that; the event is set when it is done, or the VM is left to run on."""
        done = trio.Event()
        self._deleting.add(vm.id)
        vm.request_end(mode, EndCause.DELETED, "it was deleted")
        self.spawn(self._remove, vm, done)
        return done

    async def _remove(self, vm: Vm, done: trio.Event) -> None:
        if await vm.wait_over():
            await self.forget(vm)
        done.set()

    def spares(self, purpose: Purpose) -> list[Vm]:
        """The VMs that are kept for runs and that no run has, the oldest first."""
        return [
            vm
            for vm in self
            if vm.record.purpose is purpose and not (vm.claimed or vm.ended or vm.ending)
        ]

    @property
    def staying(self) -> list[Vm]:
        """Those that nobody is removing."""
        return [vm for vm in self if vm.id not in self._deleting]

    async def forget(self, vm: Vm) -> None:
        """Remove an ended VM's directory and all trace of it."""
        self._deleting.discard(vm.id)
        if self._by_id.pop(vm.id, None):
            await self.journal.remove(vm.id, vm.record.owner)
            self.templates.release(vm.id)
            vm.notify()

    # --- the supervisor's own stop ----------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        """Start no VM any more; who waits for room or for a template hears of it now."""
        self.closed.set()
        self.admission.close()
        self.templates.close()

    def hurry(self) -> None:
        """End every VM now, without asking the guests."""
        for vm in self:
            vm.request_end(EndMode.FORCE, EndCause.STOPPING, "the supervisor stops at once")

    async def end_all(self) -> None:
        """Start no VM any more, and return once none runs. All graces run at the same time."""
        await self._close_and_list()
        running = [vm for vm in self if not vm.ended]
        log.info("ending all VMs", vms=[vm.id for vm in running])
        self._end(running)
        for vm in running:
            await vm.wait_over()

    async def leave_all(self) -> None:
        """Start no VM any more, and let all go that run. Those still being started are ended.

        If the host is shutting down, systemd would soon kill QEMU: then those are ended that
        nobody would boot again, and only VMs that are booted again at the next start are let go.
        After `end_all`, or called again, it finds nothing to do.
        """
        if self.closing:
            return
        await self._close_and_list()
        staying_down = []
        if await is_shutting_down():
            never = RestartPolicy.NEVER
            staying_down = [
                vm for vm in self if not vm.ended and vm.record.options.restart is never
            ]
            log.info("the host shuts down: ending VMs", vms=[vm.id for vm in staying_down])
            self._end(staying_down)
        left = [vm for vm in self if vm not in staying_down and vm.leave()]
        if left:
            log.info("leaving VMs to the next supervisor", vms=[vm.id for vm in left])
        unborn = [vm for vm in self if not vm.ended and vm not in left and vm not in staying_down]
        for vm in unborn:
            vm.request_end(EndMode.FORCE, EndCause.STOPPING, "the supervisor stops")
        for vm in [*left, *unborn, *staying_down]:
            await vm.wait_over()

    async def _close_and_list(self) -> None:
        """Start no VM any more, and return once those are listed that are being put on record."""
        self.close()
        await self._started.until(lambda: not self._starting)

    def _end(self, vms: Iterable[Vm]) -> None:
        for vm in vms:
            # What has no computation has nothing that it could lose.
            idle = not vm.record.purpose.is_for_a_caller
            mode = EndMode.FORCE if idle else EndMode.GRACEFUL
            vm.request_end(mode, EndCause.STOPPING, "the supervisor stops")


def _sees(caller: Caller, vm: Vm) -> bool:
    parties = vm.record.options.parties
    return caller.sees(vm.record.owner) or (parties is not None and caller.name in parties.names)
