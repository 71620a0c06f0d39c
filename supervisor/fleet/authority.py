"""The files of a fleet: an authority, and for each member a certificate and its broker's settings.

::

    fleet/ca-key.pem       whoever has it can make members: it belongs on none of the hosts
    fleet/a/ca.pem         whom member a believes
    fleet/a/cert.pem       who it is: the common name is the member's
    fleet/a/key.pem
    fleet/a/nats.conf      for the first one or three members
    fleet/a/fleet.env      what its supervisor is told

A member's certificate is its name to the other members and to NATS, which lets it publish its own
lease and nobody else's. NATS' servers know each other by their keys: a member that is none would
have every right among them. Blocking.

Source: NATS documentation, "TLS authentication", "Authorization" and "Certificate pinning".
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from supervisor.errors import InvalidRequest
from supervisor.fleet.identity import server_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.config.fleet import Address

_VALID_FOR = timedelta(days=3650)
#: A clock that is behind must not refuse a new certificate.
_SINCE = timedelta(hours=1)
#: A word of NATS' subjects, and a part of a name in the domain name system.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CLIENTS, _ROUTES = 4222, 6222
#: Where a member makes what the fleet keeps. One of its own could publish in others' names.
_STREAMS = ("hosts", "runs", "keys", "kinds", "queue")
_SERVERS = 3


@attrs.frozen
class Member:
    """:param address: where its supervisor listens for the others; NATS has other ports there"""

    name: str
    address: Address


def make(
    directory: Path, members: Sequence[Member], *, installed: Path, store: Path
) -> dict[str, list[Path]]:
    """Make what is missing, and write the settings anew; by member, the files that have changed.

    :param installed: where a member's files will be on its host
    :param store: where its NATS is to keep its data
    :raises InvalidRequest: if two members have the same name or address
    """
    _check(members)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = _authority(directory)
    servers = members[: _SERVERS if len(members) >= _SERVERS else 1]
    changed: dict[str, list[Path]] = {}
    for member in members:
        files = _certificate(member, authority, directory / member.name)
        files["fleet.env"] = _environ(member, servers, installed).encode()
        changed[member.name] = _write(directory / member.name, files)
    pins = [_fingerprint(directory / one.name / "cert.pem") for one in servers]
    for member in servers:
        conf = _nats_conf(member, members, servers, installed, store, pins).encode()
        changed[member.name] += _write(directory / member.name, {"nats.conf": conf})
    return changed


def _check(members: Sequence[Member]) -> None:
    for member in members:
        if not NAME.fullmatch(member.name):
            raise InvalidRequest(
                f"{member.name!r} is no name of a member",
                advice="use lower-case letters, digits and hyphens, 63 at most",
            )
    for what, of_all in (
        ("name", [one.name for one in members]),
        ("address", [str(one.address) for one in members]),
    ):
        twice = next((one for one in of_all if of_all.count(one) > 1), None)
        if twice:
            raise InvalidRequest(f"two members have the {what} {twice}")


Authority = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def _authority(directory: Path) -> Authority:
    key_file, file = directory / "ca-key.pem", directory / "ca.pem"
    if key_file.exists():
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key, x509.load_pem_x509_certificate(file.read_bytes())
    key, name = ec.generate_private_key(ec.SECP256R1()), _name("qmp-supervisor fleet")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(directory, {"ca-key.pem": _pem(key), "ca.pem": _pem(certificate)})
    return key, certificate


def _certificate(member: Member, authority: Authority, at: Path) -> dict[str, bytes]:
    """A member's certificate and key, unless it has them already."""
    key, ca = authority
    made = {"ca.pem": _pem(ca)}
    if (at / "cert.pem").exists() and _is_for(at / "cert.pem", member):
        return made
    own = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(_name(member.name), ca.subject, own)
        .add_extension(x509.SubjectAlternativeName(_shown(member)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return made | {"cert.pem": _pem(certificate), "key.pem": _pem(own)}


def _is_for(file: Path, member: Member) -> bool:
    found = x509.load_pem_x509_certificate(file.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names) == _shown(member)


def _shown(member: Member) -> list[x509.GeneralName]:
    """Where it is, by which NATS' clients know its server; and who it is, for other members."""
    try:
        where: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(member.address.host))
    except ValueError:
        where = x509.DNSName(member.address.host)
    return [where, x509.DNSName(server_name(member.name))]


def _fingerprint(file: Path) -> str:
    """As NATS has it: SHA-256 of the public key in DER."""
    key = x509.load_pem_x509_certificate(file.read_bytes()).public_key()
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding, form)).hexdigest()


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SINCE)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(thing: ec.EllipticCurvePrivateKey | x509.Certificate) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    return thing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(at: Path, files: dict[str, bytes]) -> list[Path]:
    at.mkdir(mode=0o700, exist_ok=True)
    changed = []
    for name, content in files.items():
        file = at / name
        if file.exists() and file.read_bytes() == content:
            continue
        file.unlink(missing_ok=True)
        mode = 0o600 if name.endswith("key.pem") else 0o644
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as to:
            to.write(content)
        changed.append(file)
    return changed


# --- settings -------------------------------------------------------------------------------


def _environ(member: Member, servers: Sequence[Member], installed: Path) -> str:
    urls = ",".join(f"nats://{_at(one, _CLIENTS)}" for one in servers)
    return (
        f"MANAGER_FLEET={urls}\n"
        f"MANAGER_FLEET_DIR={installed}\n"
        f"MANAGER_FLEET_ADDRESS={member.address}\n"
    )


def _at(member: Member, port: int) -> str:
    return str(attrs.evolve(member.address, port=port))


def _nats_conf(
    member: Member,
    members: Sequence[Member],
    servers: Sequence[Member],
    installed: Path,
    store: Path,
    pins: Sequence[str],
) -> str:
    files = "\n".join(
        f'  {word}_file: "{installed / name}"'
        for word, name in (("cert", "cert.pem"), ("key", "key.pem"), ("ca", "ca.pem"))
    )
    users = "\n".join(_user(one) for one in members)
    others = [one for one in servers if one != member]
    routes = "\n".join(f'    "nats-route://{_at(one, _ROUTES)}"' for one in others)
    cluster = f"""
cluster {{
  name: fleet
  listen: "{_at(member, _ROUTES)}"
  tls {{
{files}
    verify: true
    # The servers alone: nobody is asked for permissions here.
    pinned_certs: {_list(pins)}
  }}
  routes: [
{routes}
  ]
}}
"""
    return f"""# Made by qmp-supervisor fleet init. For nats-server, of at least version 2.12.
server_name: "{member.name}"
listen: "{_at(member, _CLIENTS)}"
max_payload: 64KB

tls {{
{files}
  verify_and_map: true
  handshake_first: true
}}

jetstream {{
  store_dir: "{store}"
  # What was acknowledged is on the disk: the default loses two minutes at a loss of power.
  sync_interval: always
}}
{cluster if others else ""}
authorization {{
  users: [
{users}
  ]
}}
"""


def _user(member: Member) -> str:
    name = member.name
    publish = [
        f"fleet.hosts.{name}",
        *(f"fleet.{table}.>" for table in _STREAMS[1:]),
        "fleet.call.*.*",
        "fleet.all.*",
        "fleet.answers.*.*",
        "$JS.API.INFO",
        *(f"$JS.API.STREAM.CREATE.fleet-{name}" for name in _STREAMS),
        *(f"$JS.API.STREAM.{call}.*" for call in ("INFO", "MSG.GET")),
        *(f"$JS.API.CONSUMER.{call}.>" for call in ("CREATE", "DURABLE.CREATE", "INFO", "DELETE")),
        "$JS.API.CONSUMER.MSG.NEXT.fleet-queue.*",
        "$JS.ACK.fleet-queue.>",
        "$JS.FC.>",
    ]
    mine = [f"fleet.call.{name}.*", f"fleet.answers.{name}.*", f"_INBOX_{name}.>"]
    # Not `allow_responses`: a member could ask itself, and answer wherever it likes.
    subscribe = [*mine, "fleet.all.*"]
    return f"""    {{
      user: "CN={name}"
      permissions: {{
        publish: {{ allow: {_list(publish)} }}
        subscribe: {{ allow: {_list(subscribe)} }}
      }}
    }}"""


def _list(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{one}"' for one in subjects) + "]"
