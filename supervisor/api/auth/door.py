"""Who calls. Both wires ask the same `Door`."""

from __future__ import annotations

import os
import re
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.api.auth import certificates, tokens
from supervisor.api.auth.files import Watched
from supervisor.caller import ANYBODY, Caller, KnownBy, Role
from supervisor.config import Auth
from supervisor.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.api.auth.certificates import Names
    from supervisor.config import AccessConfig
    from supervisor.fleet.fleet import Fleet

#: RFC 6750, section 2.1: the scheme in any case, one or more spaces, a token.
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)

#: What the kernel says of a user who has no number in our user namespace. Many users share it.
_NOBODY_KNOWS = 65534

_UCRED = struct.Struct("iII")


@attrs.frozen
class Peer:
    """What a connection says about its other end.

    :param uid: of a process on this host, by a unix socket
    :param names: of a certificate that TLS has verified
    :param certificate: the same, in DER
    """

    uid: int | None = None
    names: Names | None = None
    certificate: bytes | None = None


#: A peer of which nothing is known.
STRANGER = Peer()


def uid_of(connection: Any) -> int:
    """The user who made the connection.

    :param connection: a unix socket, the library's or trio's. Source: unix(7), SO_PEERCRED
    """
    shown = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(shown)
    return int(uid)


class Door:
    """Finds out who calls.

    :param tokens_file: need not exist
    :raises HostError: if a file is not what it should be
    """

    def __init__(self, auth: Auth, config: AccessConfig, tokens_file: Path) -> None:
        self._asks = auth is Auth.ON
        self._socket_role = config.socket_role
        self._tokens: Watched[tuple[tokens.Token, ...]] = Watched(
            (tokens_file,), partial(tokens.read, tokens_file), broken=()
        )
        self._entries: Watched[tuple[certificates.Entry, ...]] | None = None
        if config.certificates:
            file = config.certificates
            self._entries = Watched((file,), partial(certificates.read, file), broken=())

    @property
    def watched(self) -> list[Watched[Any]]:
        return [one for one in (self._tokens, self._entries) if one]

    @property
    def knows_tokens(self) -> bool:
        """Whether there is a token on file."""
        return bool(self._tokens.get())

    def caller(self, peer: Peer, authorization: Sequence[str]) -> Caller:
        """Who calls. A token counts more than the connection that it came over.

        :param authorization: the values of all headers of this name
        :raises Unauthenticated: if nobody is known to call; says why
        :raises UnknownCertificate: if the certificate is of nobody on file
        """
        if not self._asks:
            return ANYBODY
        if authorization:
            return tokens.find(self._tokens.get(), _bearer(authorization), tokens.now())
        if peer.uid is not None:
            return self._local(peer.uid)
        if peer.names is not None:
            return certificates.find(self._entries.get() if self._entries else None, peer.names)
        raise Unauthenticated("the request does not say who calls")

    def _local(self, uid: int) -> Caller:
        if uid == _NOBODY_KNOWS:
            raise Unauthenticated("the calling user has no number here")
        role = Role.ADMIN if uid in (0, os.geteuid()) else self._socket_role
        return Caller(f"uid:{uid}", role, KnownBy.SOCKET)


class MemberDoor:
    """For the server that other members of the fleet ask, each in the name of its callers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def caller(self, peer: Peer, authorization: Sequence[str], method: str, target: str) -> Caller:
        """Who asks the member that asks us.

        :param target: path and query
        :raises Unauthenticated: if no member asks, or its token is not for this request
        """
        if peer.certificate is None or not authorization:
            raise Unauthenticated("this port is for members of the fleet alone")
        asks = dict(peer.names.names if peer.names else ()).get("cn", "")
        if asks not in self._fleet.members.hosts:
            raise Unauthenticated(f"{asks!r} is no member of the fleet now")
        verify = self._fleet.identity.verify
        return verify(_bearer(authorization), peer.certificate, method, target)


def _bearer(authorization: Sequence[str]) -> str:
    if len(authorization) > 1:
        raise Unauthenticated("the request has more than one Authorization")
    match = _BEARER.fullmatch(authorization[0])
    if not match:
        raise Unauthenticated("the Authorization is not 'Bearer' and a token")
    return match[1]
