"""Which hosts are ours, and which pages may make a browser ask us. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from supervisor.api.http.web_pages import Hosts, Sent, check_origin, names_of
from supervisor.errors import CrossSite, Misdirected

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = Hosts(["vms.example.org", "*.lab.example.org", "192.0.2.9"])
ADDRESS = "192.0.2.7"


def sent(
    *headers: tuple[str, str], target: bytes = b"/vms", version: str = "1.1", address: str = ADDRESS
) -> Sent:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Sent(raw, target, version, address)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:9021", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:9021"),
        *("192.0.2.7", "192.0.2.7:80", "192.0.2.9", "vms.example.org:9021", "a.lab.example.org"),
    ],
)
def test_our_hosts(host: str) -> None:
    HOSTS.check_host(sent(("host", host)))


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "localhost.evil.example", "evil.example:9021", "192.0.2.8", "[::2]"),
        *("localhost@evil.example", "evil.example@localhost", "user@localhost", "localhost:x"),
        *("a.b.lab.example.org", "lab.example.org", "localhost/", "local host", "127.0.0.1.nip.io"),
        *("localhost,evil.example", "0x7f.1", "2130706433", "[::1", "localhost:999999", "\xff"),
    ],
)
def test_other_hosts(host: str) -> None:
    with pytest.raises(Misdirected):
        HOSTS.check_host(sent(("host", host)))


def test_ipv4_address_of_a_socket_for_both_families() -> None:
    HOSTS.check_host(sent(("host", "192.0.2.7:9021"), address="::ffff:192.0.2.7"))
    with pytest.raises(Misdirected):
        HOSTS.check_host(sent(("host", "192.0.2.8:9021"), address="::ffff:192.0.2.7"))


def test_host_is_said_once() -> None:
    with pytest.raises(Misdirected):
        HOSTS.check_host(sent(("host", "localhost"), ("host", "localhost")))
    with pytest.raises(Misdirected):
        HOSTS.check_host(sent())
    HOSTS.check_host(sent(version="1.0"))
    with pytest.raises(Misdirected):
        HOSTS.check_host(sent(version="2"))


def test_absolute_target_is_for_the_same_host() -> None:
    HOSTS.check_host(sent(("host", "localhost:1"), target=b"http://localhost:1/vms"))
    for target in (b"http://evil.example/vms", b"http://localhost:2/vms", b"http://u@localhost:1/"):
        with pytest.raises(Misdirected):
            HOSTS.check_host(sent(("host", "localhost:1"), target=target))


def test_unix_socket_has_no_host() -> None:
    HOSTS.check_host(Sent([(b"host", b"whatever")], b"/vms", "1.1", None))


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("origin", "http://localhost:9021"),),
        (("origin", "HTTP://localhost:9021".lower()), ("sec-fetch-site", "same-origin")),
        (("sec-fetch-site", "none"),),
    ],
)
def test_programs_and_pages_of_ours(headers: tuple[tuple[str, str], ...]) -> None:
    check_origin(sent(("host", "localhost:9021"), *headers))


@pytest.mark.parametrize("origin", ["http://vms.example.org", "https://vms.example.org"])
def test_origin_with_the_usual_port(origin: str) -> None:
    """Behind a proxy, too, which has TLS where the supervisor has none."""
    check_origin(sent(("host", "vms.example.org"), ("origin", origin)))


@pytest.mark.parametrize(
    "header",
    [
        *(("sec-fetch-site", site) for site in ("cross-site", "same-site", "", "Same-Origin")),
        *(
            ("origin", origin)
            for origin in (
                *("null", "", "http://evil.example", "http://localhost", "http://localhost:3000"),
                *("http://127.0.0.1:9021", "https://localhost", "ftp://localhost:9021"),
                *("http://localhost:9021@evil.example", "http://localhost:9021.evil.example"),
                *("http://evil.example:9021", "chrome-extension://abc", "localhost:9021"),
            )
        ),
    ],
)
def test_pages_of_others(header: tuple[str, str]) -> None:
    with pytest.raises(CrossSite):
        check_origin(sent(("host", "localhost:9021"), header))


def test_one_foreign_origin_among_several() -> None:
    with pytest.raises(CrossSite):
        check_origin(
            sent(
                ("host", "localhost:9021"),
                ("origin", "http://localhost:9021"),
                ("origin", "http://evil.example"),
            )
        )


def test_names_of_a_certificate(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("vms.example.org", "*.example.org", "192.0.2.1")
    file = tmp_path / "cert.pem"
    file.write_bytes(issued.cert_chain_pems[0].bytes())
    assert names_of(file) == ["vms.example.org", "*.example.org", "192.0.2.1"]
