"""Parties of one VM: each brings or gets its own part, and nothing of the others."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.caller import Caller, KnownBy, Role
from tests.fake.test_results import COUNT, compute, put, world
from tests.support.agent_process import WRITE
from tests.support.tenants import ALICE, BOB, Asking

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

__all__ = ["world"]

PARTIES = {"algorithm": "alice", "data": ["bob", "carol"], "result": ["dave"]}
CAROL, DAVE, EVE, OWNER, OPERATOR = (
    Caller(name, role, KnownBy.TOKEN)
    for name, role in (
        ("carol", Role.RUN),
        ("dave", Role.RUN),
        ("eve", Role.RUN),
        ("owner", Role.RUN),
        ("operator", Role.OPERATE),
    )
)
EVERY = b"b''.join(open(f'{os.environ[\"DATASET_DIR\"]}/{n}', 'rb').read() for n in range(2))"


@pytest.fixture
def asking(world: World, monkeypatch: pytest.MonkeyPatch) -> Asking:
    world.settings["MANAGER_AUTH"] = "on"
    return Asking(monkeypatch)


async def shared(supervisor: Supervisor, asking: Asking) -> str:
    with asking(OWNER):
        body = {"computation": "e30=", "parties": PARTIES}
        answer = await supervisor.http.post("/run", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["credential"] is None
        return str(answer.json()["id"])


async def test_parties(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        vm_id = await shared(supervisor, asking)
        path = f"/vms/{vm_id}"
        with asking(DAVE):
            early = await supervisor.http.post(f"{path}/compute")
            assert early.status_code == 409
            assert "algorithm of alice, data/0 of bob, data/1 of carol" in early.json()["detail"]
        with asking(ALICE):
            await put(supervisor.http, f"{path}/algorithm", b"import os" + WRITE % EVERY)
        with asking(BOB):
            await put(supervisor.http, f"{path}/data/0", b"one ")
        with asking(CAROL):
            await put(supervisor.http, f"{path}/data/1", b"two")
        with asking(DAVE):
            assert (await compute(supervisor, vm_id))["state"] == "succeeded"
            assert (await supervisor.http.get(f"{path}/result")).content == b"one two"
            page = await supervisor.http.get("/events?limit=1000")
            told = [one for one in page.json()["events"] if one["vm"] == vm_id]
            assert [one["part"] for one in told if one["event"] == "upload"] == [
                *("algorithm", "data/0", "data/1"),
            ]
            assert "sha256" not in page.text


MAY = {
    ("PUT", "algorithm"): "alice",
    ("PUT", "data/0"): "bob",
    ("PUT", "data/1"): "carol",
    ("PUT", "data/2"): "",
    ("POST", "compute"): "dave",
    ("GET", "outcome"): "dave",
    ("GET", "result"): "dave",
    ("GET", "logs?source=algorithm"): "dave",
    ("GET", "logs"): "owner operator",
    ("GET", "reply"): "owner operator",
    ("POST", "pause"): "owner operator",
    ("GET", "status"): "alice bob carol dave owner operator",
    ("GET", ""): "alice bob carol dave owner operator",
    ("GET", "events?limit=1"): "alice bob carol dave owner operator",
    ("DELETE", ""): "owner operator",
}


async def test_what_each_party_may(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        vm_id = await shared(supervisor, asking)
        for caller in (EVE, ALICE, BOB, CAROL, DAVE, OPERATOR, OWNER):
            with asking(caller):
                listed = (await supervisor.http.get("/vms")).json()["vms"]
                assert bool(listed) is (caller is not EVE)
                for (method, what), names in MAY.items():
                    if method == "DELETE" and caller in (OWNER, OPERATOR):
                        continue
                    path = f"/vms/{vm_id}/{what}".rstrip("/")
                    answer = await supervisor.http.request(method, path)
                    may = caller.name in names.split()
                    refused = (404,) if caller is EVE else (403,)
                    allowed = (200, 400, 409)
                    wanted = allowed if may else refused
                    assert answer.status_code in wanted, (caller, method, what, answer.text)
        with asking(OWNER):
            assert (await supervisor.http.delete(f"/vms/{vm_id}")).status_code == 204


async def test_algorithm_that_was_agreed_on(world: World, asking: Asking) -> None:
    """Another is not taken, whatever it is said to be."""
    agreed = b"the one\n"
    digest = hashlib.sha256(agreed).hexdigest()
    async with world.serve() as supervisor:
        with asking(OWNER):
            parties = PARTIES | {"algorithm_sha256": digest.upper()}
            body = {"computation": "e30=", "parties": parties}
            vm_id = (await supervisor.http.post("/run", json=body)).json()["id"]
            bad = body | {"parties": PARTIES | {"algorithm_sha256": "12"}}
            assert (await supervisor.http.post("/run", json=bad)).status_code == 400
        path = f"/vms/{vm_id}/algorithm"
        with asking(ALICE):
            shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
            assert shown["parties"]["algorithm_sha256"] == digest
            other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
            for headers in ({}, {"Content-Digest": f"sha-256=:{other}:"}):
                refused = await supervisor.http.put(path, content=b"other", headers=headers)
                assert (refused.status_code, digest in refused.text) == (400, True), refused.text
            await put(supervisor.http, path, agreed)


async def test_parts_are_gone_with_the_guest(world: World, asking: Asking) -> None:
    """After a reset the agent has nothing, and nobody's part counts as sent."""
    async with world.serve() as supervisor:
        vm_id = await shared(supervisor, asking)
        vm = supervisor.vm(vm_id)
        with asking(ALICE):
            await put(supervisor.http, f"/vms/{vm_id}/algorithm", COUNT)
        assert vm.record.sent == ("algorithm",)
        with asking(OWNER):
            await supervisor.http.post(f"/vms/{vm_id}/reset")
        await vm.until(lambda: vm.record.sent == ())


@pytest.mark.parametrize(
    "parties",
    [
        [],
        {},
        PARTIES | {"data": "bob"},
        PARTIES | {"data": []},
        PARTIES | {"result": [7]},
        PARTIES | {"algorithm": ""},
        PARTIES | {"others": []},
        PARTIES | {"data": ["bob"] * 65},
    ],
)
async def test_parties_that_are_none(world: World, asking: Asking, parties: Any) -> None:
    async with world.serve() as supervisor:
        with asking(OWNER):
            body = {"computation": "e30=", "parties": parties}
            answer = await supervisor.http.post("/run", json=body)
        assert (answer.status_code, answer.json()["member"]) == (400, "parties")


async def test_parties_where_nobody_is_asked(world: World) -> None:
    async with world.serve() as supervisor:
        body = {"computation": "e30=", "parties": PARTIES}
        answer = await supervisor.http.post("/run", json=body)
        assert "exclude MANAGER_AUTH=off" in answer.json()["detail"]
