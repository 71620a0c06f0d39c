"""The audit log: a line for each change and each refusal, with nothing in it that is secret."""

from __future__ import annotations

import json
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from supervisor.errors import HostError
from supervisor.pb import manager_pb2, vm_pb2
from tests.fake.test_connections import ask
from tests.support.world import refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import Supervisor, World


#: The id of a VM that does not exist.
ANOTHER = "00000000-0000-4000-8000-000000000000"


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def refused(supervisor: Supervisor, method: Any, request: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        await supervisor.call(method, request)
    code: grpc.StatusCode = caught.value.code()
    return code


async def test_each_change_and_each_refusal_has_a_line(world: World) -> None:
    log = world.tmp / "audit.jsonl"
    async with world.serve() as supervisor:
        http, services = supervisor.http, supervisor.vm_service
        vm_id = (await supervisor.run())["id"]
        await http.get(f"/vms/{vm_id}")
        await http.post(f"/vms/{vm_id}/pause")
        await http.post(f"/vms/{vm_id}/pause", headers={"Origin": "null"})
        await http.get(f"/vms/{ANOTHER}")
        other = await supervisor.call(
            supervisor.manager.Run, manager_pb2.RunRequest(computation=b"x")
        )
        await supervisor.call(services.List, vm_pb2.ListRequest())
        await supervisor.call(services.Delete, vm_pb2.DeleteRequest(id=other.ID))
        code = await refused(supervisor, services.Get, vm_pb2.GetRequest(id=ANOTHER))
        assert code is grpc.StatusCode.NOT_FOUND
        await http.delete(f"/vms/{vm_id}")
    found = [
        (one["wire"], one["what"], one["vm"], one["outcome"], one["status"], one["error"])
        for one in lines(log)
    ]
    path = "/vms/<vm_id>"
    assert found == [
        ("http", "POST /run", vm_id, "answered", 200, None),
        ("http", f"POST {path}/pause", vm_id, "answered", 200, None),
        ("http", f"POST {path}/pause", vm_id, "refused", 403, "CrossSite"),
        ("http", f"GET {path}", ANOTHER, "refused", 404, "VmNotFound"),
        ("grpc", "/manager.ManagerService/Run", other.ID, "answered", "OK", None),
        ("grpc", "/supervisor.v1.VmService/Delete", other.ID, "answered", "OK", None),
        ("grpc", "/supervisor.v1.VmService/Get", ANOTHER, "refused", "NOT_FOUND", "VmNotFound"),
        ("http", f"DELETE {path}", vm_id, "answered", 204, None),
    ]
    for one in lines(log):
        assert one["peer"] in ("127.0.0.1", "::1")
        assert one["request_id"]
        assert one["ts"].endswith("Z")
        assert one["known_by"] == "nothing"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_nothing_secret_and_no_line_of_others_making(world: World) -> None:
    """Paths, queries, headers and bodies are the caller's to choose."""
    log = world.tmp / "audit.jsonl"
    async with world.serve() as supervisor:
        await supervisor.http.post("/run?token=PLANTED", json={"computation": "UExBTlRFRA=="})
        await supervisor.http.post(
            "/run", json={"PLANTED": 1}, headers={"Authorization": "Bearer PLANTED"}
        )
        await supervisor.http.post("/PLANTED?PLANTED=PLANTED")
        await supervisor.http.get('/vms/%0A{"ts":"forged"}%0D%0A')
        await supervisor.http.get("/vms/" + "x" * 5000)
        await ask(
            supervisor,
            b"POST /run HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a b\r\n"
            b"Connection: close\r\n\r\n",
        )
    text = log.read_text()
    assert "PLANTED" not in text
    assert all("ts" in one and "forged" not in one["ts"] for one in lines(log))
    assert len(lines(log)) == 6
    assert max(map(len, text.splitlines())) < 800


async def test_caller_who_leaves(world: World) -> None:
    world.scenario(agent="silent")
    log = world.tmp / "audit.jsonl"
    body = b'{"computation": "AA=="}'
    async with world.serve() as supervisor:
        port = supervisor.running.http_port
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(
                b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            guest = await world.guest()
            while (await guest.next())["saw"] != "Run":
                pass
        await supervisor.wait_state(guest.vm_id, "shutoff", "crashed")
    (line,) = lines(log)
    assert (line["outcome"], line["status"]) == ("caller-left", None)
    assert line["vm"] == guest.vm_id


async def test_method_that_no_route_has(world: World) -> None:
    log = world.tmp / "audit.jsonl"
    async with world.serve() as supervisor:
        for path in ("/vms", "/nowhere"):
            answer = await supervisor.http.request("PLANTED" * 1000, path)
            assert answer.status_code in (404, 405)
        assert (await supervisor.http.delete("/nowhere")).status_code == 404
    assert [one["what"] for one in lines(log)] == [
        *["another method of no path"] * 2,
        "DELETE of no path",
    ]


async def test_flood_of_refusals_is_counted_and_not_written(world: World) -> None:
    log = world.tmp / "audit.jsonl"
    async with world.serve() as supervisor:
        for _ in range(150):
            await supervisor.http.post("/run", headers={"Origin": "null"})
        await supervisor.run()
    found = lines(log)
    assert 100 <= len(found) < 150
    assert found[-1]["outcome"] == "answered"
    assert sum(one.get("refusals_missing", 0) for one in found) == 151 - len(found)


async def test_log_is_set_aside_when_it_is_long(world: World, short_tmp: Path) -> None:
    log = short_tmp / "log" / "audit"
    log.parent.mkdir()
    async with world.serve(MANAGER_AUDIT_LOG=str(log), MANAGER_AUDIT_SIZE="1K") as supervisor:
        for number in range(12):
            await supervisor.http.post("/run", headers={"X-Request-Id": f"number-{number}"})
    files = sorted(log.parent.iterdir())
    assert [file.name for file in files] == ["audit", "audit.1"]
    assert all(file.stat().st_size <= 1024 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert lines(log)[-1]["request_id"] == "number-11"


async def test_request_is_served_if_its_line_cannot_be_written(world: World) -> None:
    """It may be the one that makes room on the disk."""
    async with world.serve(MANAGER_AUDIT_LOG="/dev/full", MANAGER_AUDIT_SIZE="1K") as supervisor:
        assert (await supervisor.post(b"x")).status_code == 200


async def test_log_that_cannot_be_opened_is_no_start(world: World) -> None:
    error = await refusal(world.serve(MANAGER_AUDIT_LOG=str(world.tmp / "no" / "file")))
    assert isinstance(error, HostError)
    assert "MANAGER_AUDIT_LOG" in error.advice


async def test_request_id_is_in_answer_and_record(world: World) -> None:
    log = world.tmp / "audit.jsonl"
    headers = {"X-Request-Id": "mine-1"}
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"x", **headers)
        assert answer.headers["X-Request-Id"] == "mine-1"
        shown = (await supervisor.http.get(f"/vms/{answer.json()['id']}")).json()
        assert shown["request_id"] == "mine-1"
        problem = await supervisor.http.get("/vms/another", headers=headers)
        assert problem.json()["request_id"] == "mine-1"
        made = (await supervisor.http.get("/health")).headers["X-Request-Id"]
        assert len(made) == 32
        parent = f"00-{'1' * 32}-{'2' * 16}-01"
        call = supervisor.manager.Run.with_call
        reply, done = await supervisor.call(
            lambda request, timeout: call(
                request, timeout=timeout, metadata=(("traceparent", parent),)
            ),
            manager_pb2.RunRequest(computation=b"x"),
        )
        assert ("x-request-id", "1" * 32) in done.initial_metadata()
        assert supervisor.vm(reply.ID).record.options.request_id == "1" * 32
    assert [one["request_id"] for one in lines(log)] == ["mine-1", "mine-1", "1" * 32]


async def test_what_stands_in_the_place_of_an_id_is_in_no_line(world: World) -> None:
    """It may be a token that was pasted there."""
    secret = "qs_pasted-here-by-mistake"
    async with world.serve() as supervisor:
        assert (await supervisor.http.post(f"/vms/{secret}/pause")).status_code == 404
        with pytest.raises(grpc.RpcError):
            await supervisor.call(supervisor.vm_service.Pause, vm_pb2.PauseRequest(id=secret))
        assert (await supervisor.http.post(f"/vms/{ANOTHER}/pause")).status_code == 404
    text = (world.tmp / "audit.jsonl").read_text()
    assert secret not in text
    # A line is written when its request is over, which a client may know first.
    vms = Counter(json.loads(line)["vm"] for line in text.splitlines())
    assert vms == {None: 2, ANOTHER: 1}
