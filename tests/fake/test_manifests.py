"""Computations that are manifests, for agents that dial: what is none is refused before a VM is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from supervisor.pb import manager_pb2
from tests.fake.test_dialled import IN_JSON
from tests.support.namespaces import needs_namespaces

if TYPE_CHECKING:
    from tests.support.world import World

pytestmark = needs_namespaces


@pytest.fixture
def world(world: World) -> World:
    world.settings["MANAGER_AGENT_DIALS"] = "chunked"
    world.settings["MANAGER_FORWARDS"] = "none"
    return world


@pytest.mark.parametrize(
    ("computation", "words"),
    [
        (b"no manifest", "is no manifest"),
        (b'{"id": "c", "datasts": []}', "datasts"),
        (b'{"name": "c"}', "has an id of 0 characters"),
        (b'{"id": "c", "algorithm": {"hash": "AAAA"}}', "an algorithm with a hash of 3 bytes"),
        (b'{"id": "c", "datasets": [{}]}', "a dataset with a hash of 0 bytes"),
        (b'{"id": "%s"}' % (b"c" * 32768), "the limit of a manifest is 32768 in JSON"),
        (b"\x0a" + bytes(1024 * 1024), "the limit of a manifest is 1048576"),
        (b"{" * 10_000, "is no manifest"),
    ],
)
async def test_computation_that_is_no_manifest(
    world: World, computation: bytes, words: str
) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.post(computation)
        assert answer.status_code in (400, 413)
        assert words in answer.json()["detail"]
        request = manager_pb2.RunRequest(computation=computation)
        with pytest.raises(grpc.RpcError) as raised:
            await supervisor.call(supervisor.manager.Run, request)
        assert words in str(raised.value.details())
        assert not len(supervisor.running.service.vms)


async def test_agent_that_nobody_would_reach(world: World) -> None:
    """What it is told is where it listens."""
    world.settings["MANAGER_FORWARDS"] = "host"
    async with world.serve() as supervisor:
        answer = await supervisor.post(b'{"id": "c", "agentConfig": {"port": "7003"}}')
        assert "reach the ports 22, 9031, 7002" in answer.json()["detail"]
        assert not len(supervisor.running.service.vms)


async def test_manifest_as_a_body(world: World) -> None:
    """It looks like a request, and is told what it lacks."""
    async with world.serve() as supervisor:
        answer = await supervisor.http.post("/run", json={"id": "c", "agentConfig": {}})
        assert answer.json()["detail"] == (
            "'agentConfig' is not a member; the computation itself goes into the member"
            " computation; 'qmp-supervisor run' takes its file as it is"
        )


async def test_template_is_of_no_use(world: World) -> None:
    async with world.serve() as supervisor:
        body = {"computation": list(IN_JSON), "template": "require"}
        answer = await supervisor.http.post("/run", json=body)
        assert (answer.status_code, "environment of its own" in answer.text) == (400, True)
        assert not (await supervisor.http.get("/templates")).json()["templates"]
