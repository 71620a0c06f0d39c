"""Certificates of two authorities, and of clients that the supervisor knows and does not know."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import trustme

if TYPE_CHECKING:
    from pathlib import Path

_CALLERS = """
[[certificate]]
email = "reader@example.org"
name = "reader-by-certificate"
role = "read"
"""


class Certificates:
    """Files in a directory.

    :ivar callers: the file that says who has which certificate
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ours, self._theirs = trustme.CA(), trustme.CA()
        past = datetime.now(UTC) - timedelta(days=1)
        self._clients = {
            "known": self._ours.issue_cert("reader@example.org"),
            "unknown": self._ours.issue_cert("mallory@example.org"),
            "expired": self._ours.issue_cert("reader@example.org", not_after=past),
            "foreign": self._theirs.issue_cert("reader@example.org"),
        }
        self._server = self._ours.issue_cert("localhost")
        self._ca = directory / "ca.pem"
        self._ours.cert_pem.write_to_path(str(self._ca))
        self._key, self._cert = directory / "key.pem", directory / "cert.pem"
        self._server.private_key_pem.write_to_path(str(self._key))
        self._server.cert_chain_pems[0].write_to_path(str(self._cert))
        self.callers = directory / "callers.toml"
        self.callers.write_text(_CALLERS)

    def settings(self, wire: str) -> dict[str, str]:
        """:param wire: HTTP or GRPC"""
        return {
            f"MANAGER_{wire}_SERVER_CERT": str(self._cert),
            f"MANAGER_{wire}_SERVER_KEY": str(self._key),
            f"MANAGER_{wire}_CLIENT_CA_CERTS": str(self._ca),
        }

    def context(self, client: str) -> ssl.SSLContext:
        """Of a client that shows this certificate; none if it is empty."""
        context = ssl.create_default_context(cafile=str(self._ca))
        if client:
            self._clients[client].configure_cert(context)
        return context

    def credentials(self, client: str) -> grpc.ChannelCredentials:
        authority = self._ours.cert_pem.bytes()
        if not client:
            return grpc.ssl_channel_credentials(authority)
        shown = self._clients[client]
        chain = b"".join(one.bytes() for one in shown.cert_chain_pems)
        return grpc.ssl_channel_credentials(authority, shown.private_key_pem.bytes(), chain)
