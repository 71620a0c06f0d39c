"""What a page of another site makes a browser send is refused, whatever it asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake.test_connections import ask

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
]
#: What a form can send without asking first.
SIMPLE = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]


def routes(supervisor: Supervisor, vm_id: str) -> list[tuple[str, str]]:
    return [
        *(("GET", path) for path in ("/vms", "/events", "/templates", "/metrics", "/nowhere")),
        *(("GET", f"/vms/{vm_id}{rest}") for rest in ("", "/status", "/reply", "/events")),
        *(("POST", f"/vms/{vm_id}/{act}") for act in ("pause", "resume", "reset", "shutdown")),
        ("POST", "/run"),
        ("DELETE", f"/vms/{vm_id}"),
    ]


async def test_foreign_page_gets_nothing_and_changes_nothing(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        for headers in FOREIGN:
            for method, path in routes(supervisor, vm_id):
                answer = await supervisor.http.request(method, path, headers=headers)
                assert answer.status_code == 403, (method, path)
                assert answer.json()["title"] == "Cross site"
            assert (await supervisor.http.get("/health", headers=headers)).status_code == 200
        (vm,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert vm["state"] == "running"


@pytest.mark.parametrize("path", ["/health", "/vms", "/run", "/nowhere"])
async def test_name_that_was_bound_to_our_address(world: World, path: str) -> None:
    async with world.serve() as supervisor:
        port = supervisor.running.http_port
        for host in ("evil.example", f"evil.example:{port}", "localhost@evil.example"):
            answer = await supervisor.http.post(path, headers={"Host": host})
            assert answer.status_code == 421, host
            assert "MANAGER_HTTP_NAMES" in answer.json()["advice"]


async def test_names_that_the_settings_have(world: World) -> None:
    async with world.serve(MANAGER_HTTP_NAMES="vms.example.org, vms") as supervisor:
        for host in ("vms.example.org", "VMS:9021", "localhost", "127.0.0.1"):
            answer = await supervisor.http.get("/vms", headers={"Host": host})
            assert answer.status_code == 200, host


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://evil.example/vms HTTP/1.1\r\nHost: localhost\r\n", 421),
        (b"GET http://localhost/vms HTTP/1.1\r\nHost: evil.example\r\n", 421),
        (b"GET http://localhost/vms HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"GET /vms HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        (b"GET /vms HTTP/1.1\r\nHost: u:p@localhost\r\n", 421),
        (b"GET /vms HTTP/1.1\r\nHost: \r\n", 421),
        (b"GET /vms HTTP/1.0\r\n", 200),
        (b"OPTIONS /run HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n", 403),
        (
            b"GET /events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
            b"Accept: text/event-stream\r\n",
            403,
        ),
    ],
)
async def test_raw_requests(world: World, request_: bytes, status: int) -> None:
    async with world.serve() as supervisor:
        head, _ = await ask(supervisor, request_ + b"Connection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        (b"Host: evil.example\r\nOrigin: http://evil.example\r\n", 421),
    ],
)
async def test_websocket_of_a_foreign_page(world: World, headers: bytes, status: int) -> None:
    async with world.serve() as supervisor:
        head, body = await ask(
            supervisor,
            b"GET /events HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"%b\r\n" % headers,
        )
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["status"] == status


@pytest.mark.parametrize("kind", [None, *SIMPLE])
async def test_body_without_its_type(world: World, kind: str | None) -> None:
    """Also where a body is not needed: a form needs no leave of the page's browser."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        headers = {"Content-Type": kind} if kind else {}
        for method, path in routes(supervisor, vm_id):
            if path == "/nowhere":
                continue
            answer = await supervisor.http.request(method, path, content=b"{}", headers=headers)
            # This one takes forms, and this is none. Whose page may send one: the tests above.
            takes = path == "/run" and (kind or "").startswith("multipart/")
            assert answer.status_code == (400 if takes else 415), (method, path)
        assert (await supervisor.http.get(f"/vms/{vm_id}")).json()["state"] == "running"


async def test_member_where_none_is_known(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        path = f"/vms/{vm_id}"
        for method, where in (("POST", f"{path}/pause"), ("DELETE", path)):
            answer = await supervisor.http.request(method, where, json={"force": True})
            assert answer.status_code == 400
            assert answer.json()["member"] == "force"
        assert (await supervisor.http.request("POST", f"{path}/pause", json={})).status_code == 200


async def test_answer_is_not_for_pages_of_others(world: World) -> None:
    async with world.serve() as supervisor:
        for path in ("/health", "/vms", "/nowhere"):
            headers: Any = (await supervisor.http.get(path)).headers
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in headers
