"""IdempotencyKeys that are no keys, and callers that come and go around a run that bears one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.pb import manager_pb2
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from tests.support.world import World

LONGEST = "k" * 255


@pytest.mark.parametrize("key", ["", LONGEST + "k"])
async def test_what_is_no_key(world: World, key: str) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"x", **{"Idempotency-Key": key})
        assert answer.status_code == 400
        assert "Idempotency-Key" in answer.json()["detail"]
        request = manager_pb2.RunRequest(computation=b"x")
        call: Any = partial(supervisor.manager.Run, metadata=[("idempotency-key", key)])
        with pytest.raises(grpc.RpcError) as caught:
            await in_thread(partial(call, request, timeout=PATIENCE_S))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not supervisor.running.service.vms


async def test_key_is_the_same_over_both_protocols(world: World) -> None:
    async with world.serve() as supervisor:
        first = await supervisor.post(b"x", **{"Idempotency-Key": LONGEST})
        request = manager_pb2.RunRequest(computation=b"x")
        call: Any = partial(supervisor.manager.Run, metadata=[("idempotency-key", LONGEST)])
        answer = await in_thread(partial(call, request, timeout=PATIENCE_S))
        assert first.json()["id"] == answer.ID


async def test_key_of_a_run_that_was_not_admitted_is_free(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        other = (await supervisor.run())["id"]
        key = {"Idempotency-Key": "k"}
        assert (await supervisor.post(b"x", **key)).status_code == 429
        await supervisor.http.delete(f"/vms/{other}")
        assert (await supervisor.post(b"x", **key)).status_code == 200


async def test_caller_with_a_key_that_leaves_the_queue(world: World) -> None:
    """The other who came with the same key takes its place."""
    async with world.serve(MANAGER_MAX_VMS="1") as supervisor:
        other = (await supervisor.run())["id"]
        admission = supervisor.running.service.vms.admission
        answers = []

        async def call() -> None:
            answers.append(await supervisor.post(b"x", **{"Idempotency-Key": "k"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            async with trio.open_nursery() as leaving:
                leaving.start_soon(call)
                while not admission.waiting:
                    await supervisor.http.get("/health")
                leaving.cancel_scope.cancel()
            await supervisor.http.delete(f"/vms/{other}")
        assert [answer.status_code for answer in answers] == [200]
        assert len(supervisor.running.service.vms) == 1


async def test_run_that_failed_is_told_again_with_its_vm(world: World) -> None:
    world.scenario(agent="status", status=("INVALID_ARGUMENT", "nonsense"))
    key = {"Idempotency-Key": "k"}
    async with world.serve() as supervisor:
        first, second = [(await supervisor.post(b"x", **key)).json() for _ in range(2)]
        assert first.pop("request_id") != second.pop("request_id")
        assert first == second
    async with world.serve() as supervisor:
        again = await supervisor.post(b"x", **key)
        assert again.status_code == 502
        assert again.json()["vm"] == first["vm"]
        assert "nonsense" in again.json()["detail"]
