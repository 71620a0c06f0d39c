"""The same key is the same run; and a VM that lives for so long and no longer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.pb import manager_pb2
from supervisor.state.record import EndCause
from supervisor.state.status import Status, VmState
from tests.support.scenario import ALWAYS

if TYPE_CHECKING:
    import httpx

    from tests.support.world import Supervisor, World


async def post(
    supervisor: Supervisor, key: str | None = None, *, wait: bool = True, **members: Any
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    if not wait:
        headers["Prefer"] = "respond-async"
    body = {"computation": "aGk=", **members}
    return await supervisor.http.post("/run", json=body, headers=headers)


async def test_same_key_is_the_same_vm(world: World) -> None:
    async with world.serve() as supervisor:
        first = (await post(supervisor, "k")).json()
        again = (await post(supervisor, "k")).json()
        assert again == first
        other = (await post(supervisor, "l")).json()
        none = (await post(supervisor)).json()
        assert len({first["id"], other["id"], none["id"]}) == 3


async def test_same_key_before_the_answer_and_after_a_restart(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        answers: list[Any] = []

        async def call() -> None:
            answers.append((await post(supervisor, "k")).json())

        async with trio.open_nursery() as callers:
            for _ in range(2):
                callers.start_soon(call)
            guest = await world.guest()
            await guest.until("cont")
            callers.start_soon(call)
            await guest.order("start-agent", kind="recorder")
        assert len(answers) == 3
        assert answers[0] == answers[1] == answers[2]
        await supervisor.leave(guest)
    async with world.serve() as supervisor:
        again = (await post(supervisor, "k")).json()
        assert again["id"] == guest.vm_id
        assert again["computation"] == answers[0]["computation"]
        await supervisor.http.post(f"/vms/{guest.vm_id}/shutdown")
        ended = (await post(supervisor, "k")).json()
        assert (ended["computation"], ended["state"]) == (again["computation"], "shutoff")


@pytest.mark.parametrize(
    "members", [{"computation": "aG8="}, {"ttl": "1h"}, {"restart": "on-failure"}]
)
async def test_same_key_with_another_body(world: World, members: dict[str, Any]) -> None:
    async with world.serve() as supervisor:
        vm_id = (await post(supervisor, "k")).json()["id"]
        refused = await post(supervisor, "k", **members)
        assert refused.status_code == 409
        assert refused.json()["title"] == "Key reused"
        assert vm_id in refused.json()["detail"]


async def test_caller_with_a_key_that_goes_away_leaves_its_vm(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, supervisor, "k")
            guest = await world.guest()
            await guest.until("cont")
            await supervisor.wait_state(guest.vm_id, "running")
            nursery.cancel_scope.cancel()
        await guest.order("start-agent", kind="recorder")
        answer = (await post(supervisor, "k")).json()
        assert answer["id"] == guest.vm_id


async def test_run_that_failed_stays_failed_for_its_key(world: World) -> None:
    world.scenario(exits=1, says="no such CPU")
    async with world.serve() as supervisor:
        first, second = [(await post(supervisor, "k")).json() for _ in range(2)]
        assert first.pop("request_id") != second.pop("request_id")
        assert first == second
        assert len(supervisor.running.service.vms) == 1
    async with world.serve() as supervisor:
        again = await post(supervisor, "k")
        assert again.status_code == 502
        assert "no such CPU" in again.json()["detail"]


async def test_key_is_free_again_when_its_vm_is_deleted(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await post(supervisor, "k")).json()["id"]
        await supervisor.http.delete(f"/vms/{vm_id}")
        assert (await post(supervisor, "k")).json()["id"] != vm_id


async def test_key_over_grpc(world: World) -> None:
    async with world.serve() as supervisor:

        def run(computation: bytes, key: str) -> Any:
            request = manager_pb2.RunRequest(computation=computation)
            metadata = [("idempotency-key", key)]
            return supervisor.manager.Run(request, metadata=metadata, timeout=60)

        one, two = [await trio.to_thread.run_sync(run, b"1", "k") for _ in range(2)]
        assert one == two
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(run, b"2", "k")
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- time to live ---------------------------------------------------------------------------


def kinds(world: World, vm_id: str) -> list[str]:
    lines = (world.tmp / vm_id / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize("ttl", ["300ms", "PT0.3S"])
async def test_vm_is_shut_down_when_its_time_is_over(world: World, ttl: str) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await post(supervisor, wait=False, ttl=ttl)).json()["id"])
        guest = await world.guest()
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")
        assert vm.record.options.ttl_s == pytest.approx(0.3)
        told = kinds(world, vm.id)
        assert told.index("expiring") < told.index("ending")
        await guest.until("system_powerdown")


async def test_default_time_to_live_and_a_longer_one(world: World) -> None:
    async with world.serve(MANAGER_TTL="200ms") as supervisor:
        longer = supervisor.vm((await post(supervisor, wait=False, ttl="1h")).json()["id"])
        default = supervisor.vm((await post(supervisor, wait=False)).json()["id"])
        await default.wait_ended()
        assert not longer.ended


async def test_time_to_live_goes_on_while_no_supervisor_looks(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await post(supervisor, ttl="1m")).json()["id"])
        guest = await world.guest()
        await supervisor.leave(guest)
    file = world.tmp / vm.id / "vm.json"
    content = json.loads(file.read_text())
    content["vm"]["first_ran_s"] -= 60  # as if the time had passed
    file.write_text(json.dumps(content))
    async with world.serve(MANAGER_POWERDOWN_GRACE="1s") as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        await guest.until("system_powerdown")
        assert vm.end_request is not None
        assert vm.end_request.cause is EndCause.TTL
