"""What all TLS of ours has in common."""

from __future__ import annotations

import ipaddress
import socket
import ssl


def is_loopback(host: str) -> bool:
    """Whether only this host can reach the address, or send to it: then nothing need be hidden."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def as_tolerant_as_others(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context without the strictness that Python's default contexts have from 3.13 on.

    It refuses each certificate of an authority without an extension that RFC 5280 demands, such as
    `openssl req -x509` makes. An upgrade of Python would lock clients out of one of our servers,
    and not of the other: gRPC has no such rule.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def shown_by(address: str, timeout_s: float) -> bytes:
    """The certificate that a gRPC server shows, in PEM, whoever has signed it. Blocking.

    :param address: ``host:port``, or ``unix:`` and a path
    :raises OSError: if nothing speaks TLS there in time
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with _connected(address, timeout_s) as plain, context.wrap_socket(plain) as encrypted:
        der = encrypted.getpeercert(binary_form=True)
    assert der  # a server always shows one
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _connected(address: str, timeout_s: float) -> socket.socket:
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(timeout_s)
        made.connect(address.removeprefix("unix:"))
    except BaseException:
        made.close()
        raise
    return made
