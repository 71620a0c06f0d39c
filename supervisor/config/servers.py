"""Settings for connections: the HTTP API, the gRPC API and the agents."""

from __future__ import annotations

import enum
from pathlib import Path  # noqa: TC003 - settings are read by their resolved types

import attrs

from supervisor.config.settings import AgentUrl, Names, Port, Seconds, choice, setting


@attrs.frozen(kw_only=True)
class HttpConfig:
    """Where the HTTP API listens. With a certificate and its key, the API is HTTPS."""

    host: str = setting("MANAGER_HTTP_HOST", "127.0.0.1", "address the HTTP API listens on")
    port: Port = setting(
        "MANAGER_HTTP_PORT", 9021, "port of the HTTP API; 0 lets the system choose"
    )
    names: Names = setting(
        "MANAGER_HTTP_NAMES",
        Names(()),
        "host names that the HTTP API is asked by, besides localhost, its address and the names in"
        " its certificate; commas between them",
    )
    server_cert: Path | None = setting(
        "MANAGER_HTTP_SERVER_CERT", None, "PEM certificate chain; with its key, the API is HTTPS"
    )
    server_key: Path | None = setting(
        "MANAGER_HTTP_SERVER_KEY", None, "PEM private key of the certificate"
    )
    client_ca_certs: Path | None = setting(
        "MANAGER_HTTP_CLIENT_CA_CERTS",
        None,
        "PEM authorities; if set, clients must show a certificate",
    )


@attrs.frozen(kw_only=True)
class GrpcConfig:
    """Where the gRPC API listens. With a certificate and its key, the API has TLS."""

    host: str = setting("MANAGER_GRPC_HOST", "127.0.0.1", "address the gRPC API listens on")
    port: Port = setting(
        "MANAGER_GRPC_PORT", 7001, "port of the gRPC API; 0 lets the system choose"
    )
    server_cert: Path | None = setting(
        "MANAGER_GRPC_SERVER_CERT", None, "PEM certificate chain; with its key, the API has TLS"
    )
    server_key: Path | None = setting(
        "MANAGER_GRPC_SERVER_KEY", None, "PEM private key of the certificate"
    )
    client_ca_certs: Path | None = setting(
        "MANAGER_GRPC_CLIENT_CA_CERTS",
        None,
        "PEM authorities; if set, clients must show a certificate",
    )


@choice
class AgentDials(enum.StrEnum):
    """Whether agents dial the supervisor, and how they get their manifest then."""

    NO = "no"
    CHUNKED = "chunked"
    WHOLE = "whole"


@attrs.frozen(kw_only=True)
class AgentConfig:
    """How the agents in the guests are reached."""

    url: AgentUrl = setting(
        "MANAGER_AGENT_GRPC_URL",
        AgentUrl("localhost", 7002),
        "loopback host: the port in the guest, and each VM is reached at its own host port;"
        " another host: the fixed address of one bridged guest"
        " (`{port}` stands for the VM's host port)",
        "AGENT_GRPC_URL",
    )
    timeout_s: Seconds = setting(
        "MANAGER_AGENT_GRPC_TIMEOUT",
        60.0,
        "longest time for the agent's answer to one call",
        "AGENT_GRPC_TIMEOUT",
    )
    ca_certs: Path | None = setting(
        "MANAGER_AGENT_GRPC_CA_CERTS",
        None,
        "PEM authorities of the agents' certificates; unset: the system's",
        "AGENT_GRPC_CA_CERTS",
    )
    client_tls: bool = setting(
        "MANAGER_AGENT_GRPC_CLIENT_TLS",
        False,
        "true: TLS to the agents",
        "AGENT_GRPC_CLIENT_TLS",
    )
    own_certs: bool = setting(
        "MANAGER_AGENT_GRPC_OWN_CERTS",
        False,
        "true: take the certificate that each agent has made itself, as the reference agent's"
        " --tls does; its owner believes the key by the guest's evidence",
    )
    client_cert: Path | None = setting(
        "MANAGER_AGENT_GRPC_CLIENT_CERT", None, "PEM certificate to show to the agent"
    )
    client_key: Path | None = setting(
        "MANAGER_AGENT_GRPC_CLIENT_KEY", None, "PEM private key of that certificate"
    )
    server_name: str | None = setting(
        "MANAGER_AGENT_GRPC_SERVER_NAME",
        None,
        "name in the agent's certificate, if it is not the host of the URL",
    )
    boot_timeout_s: Seconds = setting(
        "MANAGER_BOOT_TIMEOUT",
        180.0,
        "longest time from the guest's first instruction to its agent being ready",
    )

    dials: AgentDials = setting(
        "MANAGER_AGENT_DIALS",
        AgentDials.NO,
        "no: the supervisor dials the agent; chunked, whole: the agent, one of the original's"
        " successor, dials the supervisor, which sends it the computation, a manifest, in parts or"
        " in one message",
    )

    @property
    def is_fixed(self) -> bool:
        """Whether all VMs would reach the same agent: that of one bridged guest."""
        return not self.url.is_loopback and self.url.port is not None

    @property
    def is_direct(self) -> bool:
        """Whether nothing is between the supervisor and the agent of its own VM, and no TLS."""
        return self.url.is_loopback and not self.client_tls
