"""TLS and mutual TLS: of both APIs, and towards the agents."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import hypercorn.config
import pytest
import trustme
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from supervisor.cli import main
from supervisor.pb import vm_pb2
from tests.support.world import Secure, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World


class Tls:
    """An authority, a certificate for ``localhost`` and one for a client, as files."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.server = self.authority.issue_cert("localhost", "agent.test")
        self.client = self.authority.issue_cert("client@example.org")
        self.ca = directory / "ca.pem"
        self.cert = directory / "cert.pem"
        self.key = directory / "key.pem"
        self.client_cert = directory / "client-cert.pem"
        self.client_key = directory / "client-key.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.server.private_key_pem.write_to_path(str(self.key))
        self.server.cert_chain_pems[0].write_to_path(str(self.cert))
        self.client.private_key_pem.write_to_path(str(self.client_key))
        self.client.cert_chain_pems[0].write_to_path(str(self.client_cert))

    def server_settings(self, name: str, *, mutual: bool) -> dict[str, str]:
        settings = {
            f"MANAGER_{name}_SERVER_CERT": str(self.cert),
            f"MANAGER_{name}_SERVER_KEY": str(self.key),
        }
        return settings | ({f"MANAGER_{name}_CLIENT_CA_CERTS": str(self.ca)} if mutual else {})

    def context(self, *, known: bool) -> ssl.SSLContext:
        """A client's; ``known``: it shows a certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if known:
            self.client.configure_cert(context)
        return context

    def credentials(self, *, known: bool) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.authority.cert_pem.bytes(),
            *(
                (self.client_key.read_bytes(), self.client_cert.read_bytes())
                if known
                else (None, None)
            ),
        )


@pytest.fixture
def tls(short_tmp: Path) -> Tls:
    return Tls(short_tmp)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
async def test_http(world: World, tls: Tls, mutual: bool) -> None:
    settings = tls.server_settings("HTTP", mutual=mutual)
    async with world.serve(Secure(http=tls.context(known=mutual)), **settings) as supervisor:
        assert (await supervisor.http.get("/health")).status_code == 200
        assert await supervisor.run()


async def test_http_refuses_a_client_it_does_not_know(world: World, tls: Tls) -> None:
    settings = tls.server_settings("HTTP", mutual=True)
    async with world.serve(Secure(http=tls.context(known=False)), **settings) as supervisor:
        with pytest.raises(httpx.TransportError):
            await supervisor.http.get("/health")


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
async def test_grpc(world: World, tls: Tls, mutual: bool) -> None:
    settings = tls.server_settings("GRPC", mutual=mutual)
    async with world.serve(Secure(grpc=tls.credentials(known=mutual)), **settings) as supervisor:
        assert not (await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())).vms


async def test_grpc_refuses_a_client_it_does_not_know(world: World, tls: Tls) -> None:
    settings = tls.server_settings("GRPC", mutual=True)
    async with world.serve(Secure(grpc=tls.credentials(known=False)), **settings) as supervisor:
        with pytest.raises(grpc.RpcError) as caught:
            await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
@pytest.mark.parametrize("name", ["", "agent.test"], ids=["the URL's host", "a name of its own"])
async def test_agent(world: World, tls: Tls, mutual: bool, name: str) -> None:
    settings = {
        "MANAGER_AGENT_GRPC_CLIENT_TLS": "true",
        "MANAGER_AGENT_GRPC_CA_CERTS": str(tls.ca),
        "MANAGER_AGENT_GRPC_SERVER_NAME": name,
    }
    if mutual:
        settings["MANAGER_AGENT_GRPC_CLIENT_CERT"] = str(tls.client_cert)
        settings["MANAGER_AGENT_GRPC_CLIENT_KEY"] = str(tls.client_key)
    world.scenario(agent_tls=str(world.directory), agent_mutual=mutual)
    async with world.serve(**settings) as supervisor:
        assert await supervisor.run()


async def test_vm_outlives_the_certificate_that_its_agent_was_asked_by(
    world: World, tls: Tls
) -> None:
    settings = {
        "MANAGER_AGENT_GRPC_CLIENT_TLS": "true",
        "MANAGER_AGENT_GRPC_CA_CERTS": str(tls.ca),
        "MANAGER_HEARTBEAT": "1h",
    }
    world.scenario(agent_tls=str(world.directory))
    async with world.serve(**settings) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        tls.ca.rename(tls.ca.with_suffix(".gone"))
        for _ in range(2):  # after each resume the agent is asked
            await supervisor.http.post(f"/vms/{vm.id}/pause")
            await supervisor.http.post(f"/vms/{vm.id}/resume")
        await supervisor.http.post(f"/vms/{vm.id}/shutdown")
        await guest.until("end")
        assert vm.record.error is None
        assert vm.status.reason == "guest-shutdown"


async def test_agent_with_a_name_that_is_not_expected(world: World, tls: Tls) -> None:
    settings = {
        "MANAGER_AGENT_GRPC_CLIENT_TLS": "true",
        "MANAGER_AGENT_GRPC_CA_CERTS": str(tls.ca),
        "MANAGER_AGENT_GRPC_SERVER_NAME": "other.test",
        "MANAGER_BOOT_TIMEOUT": "1s",
    }
    world.scenario(agent_tls=str(world.directory))
    async with world.serve(**settings) as supervisor:
        assert (await supervisor.post(b"1")).status_code == 504


class Plain(Tls):
    """With an authority that has no key usage, as `openssl req -x509` makes it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        self._issuer = name, key
        authority = self._certificate(name, key, x509.BasicConstraints(ca=True, path_length=None))
        self.ca.write_bytes(authority)
        for cert, file in ((self.cert, self.key), (self.client_cert, self.client_key)):
            key = ec.generate_private_key(ec.SECP256R1())
            localhost = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            cert.write_bytes(self._certificate(x509.Name([]), key, localhost))
            file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> bytes:
        issuer, signer = self._issuer
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), 1)
        builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        made = builder.add_extension(extension, critical=True).sign(signer, SHA256())
        return made.public_bytes(Encoding.PEM)

    def context(self, *, known: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.client_cert, self.client_key)
        return context


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default contexts as Python has them since 3.13."""
    default = ssl.create_default_context

    def create(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        context = default(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    for module in (ssl, hypercorn.config):
        monkeypatch.setattr(module, "create_default_context", create)


@pytest.mark.usefixtures("strict")
async def test_authority_without_key_usage(world: World, short_tmp: Path) -> None:
    plain = Plain(short_tmp)
    settings = plain.server_settings("HTTP", mutual=True)
    async with world.serve(Secure(http=plain.context(known=True)), **settings) as supervisor:
        assert (await supervisor.http.get("/health")).status_code == 200
        command = partial(
            CliRunner().invoke,
            main,
            [
                "ls",
                *("--url", f"https://localhost:{supervisor.running.http_port}"),
                *("--cacert", str(plain.ca)),
                *("--cert", str(plain.client_cert), "--key", str(plain.client_key)),
            ],
        )
        result = await in_thread(command)
        assert result.exit_code == 0, result.output


async def test_failed_handshake_is_told_once_a_second(
    world: World, tls: Tls, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whom, and why: its client learns nothing but that the connection is closed."""
    other = trustme.CA().issue_cert("client@example.org")
    stranger = ssl.create_default_context(cafile=str(tls.ca))
    other.configure_cert(stranger)
    settings = tls.server_settings("HTTP", mutual=True)
    async with world.serve(Secure(http=stranger), **settings) as supervisor:
        for _ in range(5):
            with pytest.raises(httpx.TransportError):
                await supervisor.http.get("/health")
    told = [line for line in capsys.readouterr().out.splitlines() if "TLS handshake" in line]
    assert 0 < len(told) < 5
    assert "peer=127.0.0.1" in told[0]
    assert "unable to get local issuer certificate" in told[0]
