"""A member that was taken over, and says what no member says: nobody else ends or hangs of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
import trio

from supervisor.fleet.facts import Needs
from supervisor.fleet.ledger import Run
from supervisor.pb import vm_pb2
from tests.fleet.rogue import rogue
from tests.fleet.test_events import reading
from tests.fleet.test_wires import wire
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet


@pytest.mark.parametrize("given", ["\ud800", "[::1", "xn--a", f"{'x' * 70}:1"])
async def test_an_address_that_is_none_is_of_a_host_that_is_not_reached(
    fleet: Fleet, given: str
) -> None:
    async with fleet.serve("a") as a, rogue(fleet, given):
        await a.wait_said("host joined", host="b")
        answer = await a.http.get("/vms")
        assert answer.status_code == 200, answer.text
        assert answer.json()["missing"] == ["b"]
        with wire(a) as wired:
            listed = await wired.ask(wired.vms.List, vm_pb2.ListRequest())
            assert list(listed.missing) == ["b"]
        async with reading(a.http) as reader:
            await reader.until(event="host", host="b", state="unreached")
            own = await a.run()
            await reader.until(vm=own["id"], event="relay", state="answered")


async def test_a_name_that_is_none_ends_nobody_who_asks_that_host(fleet: Fleet) -> None:
    needs = Needs()
    async with fleet.serve("a"), rogue(fleet) as b:
        await b.offer(needs.kind)
        await b.create("kinds", needs.kind, needs.encode())
        for entry in ("\ud800", "nobody"):
            run = Run(id=str(uuid.uuid4()), entry=entry, needs=needs)
            await b.create("runs", run.id, run.encode())
            await b.enqueue(needs.kind, f"{run.id} 0".encode(), run.id)
        # It goes on to the second.
        async with b.watch("runs", run.id) as seen:
            with trio.fail_after(PATIENCE_S):
                while not (one := await seen.receive()) or b"owned" not in (one.value or b""):
                    pass
