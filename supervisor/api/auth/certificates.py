"""Clients' certificates: the names in one, and the file that says who has them.

::

    [[certificate]]
    uri = "spiffe://example.org/alice"   # or dns, email, cn; all that are written must fit
    name = "alice"
    role = "run"

A certificate was verified by TLS before it comes here.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from supervisor.api.auth.tokens import NAME
from supervisor.caller import Caller, KnownBy, Role
from supervisor.errors import HostError, UnknownCertificate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

#: From the words of `ssl.SSLSocket.getpeercert` and of grpc's ``auth_context`` to ours.
_OF_SSL = {"DNS": "dns", "email": "email", "URI": "uri"}
_OF_GRPC = {
    "x509_common_name": "cn",
    "peer_dns": "dns",
    "peer_email": "email",
    "peer_uri": "uri",
}


@attrs.frozen
class Names:
    """The names in a certificate: pairs of ``cn``, ``dns``, ``email`` or ``uri``, and a name."""

    names: tuple[tuple[str, str], ...]

    @classmethod
    def of_ssl(cls, shown: Mapping[str, Any]) -> Names:
        """:param shown: what `ssl.SSLSocket.getpeercert` answers"""
        subject = [pair for part in shown.get("subject", ()) for pair in part]
        cns = [("cn", name) for kind, name in subject if kind == "commonName"]
        others = shown.get("subjectAltName", ())
        return cls(
            (*cns, *((_OF_SSL[kind], name) for kind, name in others if kind in _OF_SSL)),
        )

    @classmethod
    def of_grpc(cls, shown: Mapping[str, Iterable[bytes]]) -> Names:
        """:param shown: what ``auth_context`` of a call answers"""
        return cls(
            tuple(
                (ours, name.decode(errors="replace"))
                for theirs, ours in _OF_GRPC.items()
                for name in shown.get(theirs, ())
            )
        )

    def __str__(self) -> str:
        return ", ".join(f"{kind}={name!r}" for kind, name in self.names) or "no name at all"


@attrs.frozen(kw_only=True)
class Entry:
    """One client: names that its certificate has, and who that is."""

    name: str = attrs.field(validator=attrs.validators.matches_re(NAME))
    role: Role
    cn: str | None = None
    dns: str | None = None
    email: str | None = None
    uri: str | None = None

    def __attrs_post_init__(self) -> None:
        if not self._wanted():
            raise ValueError("an entry needs cn, dns, email or uri")

    def _wanted(self) -> set[tuple[str, str]]:
        pairs = (("cn", self.cn), ("dns", self.dns), ("email", self.email), ("uri", self.uri))
        return {(kind, name) for kind, name in pairs if name}

    def fits(self, names: Names) -> bool:
        return self._wanted() <= set(names.names)


_converter = cattrs.Converter(forbid_extra_keys=True)


def read(file: Path) -> tuple[Entry, ...]:
    """The entries of the file, in its order. Blocking.

    :raises HostError: if the file cannot be read or is not what it should be
    """
    try:
        content = tomllib.loads(file.read_text())
        if unknown := content.keys() - {"certificate"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return tuple(_converter.structure(content.get("certificate", []), list[Entry]))
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever its text makes tomllib or cattrs raise
        problems = "; ".join(_problems(error))
        raise HostError(
            f"{file} does not say who has which certificate: {problems}",
            advice="see docs/how-to/say-who-may.md",
        ) from error


def _problems(error: Exception) -> list[str]:
    if isinstance(error, cattrs.BaseValidationError):
        return cattrs.transform_error(error, path="certificate")
    return [str(error)]


def find(entries: Sequence[Entry] | None, names: Names) -> Caller:
    """Who has a certificate with these names: the first entry that fits.

    :param entries: None: there is no file, and every client of the authorities is an operator
    :raises UnknownCertificate: if no entry fits
    """
    if entries is None:
        name = names.names[0][1] if names.names else ""
        return Caller(f"certificate:{name}", Role.OPERATE, KnownBy.CERTIFICATE)
    for entry in entries:
        if entry.fits(names):
            return Caller(entry.name, entry.role, KnownBy.CERTIFICATE)
    raise UnknownCertificate(str(names))
