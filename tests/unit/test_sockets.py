"""Unix sockets: whose they are, which are replaced; and listeners that strangers would reach."""

from __future__ import annotations

import grp
import os
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from supervisor import config
from supervisor.api.grpc import connections
from supervisor.api.grpc.connections import Connections, Origin
from supervisor.api.http.connections import LocalStream
from supervisor.api.rates import AtOnce
from supervisor.api.sockets import bind_tcp, bind_unix, check_exposure
from supervisor.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture
def path(short_tmp: Path) -> Path:
    return short_tmp / "api.sock"


@pytest.fixture
def inner(short_tmp: Path) -> Path:
    """Of a socket that nobody removes."""
    return short_tmp / "inner"


@contextmanager
def bound(path: Path, group: str | None = None) -> Iterator[socket.socket]:
    with bind_unix(path, group, "MANAGER_SOCKET") as listener:
        yield listener


def test_socket_is_its_users_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with bound(path):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_socket_of_a_group(path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    before = os.umask(0o077)
    try:
        with bound(path, group):
            assert path.stat().st_mode & 0o777 == 0o660
            assert path.stat().st_gid == os.getegid()
    finally:
        os.umask(before)


def test_no_such_group(path: Path) -> None:
    with pytest.raises(HostError, match="no group nobody-has-this"), bound(path, "nobody-has-this"):
        pass
    assert not path.exists()


def test_socket_of_a_killed_supervisor_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
        old.listen()
    with bound(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_living_socket_is_not_replaced(path: Path) -> None:
    with bound(path) as first:
        with pytest.raises(HostError, match="somebody listens"), bound(path):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            first.accept()[0].close()


def test_living_socket_whose_backlog_is_full_is_not_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(HostError, match="somebody listens"), bound(path):
            pass
    path.unlink()


def test_successors_socket_is_left(path: Path) -> None:
    with bound(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()
    path.unlink()


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_no_socket_is_left(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("x")
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()
    with pytest.raises(HostError, match="is not a socket"), bound(path):
        pass
    assert os.path.lexists(path)


def test_path_that_is_too_long(path: Path) -> None:
    long = path.with_name("x" * 108)
    with pytest.raises(HostError, match="more than 107 bytes"), bound(long):
        pass


def test_directory_in_which_others_may_replace_the_socket(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(HostError, match="other users may replace"), bound(path):
        pass
    path.parent.chmod(0o1777)  # as /tmp
    with bound(path):
        pass


def test_directory_that_is_missing(path: Path) -> None:
    with pytest.raises(HostError, match="No such file"), bound(path.parent / "no" / "x.sock"):
        pass


# --- connections over them -------------------------------------------------------------------


async def test_client_that_reads_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    ours, theirs = trio.socket.socketpair()
    with theirs:
        stream = LocalStream(trio.SocketStream(ours), 30)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(1 << 24))
        await stream.aclose()
    assert trio.current_time() >= 30


def made(per_address: int = 9) -> Connections:
    return Connections(AtOnce(per_address, "connections", ""))


async def test_connection_is_known_by_name_while_it_lasts(inner: Path) -> None:
    kept = made()
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(inner))
        listener.listen()
        ours, theirs = trio.socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept._serve_one, trio.SocketStream(ours), inner)
            accepted, name = await listener.accept()
            peer = f"unix-abstract:{name[1:].decode()}"
            assert kept.origins == {peer: Origin("unix", os.geteuid())}
            await theirs.send(b"ping")
            assert await accepted.recv(10) == b"ping"
            await accepted.send(b"pong")
            assert await theirs.recv(10) == b"pong"
            theirs.close()
            assert await accepted.recv(10) == b""
            accepted.close()
        assert kept.origins == {}
        ours.close()


async def test_connection_to_a_server_that_is_gone_ends(inner: Path) -> None:
    kept = made()
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        await kept._serve_one(trio.SocketStream(ours), inner)
    assert kept.origins == {}


async def accepted_of(kept: Connections, inner: Path, count: int) -> int:
    """How many of so many connections, made at once, reach grpc's socket."""
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(inner))
        listener.listen()
        pairs = [trio.socket.socketpair() for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for ours, _ in pairs:
                nursery.start_soon(kept._serve_one, trio.SocketStream(ours), inner)
            await trio.testing.wait_all_tasks_blocked()
            found = len(kept.origins)
            nursery.cancel_scope.cancel()
        for pair in pairs:
            for end in pair:
                end.close()
    return found


@pytest.mark.parametrize(("uid", "most"), [(1, 64), (0, 70), (os.geteuid(), 70)])
async def test_one_user_has_so_many_connections(
    inner: Path, monkeypatch: pytest.MonkeyPatch, uid: int, most: int
) -> None:
    """But root and the supervisor's own user are never locked out."""
    monkeypatch.setattr(connections, "uid_of", lambda _: uid)
    assert await accepted_of(made(), inner, 70) == most


@pytest.mark.parametrize(("files", "most"), [(1 << 20, 5), (64, 4)])
async def test_one_address_has_so_many_connections(
    inner: Path, monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    """And all together leave descriptors to the rest of the supervisor."""
    monkeypatch.setattr(connections, "_origin", lambda _: Origin("127.0.0.1"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert await accepted_of(made(per_address=5), inner, 9) == most


# --- beyond loopback ---------------------------------------------------------------------------

CERT = {
    f"MANAGER_{name}_SERVER_{file}": "x" for name in ("HTTP", "GRPC") for file in ("CERT", "KEY")
}
CAS = {f"MANAGER_{name}_CLIENT_CA_CERTS": "x" for name in ("HTTP", "GRPC")}
OFF = {"MANAGER_AUTH": "off"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "host.example.org"])
@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
@pytest.mark.parametrize(
    ("settings", "knows_tokens", "refused"),
    [
        (OFF, True, "MANAGER_AUTH=off"),
        (OFF | CERT | CAS, True, "MANAGER_AUTH=off"),
        ({}, True, "without TLS"),
        (CERT, False, "neither a token"),
        (CERT, True, None),
        (CERT | CAS, False, None),
    ],
)
def test_beyond_loopback(
    host: str, name: str, settings: dict[str, str], knows_tokens: bool, refused: str | None
) -> None:
    loaded = config.load(settings | {f"MANAGER_{name}_HOST": host})
    if refused is None:
        check_exposure(loaded, knows_tokens=knows_tokens)
        return
    with pytest.raises(HostError, match=refused) as caught:
        check_exposure(loaded, knows_tokens=knows_tokens)
    assert f"MANAGER_{name}_" in caught.value.advice
    assert host in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
@pytest.mark.parametrize("auth", ["on", "off"])
def test_on_loopback(host: str, auth: str) -> None:
    settings = {"MANAGER_AUTH": auth, "MANAGER_HTTP_HOST": host, "MANAGER_GRPC_HOST": host}
    check_exposure(config.load(settings), knows_tokens=False)


def test_host_that_is_not_ours() -> None:
    with pytest.raises(HostError, match=r"192\.0\.2\.1") as caught:
        bind_tcp("HTTP", "192.0.2.1", 0, "MANAGER_HTTP")
    assert "MANAGER_HTTP_HOST" in caught.value.advice
