"""Listening sockets and certificates. The error for a port in use names the port's owner."""

from __future__ import annotations

import errno
import grp
import os
import socket
import ssl
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import psutil

from supervisor.api.auth.files import Watched, changing
from supervisor.config import Auth
from supervisor.errors import HostError
from supervisor.state.vm_dir import MAX_SOCKET_PATH
from supervisor.tls import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from supervisor.config import Config, GrpcConfig, HttpConfig


T = TypeVar("T")


def owner(port: int) -> str:
    """The process that listens on a TCP port: ``name (pid 12)``; empty if it cannot be seen."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for one in connections:
        listens = one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
        if listens and one.pid:
            try:
                return f"{psutil.Process(one.pid).name()} (pid {one.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""


def check_pem(what: str, cert: Path | None, key: Path | None, cas: Path | None) -> None:
    """Check that certificates and key can be used.

    :param what: whose files they are, for the error
    :raises HostError: if a file cannot be read or is not PEM, or if the key belongs to
        another certificate
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for file in filter(None, (cert, key, cas)):
        try:
            file.read_bytes()
        except OSError as error:
            raise HostError(
                f"{what}: {file.absolute()} cannot be read: {error.strerror}"
            ) from error
    try:
        if cas:
            context.load_verify_locations(cas)
        if cert:
            context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        files = ", ".join(str(file) for file in (cert, key, cas) if file)
        raise HostError(f"{what}: {files} is not what it should be: {error}") from error


def watched_tls(
    what: str, server: HttpConfig | GrpcConfig, make: Callable[[], T]
) -> Watched[T] | None:
    """What a server's certificates make, made again when a file changes; None without TLS.

    :param what: the server, for errors
    :raises HostError: if its files cannot be used
    """
    if not server.server_cert:
        return None
    files = server.server_cert, server.server_key, server.client_ca_certs

    def read() -> T:
        check_pem(what, *files)
        return make()

    return Watched([file for file in files if file], read)


def check_exposure(config: Config, *, knows_tokens: bool) -> None:
    """Refuse to listen for strangers without knowing who they are.

    :param knows_tokens: whether there is a token on file
    :raises HostError: if a server would; says how to mend it
    """
    for name, server in (("HTTP", config.http), ("gRPC", config.grpc)):
        if is_loopback(server.host):
            continue
        setting = f"MANAGER_{name.upper()}"
        if config.auth is Auth.OFF:
            why = "MANAGER_AUTH=off asks nobody who calls"
            advice = f"set {setting}_HOST to 127.0.0.1, or MANAGER_AUTH to on"
        elif not server.server_cert:
            why = "without TLS everybody on the way could read tokens and replies"
            advice = (
                f"set {setting}_HOST to 127.0.0.1, or {setting}_SERVER_CERT and _SERVER_KEY, and"
                " create tokens or set _CLIENT_CA_CERTS"
            )
        elif not (server.client_ca_certs or knows_tokens):
            why = "there is neither a token nor an authority for clients' certificates"
            advice = (
                "create a token with 'qmp-supervisor token create NAME --role run', or set"
                f" {setting}_CLIENT_CA_CERTS"
            )
        else:
            continue
        raise HostError(
            f"{name} must not listen on {server.host or 'every interface'}: {why}", advice=advice
        )


def bind_tcp(what: str, host: str, port: int, setting: str) -> socket.socket:
    """A listening socket.

    :param setting: what the settings of host and port begin with, such as ``MANAGER_HTTP``
    :raises HostError: names the process that has the port
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(100)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        why = f"{what} cannot listen on {host}:{port}: {error.strerror or error}"
        if error.errno != errno.EADDRINUSE:
            raise HostError(why, advice=f"see {setting}_HOST and {setting}_PORT") from error
        by = f", it belongs to {holder}" if (holder := owner(port)) else ""
        raise HostError(f"{why}{by}", advice=f"set {setting}_PORT to another") from error
    return listener


@contextmanager
def bind_unix(path: Path, group: str | None, setting: str) -> Iterator[socket.socket]:
    """A listening unix socket, whose file is removed on leaving. Blocking.

    The socket of a killed supervisor is replaced. Nobody can connect before the file has its group
    and mode: 0660 with a group, else 0600.

    :param setting: the setting of the path, for errors
    :raises HostError: if it cannot be made, or somebody listens there
    """
    advice = f"see {setting} and MANAGER_SOCKET_GROUP"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise HostError(
            f"the path of the socket {path} has more than {MAX_SOCKET_PATH} bytes", advice=advice
        )
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with changing(path.parent):
                _check_directory(path.parent)
                _remove_stale(path)
                os.fchmod(listener.fileno(), 0o600)  # the file's mode, from its first moment
                listener.bind(str(path))
                inode = path.stat().st_ino
                if group is not None:
                    os.chown(path, -1, grp.getgrnam(group).gr_gid)
                    path.chmod(0o660)
                listener.listen(100)
        except KeyError:
            path.unlink()
            raise HostError(f"there is no group {group}", advice=advice) from None
        except OSError as error:
            raise HostError(
                f"cannot listen on {path}: {error.strerror or error}", advice=advice
            ) from error
        listener.setblocking(False)
        try:
            yield listener
        finally:
            with suppress(OSError), changing(path.parent):
                if path.stat().st_ino == inode:  # else a next supervisor's
                    path.unlink()


def _check_directory(directory: Path) -> None:
    """:raises HostError: if another user could put a socket in the place of ours"""
    found = directory.stat()
    safe = found.st_uid in (0, os.geteuid()) and (
        not found.st_mode & stat.S_IWOTH or found.st_mode & stat.S_ISVTX
    )
    if not safe:
        raise HostError(
            f"other users may replace files in {directory}, a socket too",
            advice="put the socket into a directory of root or of the supervisor's user",
        )


def _remove_stale(path: Path) -> None:
    """Remove the socket of a supervisor that was killed.

    :raises HostError: if somebody listens there, or it is no socket
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise HostError(f"somebody listens on {path}: another supervisor, perhaps")
    path.unlink()
