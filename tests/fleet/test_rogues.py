"""A member that was taken over, and says what no member says: nobody else ends or hangs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from supervisor.pb import vm_pb2
from tests.fleet.rogue import rogue
from tests.fleet.test_events import reading
from tests.fleet.test_wires import wire

if TYPE_CHECKING:
    from tests.fleet.conftest import Fleet


@pytest.mark.parametrize("address", ["\ud800", "[::1", "xn--a", f"{'x' * 70}:1"])
async def test_an_address_that_is_none_is_of_a_host_that_is_not_reached(
    fleet: Fleet, address: str
) -> None:
    async with fleet.serve("a") as a, rogue(fleet, address):
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
