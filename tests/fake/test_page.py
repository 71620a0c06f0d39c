"""The page, its files, and what it asks the API for that nothing else does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx_ws
import pytest

from supervisor.api.auth import tokens
from supervisor.api.http.page import DIRECTORY
from supervisor.caller import Role
from tests.fake.test_auth import http
from tests.support.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World


async def test_strangers_get_the_page_and_nothing_else(short_tmp: Path) -> None:
    async with serving(short_tmp) as running, http(running) as client:
        page = await client.get("/")
        assert page.status_code == 200
        for name in re.findall('(?:src|href)="(page/.*?)"', page.text):
            assert (await client.get(f"/{name}")).status_code == 200, name
        for path in ("/page/", "/page/index.html", "/page/vendor", "/page/../api/gate.py"):
            assert (await client.get(path)).status_code in (401, 404), path
        assert (await client.get("/page/%2e%2e/errors.py")).status_code == 404
        assert (await client.get("/whoami")).status_code == 401
        for method in ("POST", "PUT", "DELETE"):
            assert (await client.request(method, "/")).status_code == 401


async def test_policy_of_the_page(world: World) -> None:
    async with world.serve() as supervisor:
        policies = set()
        for _ in range(2):
            # Somebody has a link to it: that is the only path that another site may lead to.
            page = await supervisor.http.get("/", headers={"Sec-Fetch-Site": "cross-site"})
            policy = page.headers["Content-Security-Policy"]
            (nonce,) = re.findall("'nonce-(.*?)'", policy)
            assert f'nonce="{nonce}"' in page.text
            policies.add(policy)
            for word in ("default-src 'none'", "frame-ancestors 'none'", "trusted-types 'none'"):
                assert word in policy
            assert "unsafe" not in policy
            assert page.headers["Cache-Control"] == "no-store"
            assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert len(policies) == 2
        script = "/page/main.mjs"
        foreign = await supervisor.http.get(script, headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status_code == 403


async def test_files_of_the_page(world: World) -> None:
    async with world.serve() as supervisor:
        for path in DIRECTORY.rglob("*.mjs"):
            name = f"/page/{path.relative_to(DIRECTORY)}"
            answer = await supervisor.http.get(name)
            assert answer.content == path.read_bytes()
            assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
            again = {"If-None-Match": answer.headers["ETag"]}
            assert (await supervisor.http.get(name, headers=again)).status_code == 304


async def test_who_calls(world: World, short_tmp: Path) -> None:
    async with world.serve() as supervisor:
        nobody = (await supervisor.http.get("/whoami")).json()
        assert (nobody["name"], nobody["role"], nobody["known_by"]) == (None, "admin", "nothing")
    async with serving(short_tmp) as running, http(running) as client:
        file = short_tmp / "tokens.json"
        _, token = tokens.create(file, "alice", Role.READ, None, tokens.now())
        answer = await client.get("/whoami", headers={"Authorization": f"Bearer {token}"})
        assert answer.json() == {
            "name": "alice",
            "role": "read",
            "known_by": "token",
            "rights": ["metrics", "see", "host"],
        }


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("console.qmp-supervisor, bearer.{}", 404),  # known, and there is no such VM
        ("bearer.{}", 404),
        ("console.qmp-supervisor, bearer.qms_nobodys", 401),
        ("console.qmp-supervisor", 401),
        ("bearer.{0}, bearer.{0}", 401),
        ("Bearer {}", 401),
    ],
)
async def test_token_as_a_subprotocol(short_tmp: Path, header: str, status: int) -> None:
    path = "/vms/00000000-0000-4000-8000-000000000000/console"
    async with serving(short_tmp) as running, http(running) as client:
        file = short_tmp / "tokens.json"
        _, token = tokens.create(file, "alice", Role.OPERATE, None, tokens.now())
        name = "Sec-WebSocket-Protocol"
        headers = {name: header.format(token)}
        with pytest.raises(httpx_ws.WebSocketUpgradeError) as refused:
            async with httpx_ws.aconnect_ws(path, client, headers=headers):
                pass
        assert refused.value.response.status_code == status
    async with serving(short_tmp) as running, http(running) as client:
        # Of no use for anything but a WebSocket.
        answer = await client.get("/vms", headers={name: header.format(token)})
        assert answer.status_code == 401, answer.text


async def test_checks_of_the_host(world: World) -> None:
    async with world.serve() as supervisor:
        found = (await supervisor.http.get("/host/checks")).json()["checks"]
        names = {check["name"] for check in found}
        assert {"QEMU", "KVM", "TEE"} <= names
        assert not {"HTTP", "GRPC"} & names
        assert all(set(check) == {"name", "verdict", "detail", "advice"} for check in found)


async def test_usage_of_vms(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        (vm,) = (await supervisor.http.get("/vms?usage=true")).json()["vms"]
        assert vm["usage"]["memory_bytes"] > 2**20
        assert vm["usage"]["cpu_s"] > 0
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert set(shown["usage"]) == {"at", "cpu_s", "memory_bytes"}
        (vm,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert "usage" not in vm
        answer = await supervisor.http.get("/vms?usage=yes")
        assert answer.json()["member"] == "usage"
        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert (await supervisor.http.get(f"/vms/{vm_id}")).json()["usage"] is None
