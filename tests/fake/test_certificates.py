"""Who may, by a client certificate, on both wires. No VM is needed."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import trio
import trustme

from tests.fake.test_auth import ask, http
from tests.support.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.app import Running


class Parties:
    """An authority, its server and its clients, as files and as settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.new_server()
        self.clients = directory / "clients.toml"
        self.clients.write_text(
            '[[certificate]]\nemail = "alice@example.org"\nname = "alice"\nrole = "run"\n'
        )

    def new_server(self) -> None:
        made = self.authority.issue_cert("localhost")
        made.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        made.cert_chain_pems[0].write_to_path(str(self.directory / "cert.pem"))

    @property
    def settings(self) -> dict[str, str]:
        files = {"SERVER_CERT": "cert.pem", "SERVER_KEY": "key.pem", "CLIENT_CA_CERTS": "ca.pem"}
        return {
            f"MANAGER_{wire}_{name}": str(self.directory / file)
            for wire in ("HTTP", "GRPC")
            for name, file in files.items()
        }

    def client(
        self, name: str = "alice@example.org", ca: trustme.CA | None = None, **more: Any
    ) -> Shown:
        return Shown(self.authority, (ca or self.authority).issue_cert(name, **more))


class Shown:
    """A client's certificate, as both wires' clients take it."""

    def __init__(self, authority: trustme.CA, cert: trustme.LeafCert) -> None:
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        cert.configure_cert(self.context)
        self._credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            cert.private_key_pem.bytes(),
            cert.cert_chain_pems[0].bytes(),
        )

    async def http(self, running: Running, path: str = "/vms") -> int:
        """The status; 0 without TLS."""
        async with http(running, verify=self.context) as client:
            try:
                return (await client.get(path)).status_code
            except httpx.TransportError:
                return 0

    def channel(self, running: Running) -> grpc.Channel:
        return grpc.secure_channel(f"localhost:{running.grpc_port}", self._credentials)

    async def grpc(self, running: Running) -> grpc.StatusCode:
        def call() -> grpc.StatusCode:
            with self.channel(running) as channel:
                return ask(channel)[0]

        return await trio.to_thread.run_sync(call)


async def test_clients_certificates(short_tmp: Path) -> None:
    parties = Parties(short_tmp)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    settings = parties.settings | {"MANAGER_TLS_CALLERS": str(parties.clients)}
    cases = [
        (parties.client(), 200, 403, grpc.StatusCode.OK),
        (parties.client("bob@example.org"), 403, 403, grpc.StatusCode.PERMISSION_DENIED),
        (parties.client(ca=trustme.CA()), 0, 0, grpc.StatusCode.UNAVAILABLE),
        (parties.client(not_after=past), 0, 0, grpc.StatusCode.UNAVAILABLE),
    ]
    async with serving(short_tmp, **settings) as running:
        for client, vms, templates, code in cases:
            assert await client.http(running) == vms
            assert await client.http(running, "/templates") == templates
            assert await client.grpc(running) is code


async def test_without_a_file_clients_are_operators(short_tmp: Path) -> None:
    parties = Parties(short_tmp)
    async with serving(short_tmp, **parties.settings) as running:
        client = parties.client("bob@example.org")
        assert await client.http(running, "/templates") == 200
        assert await client.grpc(running) is grpc.StatusCode.OK


async def test_new_certificates_without_dropping_a_connection(short_tmp: Path) -> None:
    parties = Parties(short_tmp)
    old = parties.client()
    async with serving(short_tmp, **parties.settings) as running:
        async with http(running, verify=old.context) as kept:
            with old.channel(running) as kept_grpc:
                assert (await kept.get("/vms")).status_code == 200
                assert (await trio.to_thread.run_sync(ask, kept_grpc))[0] is grpc.StatusCode.OK

                parties.authority = trustme.CA()
                parties.authority.cert_pem.write_to_path(str(parties.ca))
                parties.new_server()
                new = parties.client()
                # New connections: the new authority's clients, and no others.
                assert await new.http(running) == 200
                assert await new.grpc(running) is grpc.StatusCode.OK
                assert await old.http(running) == 0
                # Another channel would share the connection of the first.
                stranger = Shown(parties.authority, trustme.CA().issue_cert("x@example.org"))
                assert await stranger.grpc(running) is grpc.StatusCode.UNAVAILABLE

                assert (await kept.get("/vms")).status_code == 200
                assert (await trio.to_thread.run_sync(ask, kept_grpc))[0] is grpc.StatusCode.OK
        # Half of a change: the last good pair stays.
        (short_tmp / "key.pem").write_text("x")
        assert await new.http(running) == 200
        assert await new.grpc(running) is grpc.StatusCode.OK
        running.reload()
        assert await new.http(running) == 200
