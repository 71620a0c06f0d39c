"""Where a supervisor is, and how a client shows who it is."""

from __future__ import annotations

import os
import ssl
import stat
from typing import TYPE_CHECKING

import attrs
import httpx

from supervisor.tls import as_tolerant_as_others, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Where a supervisor of systemd's has it: docs/how-to/run-under-systemd.md.
_SYSTEM_SOCKET = "/run/qmp-supervisor/api.sock"

_EVERY_INTERFACE = ("", "0.0.0.0", "::")

#: Most requests are answered at once. Calls that wait for a guest have no timeout.
TIMEOUT = httpx.Timeout(30.0)
#: A stream of events has a line at least every fifteen seconds.
SILENCE = httpx.Timeout(40.0)


@attrs.frozen
class Place:
    """A supervisor, as httpx reaches it.

    :param url: as it is shown, such as ``http://localhost:9021`` or ``unix:/run/…/api.sock``
    :param base: what paths are relative to
    :param socket: the unix socket, if it is one
    :param verify: of TLS
    :param headers: with the token, if there is one
    """

    url: str
    base: httpx.URL
    socket: str | None
    verify: ssl.SSLContext | bool
    headers: dict[str, str]


def place(
    url: str | None = None,
    *,
    token: str | None = None,
    cacert: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
) -> Place:
    """A place, by what a user names of it.

    :param url: or ``unix:`` and a path; None: QMP_SUPERVISOR_URL, or where one listens on this host
    :param token: None: QMP_SUPERVISOR_TOKEN, if there is one
    :param cacert: PEM file of the CAs to trust
    :param cert: PEM file of the certificate to show, with its ``key``
    :raises ValueError: if a file is of no use, or the token would go over the network in the clear
    """
    shown = (url or os.environ.get("QMP_SUPERVISOR_URL") or default_url(os.environ)).rstrip("/")
    if not shown.startswith(("http://", "https://", "unix:")):
        shown = f"http://{shown}"
    _, is_unix, socket = shown.rpartition("unix:")
    base = httpx.URL("http://localhost" if is_unix else shown)
    token = token or os.environ.get("QMP_SUPERVISOR_TOKEN")
    if token and base.scheme == "http" and not is_loopback(base.host):
        raise ValueError(f"a token must not go to {base.host} without TLS: use an https:// URL")
    return Place(
        url=shown,
        base=base,
        socket=socket if is_unix else None,
        verify=_context(cacert, cert, key) if base.scheme == "https" else True,
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def default_url(environ: Mapping[str, str]) -> str:
    """Where a supervisor with these environment variables listens: its unix socket, if it is there.

    A socket below the working directory counts if it is the user's own or root's, because anybody
    could have put another one there.
    """
    tmp = environ.get("MANAGER_QEMU_TMP_FILE_LOC") or "tmp"
    named = environ.get("MANAGER_SOCKET")
    for path in (named,) if named else (f"{tmp}/api.sock", _SYSTEM_SOCKET):
        trusted = path in (named, _SYSTEM_SOCKET) or _is_ours(path)
        if trusted and os.access(path, os.W_OK):
            return f"unix:{path}"
    host = environ.get("MANAGER_HTTP_HOST", "")
    scheme = "https" if environ.get("MANAGER_HTTP_SERVER_CERT") else "http"
    if host in (*_EVERY_INTERFACE, "127.0.0.1", "::1", "localhost"):
        # By TLS whoever listens there shows who he is. Otherwise the address that the supervisor
        # has by default: of the other one of localhost anybody may take the port.
        host = "localhost" if scheme == "https" else "::1" if host == "::1" else "127.0.0.1"
    port = environ.get("MANAGER_HTTP_PORT", "")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or 9021}"


def _is_ours(path: str) -> bool:
    """Whether nobody else can have put it there, or put another one in its place."""
    try:
        directory = os.path.dirname(path)
        above = os.path.dirname(directory) or os.curdir
        places = [os.lstat(one) for one in (path, directory, above)]
    except OSError:
        return False
    trusted = all(one.st_uid in (0, os.geteuid()) for one in places)
    # In a sticky directory others cannot replace what is ours.
    open_to_all = (
        one.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH for one in places[1:]
    )
    return trusted and not any(open_to_all)


def _context(
    cacert: str | Path | None, cert: str | Path | None, key: str | Path | None
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cacert)
        if cert:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"cacert, cert or key cannot be used: {error}") from error
    return as_tolerant_as_others(context)
