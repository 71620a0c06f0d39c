"""The reference agent over TLS, with a key of its own."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from supervisor.agent.reference import http as agent_http
from supervisor.agent.reference import rpc, service, tls
from supervisor.agent.reference.access import Access
from supervisor.agent.reference.wire import decode_fields, encode_message
from tests.support.agent_process import OPTIONS, Running, open_channel, running_agent

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def running() -> Iterator[Running]:
    with running_agent(tls=True) as running:
        yield running


def test_key_is_new_at_each_start_and_one_for_both_ports(running: Running) -> None:
    over_http = ssl.get_server_certificate(("127.0.0.1", running.http_port))
    assert over_http == running.certificate
    with running_agent(tls=True) as another:
        assert another.certificate != running.certificate


def test_certificate_is_one_that_clients_take() -> None:
    made = tls.make_identity()
    read = x509.load_pem_x509_certificate(made.certificate)
    read.verify_directly_issued_by(read)
    der = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert der == made.public_key
    assert read.subject.rfc4514_string() == "CN=agent"


def test_who_speaks_no_tls_is_not_answered(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", OPTIONS) as channel:
        call = channel.unary_unary("/agent.AgentService/Run", bytes, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with socket.create_connection(("127.0.0.1", running.http_port), 30) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: agent\r\n\r\n")
        assert b"200" not in plain.recv(1000)
    assert running.http("GET", "/health")[0] == 200


def test_client_that_does_not_finish_its_handshake_holds_nobody_up(running: Running) -> None:
    hello = ssl.MemoryBIO()
    client = ssl._create_unverified_context().wrap_bio(ssl.MemoryBIO(), hello)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    begun = hello.read()
    for port in (running.grpc_port, running.http_port):
        with (
            socket.create_connection(("127.0.0.1", port), 30) as silent,
            socket.create_connection(("127.0.0.1", port), 30) as slow,
        ):
            slow.sendall(begun[:50])
            with open_channel(("127.0.0.1", running.grpc_port), running.certificate) as channel:
                call = channel.unary_unary("/agent.AgentService/Run", bytes, bytes)
                assert call(encode_message(b"{}"), timeout=30)
            assert running.http("GET", "/health")[0] == 200
            slow.sendall(begun[50:])
            assert slow.recv(5)[:1] == b"\x16"  # the agent's part of the handshake
            silent.close()


def test_client_that_is_gone_before_it_is_taken_ends_nothing() -> None:
    """Python's ssl looks at the connection, and raises."""
    left = threading.Event()

    def gone(_: socket.socket) -> tls.Encrypted:
        left.set()
        raise ssl.SSLError("Closed before TLS handshake with data in recv buffer.")

    server = rpc.Server({}, Access(), "127.0.0.1", 0, gone)
    for _ in range(2):  # the second shows that the server goes on after the first
        left.clear()
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            assert left.wait(30)
            assert client.recv(1) == b""
    server.stop()


@pytest.mark.parametrize(("error", "told"), [(ConnectionResetError, False), (KeyError, True)])
def test_bug_of_http_is_told_and_a_client_that_goes_is_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: type, told: bool
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(agent_http.Handler, "handle", fail)
    server = agent_http.serve_http(service.Agent(60), Access(), "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 30) as client:
        assert client.recv(1) == b""
    server.stop()
    assert (error.__name__ in capfd.readouterr().err) is told


def test_reports_say_the_key_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller asks with: else the key of one in between would be signed."""
    monkeypatch.setattr(service, "evidence", lambda report_data: report_data)
    key = tls.make_identity().public_key
    agent = service.Agent(60)

    def said(nonce: bytes) -> bytes:
        method = service.methods(agent)["/agent.AgentService/Attestation"]
        answer = method.behaviour(encode_message(nonce), lambda _: True)
        assert isinstance(answer, bytes)
        return decode_fields(answer).payloads[1]

    assert said(b"nonce") == b"nonce".ljust(64, b"\0")
    agent.bind_reports_to(lambda nonce: tls.binding(key, nonce))
    nonce = b"nonce".ljust(64, b"\0")
    wanted = hashlib.sha512(b"qmp-supervisor agent TLS key v1\0" + key + nonce).digest()
    assert said(b"nonce") == said(nonce) == wanted
    assert said(wanted) != wanted
