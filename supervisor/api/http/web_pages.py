"""What a web page can make a browser send is refused, unless the page is of this very address.

A page of another site reaches the API in two ways. Its own name may suddenly stand for the
supervisor's address (DNS rebinding): then ``Host`` has that name. Or it sends a form, an image's
address, an ``EventSource`` or a ``WebSocket`` here: then the browser adds ``Origin`` and
``Sec-Fetch-Site``, which no page can change. Another port of the same host is another origin.

Sources: RFC 9110, sections 7.2 and 7.4; RFC 6454, section 7; W3C "Fetch Metadata Request Headers".
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import attrs

from supervisor.api.rates import plain_address
from supervisor.errors import CrossSite, Misdirected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_PORTS = {"http": 80, "https": 443}
#: A browser adds ``none`` to what its user typed.
_SAME = {"same-origin", "none"}


class Authority(NamedTuple):
    """:param port: None if it is not said"""

    name: str
    port: int | None


def parse(authority: str) -> Authority | None:
    """None if it is not a host with or without a port; with a user's name it is not."""
    found = _AUTHORITY.fullmatch(authority)
    if not found:
        return None
    name = (found["v6"] or found["name"]).lower().removesuffix(".")
    return Authority(name, int(found["port"]) if found["port"] else None)


@attrs.frozen
class Sent:
    """What a request says of where it goes to and comes from.

    :param target: as in the request line
    :param address: the address that the connection came to; None for a unix socket, which no
        browser reaches
    """

    headers: Sequence[tuple[bytes, bytes]]
    target: bytes
    http_version: str
    address: str | None

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Sent:
        """:param scope: ASGI's, of a request or a websocket"""
        server = scope.get("server")
        return cls(
            scope["headers"],
            scope["raw_path"],
            scope["http_version"],
            server[0] if server else None,
        )

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key == name]


class Hosts:
    """:param names: host names besides ``localhost``, lower case; ``*.`` stands for one label"""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *(name.lower() for name in names)}

    def check_host(self, sent: Sent) -> None:
        """:raises Misdirected:"""
        hosts = sent.values(b"host")
        # Browsers send it always; HTTP/1.0 need not.
        if sent.address is None or (not hosts and sent.http_version < "1.1"):
            return
        if len(hosts) != 1 or not self._is_ours(hosts[0], sent.address):
            raise _misdirected(", ".join(hosts))
        if not sent.target.startswith((b"/", b"*")):
            authority = urlsplit(sent.target.decode("latin-1")).netloc
            if parse(authority) != parse(hosts[0]):
                raise _misdirected(authority)

    def _is_ours(self, host: str, address: str) -> bool:
        authority = parse(host)
        if not authority:
            return False
        name = authority.name
        try:
            ip = plain_address(name)
        except ValueError:
            return bool({name, f"*.{name.partition('.')[2]}"} & self._names)
        # An address cannot be made to stand for another one. Other addresses of this host are
        # not refused for safety, but because they are not asked for.
        return ip.is_loopback or ip == plain_address(address) or name in self._names


def _misdirected(host: str) -> Misdirected:
    return Misdirected(
        f"this supervisor is not {host[:100]!r}",
        advice="use localhost or its address, or name the host in MANAGER_HTTP_NAMES",
    )


def check_origin(sent: Sent) -> None:
    """:raises CrossSite: if a page of another origin, or a page without one, sent it"""
    for site in sent.values(b"sec-fetch-site"):
        if site not in _SAME:
            raise _cross_site(f"Sec-Fetch-Site is {site[:40]!r}")
    hosts = sent.values(b"host")
    ours = parse(hosts[0]) if hosts else None
    for origin in sent.values(b"origin"):
        if ours is None or not _is_same(origin, ours):
            raise _cross_site(f"Origin is {origin[:100]!r}")


def _is_same(origin: str, ours: Authority) -> bool:
    scheme, _, rest = origin.partition("://")
    theirs = parse(rest)
    if theirs is None or scheme not in _PORTS:
        return False
    port = theirs.port or _PORTS[scheme]
    # Behind a proxy with TLS the scheme here is not the browser's.
    return theirs.name == ours.name and port in ([ours.port] if ours.port else _PORTS.values())


def _cross_site(why: str) -> CrossSite:
    return CrossSite(
        f"a web page of another site sent this request: {why}",
        advice="call the API from a program, or from a page of the same host and port",
    )


def names_of(certificate: Path) -> list[str]:
    """The host names that a certificate is for. Blocking."""
    # The only decoder in Python's library that takes a certificate which nobody has to trust.
    decoded = ssl._ssl._test_decode_cert(str(certificate))  # type: ignore[attr-defined]
    alternatives: Iterable[tuple[str, str]] = decoded.get("subjectAltName", ())
    return [value for kind, value in alternatives if kind in ("DNS", "IP Address")]
