"""POST /run: what it takes, what it answers, and that the bytes arrive as they were sent."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from supervisor.config import MAX_COMPUTATION

if TYPE_CHECKING:
    from tests.support.world import World

EVERY_BYTE = bytes(range(256))
LARGEST = EVERY_BYTE * (MAX_COMPUTATION // 256)
JSON = {"Content-Type": "application/json"}


async def test_run_answers_with_the_reference_agents_reply(world: World) -> None:
    world.scenario(agent="reference")
    async with world.serve() as supervisor:
        answer = await supervisor.run(b'{"id": "1", "name": "n", "ttl": 48}')
        assert answer["computation"].startswith('{"id":"1","name":"n",')


async def test_members_of_the_answer(world: World) -> None:
    first, _ = world.ports
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"x")
        guest = await world.guest()
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json() == {
            "id": guest.vm_id,
            "computation": hashlib.sha256(b"x").hexdigest(),
            "state": "running",
            "credential": None,
            "forwards": [
                {"guest_port": port, "host_address": "127.0.0.1", "host_port": first + index}
                for index, port in enumerate((22, 9031, 7002))
            ],
            "tee": "none",
        }


@pytest.mark.parametrize(
    "written",
    [list(EVERY_BYTE), base64.b64encode(EVERY_BYTE).decode()],
    ids=["array", "base64"],
)
async def test_bytes_arrive_as_they_were_sent(world: World, written: object) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.post("/run", json={"computation": written})
        assert world.received(answer.json()["computation"]) == EVERY_BYTE


@pytest.mark.parametrize("encoding", ["array", "base64"])
async def test_the_largest_computation(world: World, encoding: str) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.post("/run", content=body(LARGEST, encoding), headers=JSON)
        assert answer.status_code == 200, answer.text[:500]
        assert answer.json()["computation"] == hashlib.sha256(LARGEST).hexdigest()


@pytest.mark.parametrize("encoding", ["array", "base64"])
async def test_one_byte_more(world: World, encoding: str) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.post(
            "/run", content=body(LARGEST + b"!", encoding), headers=JSON
        )
        assert answer.status_code == 413
        assert answer.json()["member"] == "computation"
        assert str(MAX_COMPUTATION) in answer.json()["detail"]
        assert not supervisor.running.service.vms


async def test_a_body_that_no_computation_can_need(world: World) -> None:
    """It is refused by its announced length, before it is sent."""
    async with world.serve() as supervisor:
        head = "POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", supervisor.running.http_port) as stream:
            await stream.send_all(f"{head}Content-Length: {10**9}\r\n\r\n".encode())
            answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in answer


def body(computation: bytes, encoding: str) -> bytes:
    """A request's body, the array put together from pieces: a JSON encoder would take long."""
    if encoding == "base64":
        return json.dumps({"computation": base64.b64encode(computation).decode()}).encode()
    numbers = json.dumps(list(EVERY_BYTE))[1:-1]
    rest = "".join(f", {byte}" for byte in computation[len(LARGEST) :])
    numbers = ", ".join([numbers] * (len(LARGEST) // 256))
    return f'{{"computation": [{numbers}{rest}]}}'.encode()


@pytest.mark.parametrize(
    ("content", "kind", "status", "member"),
    [
        (b'{"computation": [1]}', "text/plain", 415, None),
        (b'{"computation": [1]}', "", 415, None),
        (b"", "application/json", 400, None),
        (b"{", "application/json", 400, None),
        (b"[1]", "application/json", 400, None),
        (b"\xff", "application/json", 400, None),
        (b"{}", "application/json", 400, "computation"),
        (b'{"computation": null}', "application/json", 400, "computation"),
        (b'{"computation": []}', "application/json", 400, "computation"),
        (b'{"computation": ""}', "application/json", 400, "computation"),
        (b'{"computation": [1, 256]}', "application/json", 400, "computation[1]"),
        (b'{"computation": "!!!"}', "application/json", 400, "computation"),
        (b'{"computation": [1], "ttl": 3}', "application/json", 400, "ttl"),
    ],
)
async def test_refused_body_starts_no_vm(
    world: World, content: bytes, kind: str, status: int, member: str | None
) -> None:
    async with world.serve() as supervisor:
        headers = {"Content-Type": kind} if kind else {}
        answer = await supervisor.http.post("/run", content=content, headers=headers)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert answer.json().get("member") == member
        assert answer.json()["instance"] == "/run"
        assert not supervisor.running.service.vms


async def test_encoded_body_is_refused_and_not_read(world: World) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.post(
            "/run",
            content=gzip.compress(b'{"computation": [1]}'),
            headers=JSON | {"Content-Encoding": "gzip"},
        )
        assert answer.status_code == 415
        assert "gzip" in answer.json()["detail"]
        assert "without Content-Encoding" in answer.json()["advice"]


async def test_content_type_may_have_parameters(world: World) -> None:
    async with world.serve() as supervisor:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        answer = await supervisor.http.post("/run", content=b'{"computation":[1]}', headers=headers)
        assert answer.status_code == 200


async def test_each_computation_reaches_the_agent_of_its_own_vm(world: World) -> None:
    async with world.serve() as supervisor:
        answers = {}

        async def run(computation: bytes) -> None:
            answers[computation] = await supervisor.run(computation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, b"one")
            nursery.start_soon(run, b"two")
        for _ in answers:
            guest = await world.guest()
            digest = (await guest.until("Run"))["digest"]
            (own,) = (one for one in answers.values() if one["id"] == guest.vm_id)
            assert own["computation"] == digest
        assert len({answer["id"] for answer in answers.values()}) == 2
        ports = [one["host_port"] for answer in answers.values() for one in answer["forwards"]]
        assert len(set(ports)) == 6


async def test_asynchronous_run_answers_before_the_agent(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"later", Prefer="respond-async")
        assert answer.status_code == 202
        assert answer.headers["Preference-Applied"] == "respond-async"
        vm_id = answer.json()["id"]
        assert answer.headers["Location"] == f"/vms/{vm_id}"
        assert not answer.json()["agent_ready"]

        guest = await world.guest()
        await guest.until("cont")
        await guest.order("start-agent", kind="silent")
        await guest.until("Run")
        shown = (await supervisor.http.get(answer.headers["Location"])).json()
        assert shown["relay"] == {"state": "sent"}
        assert shown["agent"]["ready"]


async def test_result_of_an_asynchronous_run_appears_later(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await supervisor.begin(b"later")
        vm = supervisor.vm(vm_id)
        await vm.wait_answered()
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["relay"] == {"state": "answered"}
        reply = await supervisor.http.get(f"/vms/{vm_id}/reply")
        assert reply.text == hashlib.sha256(b"later").hexdigest()


@pytest.mark.parametrize(
    ("preference", "status"),
    [
        ("respond-async", 202),
        ("Respond-Async", 202),
        ("return=minimal, respond-async;x=1", 202),
        ("wait=10", 200),
        ("not-respond-async", 200),
    ],
)
async def test_preference(world: World, preference: str, status: int) -> None:
    async with world.serve() as supervisor:
        assert (await supervisor.post(b"1", Prefer=preference)).status_code == status


async def test_asynchronous_run_is_checked_like_any_other(world: World) -> None:
    async with world.serve() as supervisor:
        assert (await supervisor.post(b"", Prefer="respond-async")).status_code == 400


async def test_vm_of_a_caller_that_goes_away_is_ended(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.post, b"1")
            guest = await world.guest()
            await guest.until("Run")
            nursery.cancel_scope.cancel()
        vm = supervisor.only_vm()
        await vm.wait_ended()
        assert vm.record.relay == "failed"
        assert world.free_again()
        assert not world.sockets()


async def test_vm_of_a_caller_that_goes_away_during_the_launch_is_ended(world: World) -> None:
    world.scenario(greeting="nothing")
    async with world.serve() as supervisor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.post, b"1")
            guest = await world.guest()
            await guest.until("connected")
            nursery.cancel_scope.cancel()
        await guest.until("end")
        vm = supervisor.only_vm()
        await vm.wait_ended()
        assert vm.record.exit_code == -9
        assert world.free_again()


async def test_a_caller_may_hang_up_and_another_is_served(world: World) -> None:
    async with world.serve() as supervisor:
        with trio.move_on_after(0):
            await supervisor.post(b"1")
        url = supervisor.http.base_url
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as other:
            answer = await other.post("/run", json={"computation": [1]})
        assert answer.status_code == 200
