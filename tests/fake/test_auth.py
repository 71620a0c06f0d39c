"""Who may: Hypercorn and grpc as they are, and callers of every kind. No VM is needed."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import trio
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from supervisor import cli
from supervisor.agent.channel import MAX_MESSAGE
from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.errors import HostError
from supervisor.pb import manager_pb2, manager_pb2_grpc, vm_pb2, vm_pb2_grpc
from tests.support.servers import serving
from tests.support.world import PATIENCE_S, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from supervisor.app import Running

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can run a program as another user"
)

#: A user who is neither root nor anybody of this host.
OTHER = 12345


def create(directory: Path, role: Role = Role.RUN, lifetime_s: float | None = None) -> str:
    began = datetime.now(UTC) - timedelta(hours=1)
    _, secret = tokens.create(directory / "tokens.json", "alice", role, lifetime_s, began)
    return secret


def http(running: Running, **options: Any) -> httpx.AsyncClient:
    scheme = "https" if "verify" in options else "http"
    url = f"{scheme}://localhost:{running.http_port}"
    # A connection stays for as long as the server lets it.
    limits = httpx.Limits(keepalive_expiry=None)
    return httpx.AsyncClient(
        base_url=url, trust_env=False, timeout=PATIENCE_S, limits=limits, **options
    )


def local(socket_path: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(socket_path))
    return httpx.AsyncClient(base_url="http://localhost", transport=transport, timeout=PATIENCE_S)


def ask(channel: grpc.Channel, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
    """Of a call that needs a caller: its status and text."""
    stub = vm_pb2_grpc.VmServiceStub(channel)
    return status_of(partial(stub.List, vm_pb2.ListRequest()), *metadata)


def status_of(call: Callable[..., Any], *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
    try:
        call(timeout=PATIENCE_S, metadata=metadata)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), failed.details()
    return grpc.StatusCode.OK, ""


def over_grpc(running: Running, *metadata: tuple[str, str]) -> Any:
    return trio.to_thread.run_sync(_over_grpc, f"localhost:{running.grpc_port}", metadata)


def _over_grpc(target: str, metadata: Sequence[tuple[str, str]]) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(target) as channel:
        return ask(channel, *metadata)


# --- tokens -----------------------------------------------------------------------------------


async def test_tokens(short_tmp: Path) -> None:
    good, expired = create(short_tmp), create(short_tmp, lifetime_s=60)
    revoked = create(short_tmp, Role.OPERATE)
    known = {one.role: one for one in tokens.read(short_tmp / "tokens.json")}
    tokens.revoke(short_tmp / "tokens.json", known[Role.OPERATE].id, tokens.now())
    shown: list[tuple[list[str], int, str]] = [
        ([], 401, "does not say who calls"),
        ([f"Bearer {good}"], 200, ""),
        ([f"bearer {good}"], 200, ""),
        ([f"Bearer   {good}"], 200, ""),
        ([f"Bearer {good[:-1]}"], 401, "not known"),
        ([f"Bearer {good.swapcase()}"], 401, "not known"),
        ([f"Bearer {expired}"], 401, "expired"),
        ([f"Bearer {revoked}"], 401, "revoked"),
        ([good], 401, "not 'Bearer'"),
        ([f"Basic {good}"], 401, "not 'Bearer'"),
        ([f"Bearer\t{good}"], 401, "not 'Bearer'"),
        ([f"Bearer {good} {good}"], 401, "not 'Bearer'"),
        ([f"Bearer {good}", f"Bearer {good}"], 401, "more than one"),
        ([f"Bearer {good}", "Bearer x"], 401, "more than one"),
    ]
    async with serving(short_tmp) as running, http(running) as client:
        for values, status, why in shown:
            headers = [("Authorization", value) for value in values]
            answer = await client.get("/vms", headers=headers)
            assert answer.status_code == status, values
            if status == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["content-type"] == "application/problem+json"
                assert why in answer.json()["detail"], values
                assert "token create" in answer.json()["advice"]
            if any("\t" in value for value in values):
                continue  # grpc's client does not send it
            metadata = [("authorization", value) for value in values]
            code, text = await over_grpc(running, *metadata)
            wanted = grpc.StatusCode.OK if status == 200 else grpc.StatusCode.UNAUTHENTICATED
            assert code is wanted, values
            assert why in text
        await client.post("/run", headers={"Authorization": f"Bearer {good}"})
    # Who takes a token back sees who has tried it since.
    states = {one.id: one.state(tokens.now()) for one in tokens.read(short_tmp / "tokens.json")}
    lines = [json.loads(one) for one in (short_tmp / "audit.jsonl").read_text().splitlines()]
    shown_on = {(one["wire"], one["error"], states.get(one["token"], "of nobody")) for one in lines}
    assert shown_on == {
        *((wire, "Unauthenticated", "of nobody") for wire in ("http", "grpc")),
        *((wire, "Unauthenticated", "expired") for wire in ("http", "grpc")),
        *((wire, "Unauthenticated", "revoked") for wire in ("http", "grpc")),
        ("http", "UnsupportedMedia", "valid"),
    }


async def test_token_of_now(short_tmp: Path) -> None:
    """On a connection that stays."""
    async with serving(short_tmp) as running, http(running) as client:
        headers = {"Authorization": f"Bearer {create(short_tmp)}"}
        assert (await client.get("/vms", headers=headers)).status_code == 200
        tokens.revoke(short_tmp / "tokens.json", "alice", tokens.now())
        assert (await client.get("/vms", headers=headers)).status_code == 401


async def test_health_answers_everybody_and_nothing_else_does(short_tmp: Path) -> None:
    async with serving(short_tmp) as running, http(running) as client:
        for headers in ({}, {"Authorization": "Bearer x"}):
            assert (await client.get("/health", headers=headers)).status_code == 200
        for path in ("/vms", "/metrics", "/templates", "/events", "/vms/x", "/vms/x/reply"):
            assert (await client.get(path)).status_code == 401, path
        for path in ("/vms/x/pause", "/vms/x/resume", "/vms/x/reset", "/vms/x/shutdown"):
            assert (await client.post(path)).status_code == 401, path
        assert (await client.delete("/vms/x")).status_code == 401
        healthy = await trio.to_thread.run_sync(_health_and_reflection, running.grpc_port)
        assert healthy == (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)


async def test_strangers_who_ask_for_health(short_tmp: Path) -> None:
    """They hang as long as they may, and take nothing of those who are known."""
    token = create(short_tmp)
    async with serving(short_tmp) as running:
        codes = await trio.to_thread.run_sync(_hang, running.grpc_port, 20)
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 12
        code, _ = await over_grpc(running, ("authorization", f"Bearer {token}"))
        assert code is grpc.StatusCode.OK
        # A stream has no end of its own.
        assert await trio.to_thread.run_sync(_watch, running.grpc_port) == "UNAUTHENTICATED"


def _hang(port: int, count: int) -> list[grpc.StatusCode]:
    """What becomes of so many calls for health whose message never comes."""
    never: SimpleQueue[health_pb2.HealthCheckRequest | None] = SimpleQueue()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        check: Any = channel.stream_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        calls = [check.future(iter(never.get, None), timeout=PATIENCE_S) for _ in range(count)]
        codes = [call.code() for call in calls]
        for _ in calls:
            never.put(None)
    return codes


def _watch(port: int) -> str:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request, timeout=PATIENCE_S))
        return str(caught.value.code().name)


def _health_and_reflection(port: int) -> tuple[grpc.StatusCode, grpc.StatusCode]:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health, _ = status_of(partial(stub.Check, health_pb2.HealthCheckRequest()))
        reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")

        def reflect(**options: Any) -> Any:
            return next(reflecting.ServerReflectionInfo(iter([request]), **options))

        return health, status_of(reflect)[0]


@pytest.mark.parametrize(
    "target",
    [
        "/health/../vms",
        "/health/%2e%2e/vms",
        "//vms",
        "/vms/",
        "/%76ms",
        "/vms%2f",
        "/VMS",
        "/vms?/health",
        "/vms;/health",
        "http://localhost/vms",
    ],
)
async def test_paths_that_look_like_another(short_tmp: Path, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    async with serving(short_tmp) as running:
        stream = await trio.open_tcp_stream("127.0.0.1", running.http_port)
        async with stream:
            await stream.send_all(request)
            answer = b"".join([part async for part in stream])
    assert answer.split()[1] in (b"401", b"404"), answer
    assert b'"vms":' not in answer


@pytest.mark.parametrize("length", [b"Content-Length: 60000000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("target", [b"POST /run", b"POST /nowhere", b"NONSENSE /vms"])
async def test_stranger_is_turned_away_before_the_body_is_read(
    short_tmp: Path, target: bytes, length: bytes
) -> None:
    head = (b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%b\r\n\r\n") % (
        target,
        length,
    )
    await _is_refused(short_tmp, head)


@pytest.mark.parametrize("path", [b"/nowhere", b"/vms", b"/vms/x/console"])
async def test_stranger_learns_no_path_by_a_websocket(short_tmp: Path, path: bytes) -> None:
    head = (
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ) % path
    await _is_refused(short_tmp, head)


async def _is_refused(tmp: Path, head: bytes) -> None:
    async with serving(tmp) as running:
        stream = await trio.open_tcp_stream("127.0.0.1", running.http_port)
        async with stream:
            await stream.send_all(head)
            with trio.fail_after(PATIENCE_S):
                assert b" 401 " in await stream.receive_some(1000)


async def test_stranger_is_turned_away_before_the_message_is_read(short_tmp: Path) -> None:
    async with serving(short_tmp) as running:
        # More than grpc takes: the status would be another one if it had read the message.
        code = await trio.to_thread.run_sync(_too_much, running.grpc_port)
        assert code is grpc.StatusCode.UNAUTHENTICATED


def _too_much(port: int) -> grpc.StatusCode:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        request = manager_pb2.RunRequest(computation=bytes(2 * MAX_MESSAGE))
        run = manager_pb2_grpc.ManagerServiceStub(channel).Run
        return status_of(partial(run, request))[0]


# --- the unix socket --------------------------------------------------------------------------


async def test_own_user_is_admin_over_the_sockets(short_tmp: Path) -> None:
    async with serving(short_tmp) as running, local(short_tmp / "api.sock") as client:
        for path in ("/vms", "/metrics", "/templates"):
            assert (await client.get(path)).status_code == 200, path
        bad = {"Authorization": "Bearer x"}
        assert (await client.get("/vms", headers=bad)).status_code == 401
        for name, code in (
            ("grpc.sock", grpc.StatusCode.OK),
            # Who comes by the way behind is not known there.
            ("grpc-inner.sock", grpc.StatusCode.UNAUTHENTICATED),
        ):
            target = f"unix:{short_tmp / name}"
            assert (await trio.to_thread.run_sync(_over_grpc, target, ()))[0] is code
        async with http(running) as stranger:
            assert (await stranger.get("/vms")).status_code == 401


def curl_as(uid: int, gid: int, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["curl", "-sS", "--max-time", str(PATIENCE_S), *arguments],
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        check=False,
        input=bytes(5),  # of gRPC: a message without a byte
    )


@pytest.fixture
def open_directory(short_tmp: Path) -> Path:
    """A directory that other users may enter."""
    short_tmp.chmod(0o711)
    (short_tmp / "t").mkdir(mode=0o700)
    path = short_tmp / "open"
    path.mkdir()
    path.chmod(0o755)
    return path


@needs_root
async def test_other_user_of_the_host(short_tmp: Path, open_directory: Path) -> None:
    group = next(one for one in grp.getgrall() if one.gr_gid != 0)
    settings = {
        "MANAGER_SOCKET": str(open_directory / "api.sock"),
        "MANAGER_GRPC_SOCKET": str(open_directory / "grpc.sock"),
        "MANAGER_SOCKET_GROUP": group.gr_name,
        "MANAGER_SOCKET_ROLE": "metrics",
    }
    over_http = ("--unix-socket", settings["MANAGER_SOCKET"], "-w", "%{http_code}", "-o", "-")
    over_grpc = (
        *("--unix-socket", settings["MANAGER_GRPC_SOCKET"], "--http2-prior-knowledge", "-D", "-"),
        *("-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@-"),
        "http://localhost/supervisor.v1.VmService/List",
    )
    async with serving(short_tmp / "t", **settings):
        for uid, vms, code in ((OTHER, b"403", b"grpc-status: 7"), (0, b"200", b"grpc-status: 0")):
            curl = partial(curl_as, uid, group.gr_gid)
            ask_http = partial(curl, *over_http, "http://localhost/vms")
            assert (await trio.to_thread.run_sync(ask_http)).stdout.endswith(vms)
            metrics = partial(curl, *over_http, "http://localhost/metrics")
            assert (await trio.to_thread.run_sync(metrics)).stdout.endswith(b"200")
            assert code in (await trio.to_thread.run_sync(partial(curl, *over_grpc))).stdout
        # Neither of the group nor root.
        for arguments in ((*over_http, "http://localhost/health"), over_grpc):
            refused = partial(curl_as, OTHER, OTHER, *arguments)
            assert (await trio.to_thread.run_sync(refused)).returncode == 7


# --- the command -------------------------------------------------------------------------------


async def test_command_says_who_calls(short_tmp: Path) -> None:
    file = short_tmp / "alice.token"
    file.write_text(create(short_tmp) + "\n")
    async with serving(short_tmp) as running:
        tcp = f"http://127.0.0.1:{running.http_port}"
        there = {"MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp)}
        for arguments, environ, code in (
            ([], there, 0),
            ([], {"MANAGER_SOCKET": str(short_tmp / "api.sock")}, 0),
            (["--url", f"unix:{short_tmp}/api.sock"], {}, 0),
            (["--url", tcp], there, 1),
            (["--url", tcp, "--token-file", str(file)], {}, 0),
            (["--url", tcp], {"QMP_SUPERVISOR_TOKEN": file.read_text().strip()}, 0),
            (["--url", tcp], {"QMP_SUPERVISOR_TOKEN": "x"}, 1),
            ([], there | {"QMP_SUPERVISOR_TOKEN": "x"}, 1),
        ):
            ls = partial(CliRunner().invoke, cli.main, ["ls", "--json", *arguments], env=environ)
            done = await trio.to_thread.run_sync(ls)
            assert done.exit_code == code, (arguments, environ, done.output)
            assert ('"vms": []' in done.output) == (code == 0)


# --- the start --------------------------------------------------------------------------------


async def refusal(directory: Path, **settings: str) -> HostError:
    try:
        async with serving(directory, **settings):
            raise AssertionError("it started")
    except* HostError as group:
        (error,) = leaves(group)
    assert isinstance(error, HostError)
    return error


async def test_nothing_listens_before_it_is_known_who_may(short_tmp: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MANAGER_HTTP_HOST": "0.0.0.0", "MANAGER_HTTP_PORT": str(port)}
    assert "without TLS" in str(await refusal(short_tmp, **settings))
    (short_tmp / "tokens.json").write_text("{")
    assert "tokens" in str(await refusal(short_tmp, MANAGER_HTTP_PORT=str(port)))
    assert os.listdir(short_tmp) == ["tokens.json"]


async def test_start_that_fails_leaves_no_socket(short_tmp: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert port in str(await refusal(short_tmp, MANAGER_GRPC_PORT=port))
    assert sorted(os.listdir(short_tmp)) == ["audit.jsonl", "format.json", "lock"]


async def test_socket_of_another_supervisor(short_tmp: Path) -> None:
    (short_tmp / "t").mkdir()
    path = short_tmp / "t" / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert "somebody listens" in str(await refusal(short_tmp / "t"))
    async with serving(short_tmp / "t"), local(path) as client:  # nobody listens there any more
        assert (await client.get("/vms")).status_code == 200


def test_token_commands_name_their_file(short_tmp: Path) -> None:
    """One run with other settings has another file, which no supervisor reads."""
    environ = {"MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp)}

    def token(*words: str) -> Any:
        return CliRunner(env=environ).invoke(cli.main, ["token", *words])

    file = str(short_tmp / "tokens.json")
    for words, code in (
        (("list",), 0),
        (("revoke", "alice"), 1),
        (("create", "alice", "--role", "run"), 0),
    ):
        done = token(*words)
        assert (done.exit_code, file in done.stderr.replace("\n", "")) == (code, True), done.stderr
