"""The measured launch of SEV and SEV-ES: an owner sees what was launched before it runs.

QEMU has launched the guest and does not run it. Its owner asks for the measurement, verifies it,
may give the guest a secret that only this guest can read, and lets it run. Each step is on record
when it is answered, so that a supervisor which takes the VM up goes on with the next.

Source: QEMU's QAPI, ``misc-target.json`` (``misc-i386.json`` since 10.0).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from supervisor.errors import Busy, InvalidRequest, MonitorError, VmEnded
from supervisor.qemu.process import EXIT_LAG_S
from supervisor.state.record import EndCause, EndMode, EventKind, Launch
from supervisor.state.status import VmState

if TYPE_CHECKING:
    from supervisor.qemu.qapi import SevMeasurement
    from supervisor.vm.vm import Vm


async def begin(vm: Vm) -> None:
    """Hold a guest that QEMU has just launched, for as long as an owner may take."""
    if vm.record.launch is not Launch.ASKED:
        return  # an earlier supervisor has begun
    timeout_s = vm.config.life.attest_timeout_s
    await vm.commit(
        EventKind.MEASURED_LAUNCH,
        {"step": Launch.WAITING, "for_s": timeout_s},
        launch=Launch.WAITING,
        launch_by_s=vm.clock.boottime_s() + timeout_s,
    )


async def end_in_time(vm: Vm) -> None:
    """End a VM whose owner says nothing. Cancelled at QEMU's exit."""
    await vm.until(lambda: vm.awaits_owner)
    longest_s = vm.config.timing.ttl_sleep_s
    while vm.awaits_owner and (left_s := vm.record.launch_by_s - vm.clock.boottime_s()) > 0:
        with trio.move_on_after(min(left_s, longest_s)):
            await vm.until(lambda: not vm.awaits_owner)
    if vm.awaits_owner:
        why = "nobody attested it in time (MANAGER_ATTEST_TIMEOUT)"
        vm.request_end(EndMode.FORCE, EndCause.UNATTESTED, why)


async def measurement(vm: Vm) -> SevMeasurement:
    """What the processor has measured. It may be asked for again.

    :raises Busy: if no guest waits for its owner
    :raises MonitorError: if QEMU does not answer
    """
    async with vm.attesting:
        _require(vm, "measured", Launch.WAITING, Launch.MEASURED, Launch.SECRET)
        found = await vm.monitor().sev_measurement()
        if vm.record.launch is Launch.WAITING:
            await _step(vm, Launch.MEASURED)
        return found


async def inject(vm: Vm, header: str, secret: str) -> None:
    """Give the guest its owner's secret, once.

    :param header, secret: of the packet, in base64
    :raises Busy: if the guest was not measured, or has its secret
    :raises InvalidRequest: if the processor refuses it: the packet is for another guest
    :raises MonitorError: if QEMU does not answer
    """
    async with vm.attesting:
        _require(vm, "given a secret", Launch.MEASURED)
        monitor = vm.monitor()
        # On record first: a guest may have got a secret that nobody has heard the answer of.
        with trio.CancelScope(shield=True):
            await _step(vm, Launch.SECRET)
            try:
                await monitor.sev_inject_secret(header, secret)
            except MonitorError as error:
                if error.error_class is None:
                    raise
                await _step(vm, Launch.MEASURED)
                raise InvalidRequest(
                    f"the secret was not taken: {error.detail}", member="secret"
                ) from error


async def launch(vm: Vm, by: str) -> None:
    """Let the guest run.

    :param by: the name of who says so; empty if nobody was asked
    :raises Busy: if the guest was not measured, or runs
    :raises MonitorError: if QEMU does not answer
    :raises VmEnded: if the guest has ended
    """
    async with vm.attesting:
        _require(vm, "launched", Launch.MEASURED, Launch.SECRET)
        try:
            with trio.CancelScope(shield=True):
                monitor = vm.monitor()
                # On record first: a supervisor that takes the VM up lets it run.
                await _step(vm, Launch.RELEASED, attested_by=by, attested_at=datetime.now(UTC))
                await monitor.cont()
        except MonitorError:
            # Connections break a moment before the process that held them is seen to be gone.
            with trio.move_on_after(EXIT_LAG_S):
                await vm.until(lambda: vm.ended)
            if not vm.ended:
                raise
    await vm.until(lambda: vm.status.state is not VmState.PRELAUNCH or vm.ended)
    if vm.status.state.ended or vm.ended:
        raise VmEnded(vm.id, vm.status.state, vm.status.reason)


async def _step(vm: Vm, step: Launch, **changes: object) -> None:
    await vm.commit(EventKind.MEASURED_LAUNCH, {"step": step}, launch=step, **changes)


def _require(vm: Vm, done: str, *steps: Launch) -> None:
    if vm.record.launch is Launch.PLAIN:
        raise Busy(
            f"VM {vm.id} cannot be {done}: its run did not ask for a measured launch",
            advice='send the run with "attest": true',
        )
    if vm.ending or vm.ended:
        raise Busy(f"VM {vm.id} cannot be {done}: it is {vm.status}, and ends")
    if vm.record.launch not in steps or not (vm.awaits_owner and vm.session):
        advice = "ask for its launch measurement first" if vm.awaits_owner else ""
        if vm.record.launch is Launch.SECRET:
            advice = "it has its secret; let it run"
        where = f"its launch is at the step '{vm.record.launch}'"
        raise Busy(f"VM {vm.id} cannot be {done}: {where}", advice=advice)
