"""Computations, replies, tokens: nowhere but where they are meant to be."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.guest import Apart
    from tests.support.world import World

COMPUTATION = b"the-computation-4f1d8a6e-nobody-else-may-see-it"
#: What the stand-in's agent answers.
REPLY = hashlib.sha256(COMPUTATION).hexdigest().encode()
TOKEN = b"a-token-that-came-with-a-request-93ab52c7"
OF_ENVIRONMENT = b"a-key-in-the-supervisors-environment-6610fe"
ALL = (COMPUTATION, REPLY, TOKEN, OF_ENVIRONMENT)

HEADERS = {"Authorization": f"Bearer {TOKEN.decode()}"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", OF_ENVIRONMENT.decode())


def body(**members: Any) -> str:
    return json.dumps({"computation": list(COMPUTATION), **members})


async def answers(supervisor: Apart, vm_id: str) -> list[tuple[str, bytes]]:
    """Every answer but the one that is asked for the reply."""
    paths = ["/vms", f"/vms/{vm_id}", f"/vms/{vm_id}/status", "/events?after=0&limit=1000"]
    paths += [f"/vms/{vm_id}/events?after=0&limit=1000", "/templates", "/metrics", "/health"]
    got = []
    for path in paths:
        answer = await supervisor.http.get(path, headers=HEADERS)
        assert answer.status_code == 200, (path, answer.text)
        got.append((path, answer.content))
    return got


def malformed() -> Iterator[str]:
    """Bodies with the computation, each with another fault."""
    yield body()[:-3]
    yield body(unknown=1)
    yield body(ttl="soon")
    yield body(restart="perhaps")
    yield json.dumps({"computation": COMPUTATION.decode()})  # not base64
    yield json.dumps({"computation": [*COMPUTATION, 256]})
    yield json.dumps({"computation": {"text": COMPUTATION.decode()}})
    yield json.dumps([COMPUTATION.decode()])


async def test_a_secret_is_told_to_nobody_who_did_not_ask_for_it(world: World) -> None:
    json_body = {"Content-Type": "application/json", **HEADERS}
    async with world.serve_apart(MANAGER_LOG_LEVEL="debug") as supervisor:
        for wrong in malformed():
            refused = await supervisor.http.post("/run", content=wrong, headers=json_body)
            assert refused.status_code == 400, refused.text
            assert not secrets.found([(wrong, refused.content)], *ALL)
        kept = body(restart="on-failure")  # keeps the computation until the VM's end
        answer = await supervisor.http.post("/run", content=kept, headers=json_body)
        run, guest = answer.json(), await world.guest()
        assert run["computation"].encode() == REPLY
        directory = world.tmp / run["id"]
        assert (directory / "computation").read_bytes() == COMPUTATION
        assert (directory / "reply").read_bytes() == REPLY

        assert not secrets.found(await answers(supervisor, run["id"]), *ALL)
        assert not secrets.found(secrets.process(guest.pid), *ALL)
        assert not secrets.found(secrets.files(world.tmp), *ALL)
        assert not secrets.open_to_others(world.tmp)

        shut_down = await supervisor.http.post(f"/vms/{run['id']}/shutdown", headers=HEADERS)
        assert not secrets.found([("shutdown", shut_down.content)], *ALL)
        assert not (directory / "computation").exists()
        assert not secrets.found(await answers(supervisor, run["id"]), *ALL)
        assert not secrets.found(secrets.files(world.tmp), *ALL)
        log = [(line["message"], json.dumps(line).encode()) for line in supervisor.log]
        assert len(log) > 3
        assert not secrets.found(log, *ALL)


async def test_a_computation_is_on_disk_until_it_is_sent(world: World) -> None:
    async with world.serve() as supervisor:
        run = await supervisor.run(COMPUTATION)
        assert not (world.tmp / run["id"] / "computation").exists()


def test_a_secret_would_be_found() -> None:
    before = [b"", b"a", b"ab"]
    for form in secrets.forms(COMPUTATION):
        for text in before:
            assert secrets.found([("place", text + form + b"!")], *ALL) == {"place"}
    assert not secrets.found([("place", b"nothing")], *ALL)
