"""Who a member is, and in whose name it asks another one.

A request that enters at one member and is served at another comes with a token: who asks, for
which member, which request. It is signed with the key of the member where it entered, whose
certificate the connection shows as well. It is good for one minute.

Sources: RFC 7519, JSON Web Token; RFC 7518, ES256.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509.oid import NameOID

from supervisor.caller import Caller, KnownBy, Role
from supervisor.config import Address
from supervisor.errors import HostError, Unauthenticated

if TYPE_CHECKING:
    from pathlib import Path

_VALID_S = 60
#: Of the members' clocks.
_APART_S = 30
_ALGORITHM = "ES256"
PORT = 9022


class Identity:
    """One member's certificate and key.

    :param certificate, key: in PEM
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        found = x509.load_pem_x509_certificate(certificate)
        self.name = _name(found)
        #: Where it is reached, if no setting says so.
        self.address = Address(_address(found), PORT)
        self._key: Any = serialization.load_pem_private_key(key, None)

    @classmethod
    def read(cls, directory: Path) -> Identity:
        """:raises HostError: if the files are not what they should be"""
        advice = "see MANAGER_FLEET_DIR; 'qmp-supervisor fleet init' makes it"
        try:
            return cls((directory / "cert.pem").read_bytes(), (directory / "key.pem").read_bytes())
        except OSError as error:
            raise HostError(
                f"fleet: {error.filename} cannot be read: {error.strerror}", advice=advice
            ) from error
        except (ValueError, TypeError, LookupError) as error:
            raise HostError(
                f"fleet: the certificate or key in {directory} cannot be used: {error}",
                advice=advice,
            ) from error

    def sign(
        self, caller: Caller, to: str, method: str, target: str, run_id: str = "", epoch: int = 0
    ) -> str:
        """A token for one request.

        :param to: the member that is to serve it
        :param target: its path and query
        """
        now = int(time.time())
        claims = {
            "iss": self.name,
            "aud": to,
            "sub": caller.name,
            "iat": now,
            "exp": now + _VALID_S,
            "jti": str(uuid.uuid4()),
            "role": caller.role.value,
            "token": caller.token_id,
            "request": _digest(method, target),
            "run": run_id,
            "epoch": epoch,
        }
        return jwt.encode(claims, self._key, _ALGORITHM)

    def verify(self, token: str, certificate: bytes, method: str, target: str) -> Caller:
        """Who asks, through another member.

        :param certificate: that the connection shows, in DER; TLS has verified it
        :raises Unauthenticated: if the token is not that member's, or not for this request
        """
        shown = x509.load_der_x509_certificate(certificate)
        key = shown.public_key()
        try:
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError("the certificate's key is of another kind")
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self.name,
                issuer=_name(shown),
                leeway=_APART_S,
                options={"require": ["exp", "iat", "aud", "iss", "sub", "jti"]},
            )
            if claims["request"] != _digest(method, target):
                raise ValueError("it is for another request")
            return Caller(
                str(claims["sub"]),
                Role(claims["role"]),
                KnownBy.MEMBER,
                str(claims["token"]),
                (str(claims["run"]), int(claims["epoch"])) if claims["run"] else None,
            )
        except (jwt.InvalidTokenError, LookupError, ValueError, TypeError) as error:
            raise Unauthenticated(f"the other member's token is not valid: {error}") from error


def server_name(member: str) -> str:
    """What a member's certificate says that it is, wherever it is reached: NATS' records, which
    say where, are not what makes it that member.
    """
    return f"{member}.fleet.internal"


def _digest(method: str, target: str) -> str:
    return hashlib.sha256(f"{method} {target}".encode()).hexdigest()


def _name(certificate: x509.Certificate) -> str:
    (found,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found.value)


def _address(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return str(addresses[0] if addresses else names.get_values_for_type(x509.DNSName)[0])
