"""What becomes of a run on record when its VM has ended."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run, RunState
from supervisor.state.record import RelayState
from supervisor.state.status import Reason
from tests.support.memory_engine import Broker
from tests.support.simulated_fleet import SimulatedFleet, SimulatedVm


@pytest.mark.parametrize(
    ("relay", "reason", "becomes"),
    [
        # Its host lost power before the answer was on its disk: nobody has seen how it ended.
        (RelayState.FAILED, Reason.HOST_REBOOT, RunState.INTERRUPTED),
        (RelayState.INTERRUPTED, None, RunState.INTERRUPTED),
        (RelayState.FAILED, None, RunState.FAILED),
    ],
)
async def test_an_answer_that_its_host_has_lost(
    relay: RelayState,
    reason: Reason | None,
    becomes: RunState,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        host = await SimulatedFleet(Broker(nursery, seed=1)).add("a", room=1)
        await host.members.changed.until(lambda: host.members.is_safe)
        run = Run(id="one", entry="a", needs=Needs()).claimed("a", 0)
        await host.records.create(run)
        vm = SimulatedVm("vm", "one", 1)
        for step in (RelayState.SENT, RelayState.ANSWERED):
            await host.owner.prove(vm, step)  # type: ignore[arg-type]
        assert (await host.records.read("one")).state is RunState.ANSWERED
        vm.set(relay)
        if reason:
            vm.record.status = attrs.evolve(vm.record.status, reason=reason)
        vm.record.ended = True
        host.disk.append(vm)
        nursery.start_soon(host._follow, vm)
        await trio.sleep(1)
        assert (await host.records.read("one")).state is becomes
        nursery.cancel_scope.cancel()
