"""Consoles of VMs on another host: a WebSocket at one member, and one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx_ws
import pytest

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.fleet.identity import Identity
from tests.fake.test_console import WRITE, connected, opened
from tests.fleet.test_events import SOUTH, ZONE, post
from tests.fleet.test_members import ALICE, address, client

if TYPE_CHECKING:
    import httpx

    from tests.fleet.conftest import Fleet

ORIGIN = {"Origin": "http://evil.example"}


async def refused(http: httpx.AsyncClient, path: str, **headers: str) -> int:
    with pytest.raises(httpx_ws.WebSocketUpgradeError) as error:
        async with httpx_ws.aconnect_ws(path, http, headers=headers):
            pass
    return error.value.response.status_code


async def test_typing_through_another_member(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, b):
        vm_id = await post(a, SOUTH)
        async with opened(a, vm_id) as tty, opened(b, vm_id) as near:
            await tty.until_state(writer=None, you=False)
            await connected(a, tty, b"hello\r")
            await near.until(b"hello\r")
            await near.until_state(writer="", you=False)
            await near.socket.send_text(WRITE)
            await tty.until_state(writer="", you=False)
            await near.socket.send_bytes(b"again\r")
            await tty.until(b"again\r")
            await a.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
            assert await tty.until_closed() == (1000, "the VM has ended")
        # What a guest has printed is followed through another member as well.
        logs = await a.http.get(f"/vms/{vm_id}/logs?follow=1")
        assert b"again\r" in logs.content
        assert (await a.http.get(f"/vms/{vm_id}/logs?follow=2")).status_code == 400


async def test_ends_of_a_console_elsewhere(fleet: Fleet) -> None:
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE, MANAGER_CALLER_READERS="1") as (a, b):
        vm_id = await post(a, SOUTH)
        # Who leaves leaves nothing at the other member, where one reader may be.
        for _ in range(3):
            async with opened(a, vm_id) as tty:
                await tty.until_state(writer=None, you=False)
        async with opened(a, vm_id) as tty:
            await tty.until_state(writer=None, you=False)
            assert await refused(a.http, f"/vms/{vm_id}/console") == 429
            await tty.socket.send_bytes(bytes(65 * 1024))
            assert (await tty.until_closed())[0] == 1009
        async with opened(a, vm_id) as tty:
            await tty.until_state(writer=None, you=False)
            await b.kill()
            assert await tty.until_closed() == (1013, "the member b is gone")
        async with fleet.serve("b"):  # which ends its VM with itself
            pass


async def test_who_may_not_reaches_no_console_through_another_member(fleet: Fleet) -> None:
    file = fleet.worlds["a"].tmp / "tokens.json"
    file.parent.mkdir(exist_ok=True)
    shown: dict[str, dict[str, Any]] = {}
    secrets = {}
    for name, role in (("alice", Role.RUN), ("bob", Role.RUN), ("rita", Role.READ)):
        _, secrets[name] = tokens.create(file, name, role, None, tokens.now())
        shown[name] = {"Authorization": f"Bearer {secrets[name]}"}
    for world in fleet.worlds.values():
        world.settings["MANAGER_AUTH"] = "on"
    async with fleet.serve_both(MANAGER_FLEET_LABELS=ZONE) as (a, _):
        vm_id = await post(a, SOUTH, **shown["alice"])
        path = f"/vms/{vm_id}/console"
        assert await refused(a.http, path) == 401
        assert await refused(a.http, path, **shown["bob"]) == 404
        assert await refused(a.http, path, **shown["rita"]) == 403
        assert await refused(a.http, path, **shown["alice"], **ORIGIN) == 403
        parties = {"algorithm": "alice", "data": ["bob"], "result": ["alice"]}
        with_parties = await post(a, SOUTH | {"parties": parties}, **shown["alice"])
        assert await refused(a.http, f"/vms/{with_parties}/console", **shown["alice"]) == 403
        # The other member's own port, without a token, and with one for another request.
        signer = Identity.read(fleet.brokers.files("a"))
        async with client(fleet.brokers.files("a")) as http:
            at = f"{address(fleet, 'b')}{path}"
            token = signer.sign(ALICE, "b", "GET", "/vms")
            assert await refused(http, at) == 401
            assert await refused(http, at, Authorization=f"Bearer {token}") == 401
        # As a browser's script shows who it is; and what becomes of it when that is revoked.
        offered = ["console.qmp-supervisor", f"bearer.{secrets['alice']}"]
        async with opened(a, vm_id, subprotocols=offered) as tty:
            assert tty.socket.subprotocol == "console.qmp-supervisor"
            await tty.until_state(writer=None, you=False)
            (entry,) = (one for one in tokens.read(file) if one.name == "alice")
            tokens.revoke(file, entry.id, tokens.now())
            await tty.socket.send_text(WRITE)
            assert await tty.until_closed() == (1008, "the caller may read no more")
