"""What this host's VMs owe the fleet: a word before each step, and an end if they are others'."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from supervisor.errors import NotOwner
from supervisor.fleet.ledger import Run, RunState
from supervisor.state.record import EndCause, EndMode, RelayState
from supervisor.state.status import Reason

if TYPE_CHECKING:
    from supervisor.fleet.members import Members
    from supervisor.fleet.records import Records
    from supervisor.runs.vms import Vms
    from supervisor.state.record import Record
    from supervisor.vm.on_record import OnRecord
    from supervisor.vm.vm import Vm

log = structlog.stdlib.get_logger()

_STATES = {
    RelayState.WAITING: RunState.OWNED,
    RelayState.SENT: RunState.SENT,
    RelayState.ANSWERED: RunState.ANSWERED,
    RelayState.FAILED: RunState.FAILED,
    RelayState.INTERRUPTED: RunState.INTERRUPTED,
}


#: Of VMs that ended while no supervisor ran.
_LEFT = (Reason.LAUNCH_INTERRUPTED, Reason.EXIT_UNKNOWN, Reason.HOST_REBOOT)


def goes_back(record: Record) -> bool:
    """Whether a VM has ended with its supervisor, so that its run goes on elsewhere if it can."""
    stopped = record.end_cause is EndCause.STOPPING and record.relay is not RelayState.SENT
    is_over = record.ended and not record.answered
    return is_over and (stopped or record.status.reason in _LEFT)


class Owner:
    """This host as the owner of runs. It is the VMs' `Ownership`."""

    def __init__(self, records: Records, members: Members) -> None:
        self._records = records
        self._members = members

    async def prove(self, vm: OnRecord, relay: RelayState) -> None:
        run_id, epoch = vm.record.options.fleet_run, vm.record.options.epoch
        if not run_id:
            return
        state = _STATES[relay]
        step = partial(_advance, self._members.name, epoch, state, vm.id)
        while True:
            # Without a lease this host may be taken for lost, and must not do what others may
            # begin to do.
            await self._members.changed.until(lambda: self._members.is_safe)
            await self._records.change_in_time(run_id, step)
            if self._members.is_safe:
                return
            self._records.forget(run_id)

    async def hand_back(self, run_id: str, epoch: int) -> None:
        """Let another host have a run.

        :raises NotOwner: if it is not this host's any more, or its agent may have it
        """
        step = partial(_hand_back, self._members.name, epoch)
        try:
            await self._records.change(run_id, step)
        finally:
            self._records.forget(run_id)

    async def hand_back_in_time(self, run_id: str, epoch: int) -> None:
        """The same, and wait for the broker for as long as it takes.

        :raises NotOwner: likewise
        """
        step = partial(_hand_back, self._members.name, epoch)
        try:
            await self._records.change_in_time(run_id, step)
        finally:
            self._records.forget(run_id)

    async def give_up(self, run_id: str, epoch: int) -> None:
        """Nobody waits for a run that this host has claimed, or none will do it."""
        step = partial(_advance, self._members.name, epoch, RunState.GIVEN_UP, "")
        with suppress(NotOwner):
            await self._records.change_in_time(run_id, step)
        self._records.forget(run_id)

    async def follow(self, vm: Vm, vms: Vms) -> None:
        """Put on record how the run of a VM ended; its record goes with the VM.

        A run that `goes_back` is another host's, or this one's anew.
        """
        await vm.until(lambda: vm.record.settled)
        record = vm.record
        if goes_back(record):
            with suppress(NotOwner):  # else its agent may have had it, or it is another's already
                await self.hand_back_in_time(record.options.fleet_run, record.options.epoch)
                return
        state = RunState.ANSWERED if record.answered else RunState.FAILED
        # Such as of one whose answer was on record, and not yet on the disk of a host that lost
        # its power: nobody has seen what became of it.
        is_unseen = record.relay is RelayState.INTERRUPTED or record.status.reason in _LEFT
        if is_unseen and not record.answered:
            state = RunState.INTERRUPTED
        step = partial(_advance, self._members.name, record.options.epoch, state, vm.id)
        with suppress(NotOwner):  # another one has it, and says what became of it
            await self._records.change_in_time(record.options.fleet_run, step)
            await vm.until(lambda: vm.id not in vms)
            removed = partial(_removed, self._members.name, record.options.epoch)
            run = await self._records.change_in_time(record.options.fleet_run, removed)
            await self._records.release_key(run)
        self._records.forget(record.options.fleet_run)

    async def fence(self, vms: Vms) -> None:
        """Each time that this host may have been taken for lost, end what became others'."""
        taken = 0
        while True:
            while self._members.taken == taken:
                await self._members.changed.next().wait()
            taken = self._members.taken
            for vm in vms:
                if vm.record.options.fleet_run and not vm.record.settled:
                    await self._check(vm)

    async def _check(self, vm: Vm) -> None:
        options = vm.record.options
        same = partial(_same, self._members.name, options.epoch)
        self._records.forget(options.fleet_run)
        try:
            await self._records.change_in_time(options.fleet_run, same)
        except NotOwner as error:
            log.warning("VM is another host's", vm=vm.id, problem=str(error))
            vm.failure = vm.failure or error
            vm.request_end(EndMode.FORCE, EndCause.TAKEN_OVER, str(error))


def _advance(host: str, epoch: int, state: RunState, vm: str, run: Run) -> Run:
    return run.advanced(host, epoch, state, vm)


def _removed(host: str, epoch: int, run: Run) -> Run:
    return run.removed(host, epoch)


def _hand_back(host: str, epoch: int, run: Run) -> Run:
    if run.state is RunState.QUEUED and run.epoch == epoch + 1:
        return run  # the answer to this step was lost
    return run.handed_back(host, epoch)


def _same(host: str, epoch: int, run: Run) -> Run:
    """:raises NotOwner: if it is not this host's"""
    return run.advanced(host, epoch, run.state, run.vm)
