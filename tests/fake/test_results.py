"""Algorithms and data sets through the supervisor to an agent, and results back.

The VMs are the stand-in for QEMU, the agents in them the reference one.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.config import OnStop
from supervisor.runs import retention
from supervisor.state.results import Results
from tests.fake.test_control import events_of
from tests.support.agent_process import WRITE
from tests.support.tenants import ALICE, BOB, Asking
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.support.world import Supervisor, World

COUNT = b"import os" + WRITE % b"str(os.path.getsize(os.environ['DATASET_FILE'])).encode()"
#: Tells by the pipe that is its data set that it runs, and then waits for ever.
#: The agent's end is its own: no namespace ends it here.
HANG = b"""
import socket, sys
open(sys.argv[1], "w").close()
result = socket.socket(socket.AF_UNIX)
result.connect(sys.argv[2])
result.recv(1)
"""


@pytest.fixture
def world(world: World) -> World:
    world.scenario(agent="reference")
    return world


async def started(supervisor: Supervisor, algorithm: bytes, *data: bytes) -> str:
    """A VM whose agent has all of this."""
    answer = await supervisor.post(b"{}")
    assert answer.status_code == 200, answer.text
    vm_id = str(answer.json()["id"])
    await put(supervisor.http, f"/vms/{vm_id}/algorithm", algorithm)
    for number, content in enumerate(data):
        await put(supervisor.http, f"/vms/{vm_id}/data/{number}", content)
    return vm_id


async def put(http: httpx.AsyncClient, path: str, content: Any, **headers: str) -> Any:
    answer = await http.put(path, content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def compute(supervisor: Supervisor, vm_id: str, **members: Any) -> Any:
    answer = await supervisor.http.post(f"/vms/{vm_id}/compute", json=members)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_algorithm_that_cannot_begin_does_not_run_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lack(_: Results) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT, b"x")
        with monkeypatch.context() as patched:
            patched.setattr(Results, "drop", lack)
            answer = await supervisor.http.post(f"/vms/{vm_id}/compute", json={})
        assert answer.status_code >= 500
        assert supervisor.vm(vm_id).record.computed == "interrupted"
        assert (await compute(supervisor, vm_id))["state"] == "succeeded"


async def test_from_data_to_a_result(world: World) -> None:
    content = bytes(range(256)) * 20_000
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT)
        stored = await put(supervisor.http, f"/vms/{vm_id}/data/0", content)
        digest = hashlib.sha256(content).hexdigest()
        told = {"vm": vm_id, "part": "data/0", "size": len(content), "sha256": digest}
        assert stored == told
        outcome = await compute(supervisor, vm_id)
        result = str(len(content)).encode()
        assert (outcome["state"], outcome["error"], outcome["exit_status"]) == ("succeeded", "", 0)
        assert outcome["data_sha256"] == [digest]
        assert outcome["result_sha256"] == hashlib.sha256(result).hexdigest()
        answer = await supervisor.http.get(f"/vms/{vm_id}/result")
        assert (answer.content, answer.headers["Content-Length"]) == (result, str(len(result)))
        assert answer.headers["Content-Type"] == "application/octet-stream"
        sha256 = base64.b64encode(hashlib.sha256(result).digest()).decode()
        assert answer.headers["Repr-Digest"] == f"sha-256=:{sha256}:"
        assert (await supervisor.http.get(f"/vms/{vm_id}/outcome")).json() == outcome
        (listed,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert listed["computed"] == "succeeded"
    kinds = [one for one in events_of(world, vm_id) if one["event"] in ("upload", "compute")]
    assert [one.get("part") or one["state"] for one in kinds] == [
        *("algorithm", "data/0", "running", "succeeded"),
    ]


async def test_parts_of_a_result(world: World) -> None:
    """A download that was cut off goes on where it ended."""
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, WRITE % b"b'0123456789'", b"x")
        await compute(supervisor, vm_id)
        path = f"/vms/{vm_id}/result"
        whole = await supervisor.http.get(path)
        rest = {"Range": "bytes=4-", "If-Range": whole.headers["ETag"]}
        answer = await supervisor.http.get(path, headers=rest)
        assert (answer.status_code, answer.content) == (206, b"456789")
        assert answer.headers["Content-Range"] == "bytes 4-9/10"
        # Another result since then: all of it.
        answer = await supervisor.http.get(path, headers=rest | {"If-Range": '"another"'})
        assert (answer.status_code, answer.content) == (200, b"0123456789")
        answer = await supervisor.http.get(path, headers={"Range": "bytes=10-"})
        assert answer.status_code == 416


async def test_many_data_sets(world: World) -> None:
    every = b"b''.join(open(f'{os.environ[\"DATASET_DIR\"]}/{n}', 'rb').read() for n in range(2))"
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, b"import os" + WRITE % every, b"one ", b"two")
        await compute(supervisor, vm_id)
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == b"one two"
        answer = await supervisor.http.put(f"/vms/{vm_id}/data/64", content=b"x")
        assert (answer.status_code, "from 0 to 63" in answer.text) == (400, True)


async def test_fewer_data_sets_than_are_there(world: World) -> None:
    every = b"repr(sorted(os.listdir(os.environ['DATASET_DIR']))).encode()"
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, b"import os" + WRITE % every, b"one", b"two")
        await put(supervisor.http, f"/vms/{vm_id}/data/5", b"astray")
        answer = await supervisor.http.post(f"/vms/{vm_id}/compute")
        assert (answer.status_code, "no dataset 2 yet" in answer.text) == (409, True)
        for datasets, names in ((1, b"['0']"), (2, b"['0', '1']")):
            outcome = await compute(supervisor, vm_id, datasets=datasets)
            assert len(outcome["data_sha256"]) == datasets
            assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == names
        answer = await supervisor.http.post(f"/vms/{vm_id}/compute", json={"datasets": 3})
        assert "no dataset 2 yet" in answer.text


async def test_empty_algorithm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.put(f"/vms/{vm_id}/algorithm", content=b"")
        assert (answer.status_code, "the algorithm is empty" in answer.text) == (400, True)


async def test_data_without_a_length(world: World) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1_000_000

    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT)
        assert (await put(supervisor.http, f"/vms/{vm_id}/data/0", chunks()))["size"] == 3_000_000
        await compute(supervisor, vm_id)
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == b"3000000"


@pytest.mark.parametrize(
    ("digest", "code", "words"),
    [
        (hashlib.sha256(b"data").digest(), 200, ""),
        (hashlib.sha256(b"other").digest(), 400, "was announced"),
        (b"short", 400, "must say one SHA-256"),
    ],
)
async def test_checksum(world: World, digest: bytes, code: int, words: str) -> None:
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT)
        said = f"sha-512=:AAAA:, sha-256=:{base64.b64encode(digest).decode()}:"
        answer = await supervisor.http.put(
            f"/vms/{vm_id}/data/0", content=b"data", headers={"Content-Digest": said}
        )
        assert (answer.status_code, words in answer.text) == (code, True), answer.text


async def test_algorithm_that_fails(world: World) -> None:
    """It is an outcome."""
    fails = b"import sys\nprint('got', sys.argv[1])\nsys.exit('no such column')"
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, fails, b"x")
        outcome = await compute(supervisor, vm_id)
        assert (outcome["state"], outcome["exit_status"]) == ("failed", 1)
        assert (outcome["stdout"], outcome["stderr"]) == ("got x\n", "no such column\n")
        answer = await supervisor.http.get(f"/vms/{vm_id}/result")
        assert answer.status_code == 409
        assert "(failed): the algorithm ended with status 1" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"time_limit": "soon"}, "time_limit"),
        ({"memory_limit": "12"}, "such as 256M"),
        ({"then": "stay"}, "then must be one of keep, end"),
        ({"datasets": 0}, "datasets is a number from 1 to 64"),
        ({"datasets": True}, "datasets is a number from 1 to 64"),
        ({"ttl": "1h"}, "is not a member"),
    ],
)
async def test_wrong_wishes(world: World, members: dict[str, Any], words: str) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.post(f"/vms/{vm_id}/compute", json=members)
        assert (answer.status_code, words in answer.json()["detail"]) == (400, True), answer.text


async def test_limits_reach_the_agent(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, b"while True: pass", b"x")
        outcome = await compute(supervisor, vm_id, time_limit="1s", memory_limit="1G")
        assert outcome["state"] == "timed-out"


async def test_then_end(world: World) -> None:
    """The result outlives its VM, and a supervisor."""
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT, b"four")
        await compute(supervisor, vm_id, then="end")
        await supervisor.vm(vm_id).wait_ended()
        supervisor.running.stop(OnStop.LEAVE)
    async with world.serve() as supervisor:
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == b"4"
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert (shown["state"], shown["error"]) == ("shutoff", None)


async def test_nothing_to_fetch(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        for what in ("outcome", "result"):
            answer = await supervisor.http.get(f"/vms/{vm_id}/{what}")
            assert answer.status_code == 409
            assert "an algorithm was not asked to run" in answer.json()["detail"]
        answer = await supervisor.http.post(f"/vms/{vm_id}/compute")
        assert (answer.status_code, "there is no algorithm yet" in answer.text) == (409, True)
        assert (await supervisor.http.get(f"/vms/{vm_id}/outcome")).status_code == 409


async def test_agent_that_knows_nothing_of_it(world: World) -> None:
    world.scenario(agent="recorder")
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.put(f"/vms/{vm_id}/algorithm", content=b"x" * 3_000_000)
        assert answer.status_code == 409, answer.text
        assert "does not know compute.ComputeService" in answer.json()["detail"]


async def test_another_owners_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = await started(supervisor, COUNT, b"x")
            await compute(supervisor, vm_id)
        with asking(BOB):
            for method, path in (
                ("PUT", "algorithm"),
                ("PUT", "data/0"),
                ("POST", "compute"),
                ("GET", "outcome"),
                ("GET", "result"),
            ):
                answer = await supervisor.http.request(method, f"/vms/{vm_id}/{path}")
                assert answer.status_code == 404, path


async def test_caller_who_leaves_takes_the_algorithm_along(world: World) -> None:
    async with world.serve() as supervisor:
        fifo = world.tmp.parent / "runs"
        os.mkfifo(fifo)
        vm_id = await started(supervisor, HANG, str(fifo).encode())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.http.post, f"/vms/{vm_id}/compute")
            await in_thread(fifo.read_bytes)
            with trio.fail_after(PATIENCE_S):
                again = await supervisor.http.post(f"/vms/{vm_id}/compute")
                assert (again.status_code, "runs an algorithm already" in again.text) == (409, True)
                # Nobody takes an earlier one's for this one's.
                for what in ("outcome", "result"):
                    none = await supervisor.http.get(f"/vms/{vm_id}/{what}")
                    assert (none.status_code, "its algorithm runs" in none.text) == (409, True)
            nursery.cancel_scope.cancel()
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: vm.record.computed == "interrupted")
        none = await supervisor.http.get(f"/vms/{vm_id}/result")
        assert (none.status_code, "was interrupted" in none.text) == (409, True)
        await put(supervisor.http, f"/vms/{vm_id}/algorithm", COUNT)
        assert (await compute(supervisor, vm_id))["state"] == "succeeded"


async def test_vm_that_ends_meanwhile(world: World) -> None:
    async with world.serve() as supervisor:
        fifo = world.tmp.parent / "runs"
        os.mkfifo(fifo)
        vm_id = await started(supervisor, HANG, str(fifo).encode())
        answers = []

        async def ask() -> None:
            answers.append(await supervisor.http.post(f"/vms/{vm_id}/compute"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await in_thread(fifo.read_bytes)
            await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert answers[0].status_code == 502
        assert supervisor.vm(vm_id).record.computed == "interrupted"


async def test_result_over_the_limit(world: World) -> None:
    world.settings["MANAGER_MAX_RESULT"] = "1M"
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, WRITE % b"bytes((1 << 20) + 1)", b"x")
        answer = await supervisor.http.post(f"/vms/{vm_id}/compute")
        assert "the limit is 1048576; see MANAGER_MAX_RESULT" in answer.json()["detail"]
        assert supervisor.vm(vm_id).record.computed == "interrupted"
        assert not list((world.tmp / vm_id).glob("result*"))


async def test_results_beyond_what_is_kept(world: World) -> None:
    world.settings["MANAGER_KEEP_RESULTS"] = "3M"
    ids = []
    async with world.serve() as supervisor:
        for _ in range(3):
            ids.append(await started(supervisor, WRITE % b"bytes(1500000)", b"x"))
            await compute(supervisor, ids[-1], then="end")
            await supervisor.vm(ids[-1]).wait_ended()
        # The next look is at a VM's end, and each is over before the next.
        await retention.look(supervisor.running.service.vms)
        answer = await supervisor.http.get(f"/vms/{ids[0]}/result")
        assert (answer.status_code, "not kept any longer" in answer.text) == (409, True)
        for vm_id in ids[1:]:
            assert len((await supervisor.http.get(f"/vms/{vm_id}/result")).content) == 1_500_000


async def test_supervisor_that_was_killed_meanwhile(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT, b"x")
        await compute(supervisor, vm_id)
        supervisor.running.stop(OnStop.LEAVE)
    record = world.tmp / vm_id / "vm.json"
    content = json.loads(record.read_text())
    assert content["vm"]["computed"] == "succeeded"
    content["vm"]["computed"] = "running"
    record.write_text(json.dumps(content))
    async with world.serve() as supervisor:
        vm = supervisor.vm(vm_id)
        await vm.until(lambda: vm.record.computed == "interrupted")


async def form(
    supervisor: Supervisor, *parts: tuple[str, bytes], accept: str = "*/*"
) -> httpx.Response:
    """The answer to ``POST /run`` with these parts."""
    files = [(name, (name, content)) for name, content in parts]
    return await supervisor.http.post("/run", files=files, headers={"Accept": accept})


async def test_all_in_one_request(world: World) -> None:
    async with world.serve() as supervisor:
        parts = [("algorithm", COUNT), ("data", b"x" * 3_000_000), ("data", b"second")]
        wishes = [("run", b'{"ttl": "1h"}'), ("compute", b'{"then": "end"}')]
        answer = (await form(supervisor, *wishes, *parts)).json()
        assert answer["computation"] == "{}"
        assert answer["outcome"]["state"] == "succeeded"
        assert len(answer["outcome"]["data_sha256"]) == 2
        vm = supervisor.vm(answer["id"])
        await vm.wait_ended()
        assert vm.record.options.ttl_s == 3600
        assert (await supervisor.http.get(f"/vms/{vm.id}/result")).content == b"3000000"
        only = await form(supervisor, *wishes, *parts, accept="application/octet-stream")
        assert (only.content, only.headers["Content-Type"]) == (
            b"3000000",
            "application/octet-stream",
        )


async def test_algorithm_of_a_form_that_fails(world: World) -> None:
    async with world.serve() as supervisor:
        parts = [("algorithm", b"1 / 0"), ("data", b"x")]
        answer = await form(supervisor, *parts, accept="application/octet-stream")
        assert answer.json()["outcome"]["state"] == "failed"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("run", b"{}")], "no algorithm and no data"),
        ([("ruin", b"{}"), ("algorithm", COUNT)], "'ruin' too many"),
        ([("run", b'{"tll": "1h"}'), ("algorithm", COUNT)], "did you mean 'ttl'?"),
        ([("run", b"{}"), ("run", b"{}"), ("algorithm", COUNT)], "'run' too many"),
        ([("run", b" " * 70000), ("algorithm", COUNT)], "longer than 65536 bytes"),
        ([("algorithm", COUNT), ("run", b"{}")], "must come before"),
        ([("algorithm", COUNT), ("algorithm", COUNT)], "too many parts 'algorithm'"),
        ([("algorithm", COUNT)], "there is no dataset yet"),
    ],
)
async def test_forms_that_are_refused(
    world: World, parts: list[tuple[str, bytes]], words: str
) -> None:
    """No VM stays that nobody knows of."""
    async with world.serve() as supervisor:
        answer = await form(supervisor, *parts)
        assert answer.is_error
        assert words in answer.json()["detail"]
        for vm in supervisor.running.service.vms:
            await vm.wait_ended()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\nContent-Disposition: form-data; name=a",
        b"--b\r\nX: y\r\n\r\nz\r\n--b--",
        b"--b\r\nX: " + b"y" * 600_000,
        b"--b\r\nX: \xff\r\n\r\n",
        b"x" * 1_000_000,
    ],
)
async def test_bodies_that_are_no_form(world: World, body: bytes) -> None:
    async with world.serve() as supervisor:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await supervisor.http.post("/run", content=body, headers=headers)
        assert answer.status_code in (400, 413), answer.text


async def test_caller_of_a_form_who_leaves_takes_the_vm_along(world: World) -> None:
    async with world.serve() as supervisor:
        fifo = world.tmp.parent / "runs"
        os.mkfifo(fifo)
        async with trio.open_nursery() as nursery:
            parts = ("algorithm", HANG), ("data", str(fifo).encode())
            nursery.start_soon(form, supervisor, *parts)
            await in_thread(fifo.read_bytes)
            nursery.cancel_scope.cancel()
        await supervisor.only_vm().wait_ended()
