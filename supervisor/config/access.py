"""Settings for who may call: unix sockets, tokens and the names in certificates."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - settings are read by their resolved types

import attrs

from supervisor.caller import Role
from supervisor.config.settings import choice, setting

choice(Role)


@attrs.frozen(kw_only=True)
class AccessConfig:
    """How callers say who they are."""

    socket: Path | None = setting(
        "MANAGER_SOCKET",
        None,
        "unix socket of the HTTP API; at most 107 bytes",
        shown="api.sock in systemd's runtime directory, else in tmp/",
    )
    grpc_socket: Path | None = setting(
        "MANAGER_GRPC_SOCKET",
        None,
        "unix socket of the gRPC API; at most 107 bytes",
        shown="grpc.sock beside it",
    )
    socket_group: str | None = setting(
        "MANAGER_SOCKET_GROUP",
        None,
        "group whose users may connect to the sockets; unset: root and the supervisor's user alone",
    )
    socket_role: Role = setting(
        "MANAGER_SOCKET_ROLE",
        Role.RUN,
        "role of that group's users; root and the supervisor's user are admin",
    )
    tokens: Path | None = setting(
        "MANAGER_TOKENS", None, "file of the tokens, as hashes", shown="tokens.json in tmp/"
    )
    certificates: Path | None = setting(
        "MANAGER_TLS_CALLERS",
        None,
        "TOML file that names clients by their certificates; unset: each has the role operate",
    )

    def paths(self, runtime: Path | None, tmp: Path) -> AccessPaths:
        """Where sockets and tokens are, which the settings need not say.

        :param runtime: systemd's directory for our sockets, if there is one
        """
        sockets = runtime or tmp
        return AccessPaths(
            socket=self.socket or sockets / "api.sock",
            grpc_socket=self.grpc_socket or sockets / "grpc.sock",
            tokens=self.tokens or tmp / "tokens.json",
        )


@attrs.frozen(kw_only=True)
class AccessPaths:
    """:param socket: of the HTTP API"""

    socket: Path
    grpc_socket: Path
    tokens: Path
