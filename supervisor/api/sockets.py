"""Listening sockets and certificates. The error for a port in use names the port's owner."""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING

import psutil

from supervisor.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.config import Config


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


def open_to_all(config: Config) -> list[str]:
    """A warning for each server that strangers can reach and that asks nobody who calls."""
    return [
        f"{name} listens on {server.host or 'every interface'} and asks nobody who calls: whoever"
        f" reaches the port can start, read and end VMs; set MANAGER_{name.upper()}_HOST to"
        f" 127.0.0.1, or MANAGER_{name.upper()}_SERVER_CERT, _SERVER_KEY and _CLIENT_CA_CERTS"
        for name, server in (("HTTP", config.http), ("gRPC", config.grpc))
        if not server.client_ca_certs and not _is_loopback(server.host)
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
