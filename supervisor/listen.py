"""Listening sockets, bound by us, so that a port in use can be told by its owner."""

from __future__ import annotations

import socket

import psutil

from supervisor.errors import HostError


def owner(port: int) -> str:
    """Who listens on a TCP port: ``name (pid 12)``, or nothing where that cannot be seen."""
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


def taken(what: str, host: str, port: int, setting: str, why: str) -> HostError:
    """The error for a port that cannot be listened on."""
    holder = owner(port)
    by = f", it belongs to {holder}" if holder else ""
    return HostError(f"{what} cannot listen on {host}:{port}: {why}{by}; set {setting} to another")


def bind_tcp(what: str, host: str, port: int, setting: str) -> socket.socket:
    """A listening socket.

    :raises HostError: that says who has the port
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
        raise taken(what, host, port, setting, error.strerror or str(error)) from error
    return listener
