"""The agent's answer: where it is kept, and how it is read again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from supervisor.config import OnStop

if TYPE_CHECKING:
    from tests.support.world import World

DIGEST = hashlib.sha256(b"x").hexdigest()


async def test_reply_can_be_read_again(world: World) -> None:
    async with world.serve() as supervisor:
        run = await supervisor.run(b"x")
        answer = await supervisor.http.get(f"/vms/{run['id']}/reply")
        assert answer.status_code == 200
        assert answer.text == run["computation"] == DIGEST
        assert answer.headers["Content-Length"] == str(len(DIGEST))
        # A browser shows it, and runs nothing of it.
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_reply_is_in_no_other_answer_about_the_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run(b"x"))["id"]
        for path in (f"/vms/{vm_id}", f"/vms/{vm_id}/status", "/vms"):
            assert DIGEST not in (await supervisor.http.get(path)).text
        ended = await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert DIGEST not in ended.text


async def test_reply_is_read_from_its_file_each_time(world: World) -> None:
    """Nobody keeps it: replies of 33 MB each would be in memory for all VMs on record."""
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"x", **{"Idempotency-Key": "k"})
        vm = supervisor.only_vm()
        vm.dir.reply.write_text("another")
        assert (await supervisor.http.get(f"/vms/{vm.id}/reply")).text == "another"
        again = await supervisor.post(b"x", **{"Idempotency-Key": "k"})
        assert again.json()["id"] == answer.json()["id"]
        assert again.json()["computation"] == "another"


async def test_reply_of_a_vm_that_an_earlier_supervisor_had(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run(b"x"))["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        supervisor.running.stop(OnStop.LEAVE)
    async with world.serve() as supervisor:
        assert (await supervisor.http.get(f"/vms/{vm_id}/reply")).text == DIGEST


async def test_no_reply_says_why(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(b"x")
        answer = await supervisor.http.get(f"/vms/{vm_id}/reply")
        assert answer.status_code == 409
        assert f"VM {vm_id} has no answer" in answer.json()["detail"]
        await supervisor.http.delete(f"/vms/{vm_id}")
    world.scenario(agent="status", status=("INTERNAL", "a bad day"))
    async with world.serve() as supervisor:
        await supervisor.post(b"x")
        vm = supervisor.only_vm()
        answer = await supervisor.http.get(f"/vms/{vm.id}/reply")
        assert answer.status_code == 409
        assert "a bad day" in answer.json()["detail"]


async def test_reply_that_is_lost_is_an_error_that_names_its_file(world: World) -> None:
    async with world.serve() as supervisor:
        await supervisor.post(b"x", **{"Idempotency-Key": "k"})
        vm = supervisor.only_vm()
        vm.dir.reply.unlink()
        for answer in (
            await supervisor.http.get(f"/vms/{vm.id}/reply"),
            await supervisor.post(b"x", **{"Idempotency-Key": "k"}),
        ):
            assert answer.status_code == 500
            assert str(vm.dir.reply) in answer.json()["detail"]
