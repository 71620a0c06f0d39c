"""From the network of a fleet: strangers at its ports, and a member that was taken over."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.caller import Caller, KnownBy, Role
from supervisor.fleet.identity import Identity
from tests.attack.kinds import Came, From, Request, attack
from tests.attack.service import ANSWER_S, PATIENCE_S, Service, environ_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.attack.kinds import Act
    from tests.attack.place import Place

_A, _B = "127.96.0.1", "127.96.0.2"
_MEMBERS, _NATS = 9022, 4222
RITA = Caller("rita", Role.READ, KnownBy.TOKEN)


@attrs.frozen
class Fleet:
    """Two members, and a server of NATS. The second one was taken over.

    :param files: of both, and of a fleet that is none of theirs
    """

    a: Service
    files: Path
    strangers: Path

    def context(self, shown: Path | None) -> ssl.SSLContext:
        """:param shown: whose certificate; None: none is"""
        context = ssl.create_default_context(cafile=self.files / "b" / "ca.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if shown:
            context.load_cert_chain(shown / "cert.pem", shown / "key.pem")
        return context

    def ask(
        self,
        method: str,
        target: str,
        token: str,
        *,
        who: str | None = None,
        shown: Path | None = None,
    ) -> Came:
        """What member a answers at its port for members; ``tls`` if it lets nobody speak."""
        context = self.context(shown)
        connection = http.client.HTTPSConnection(_A, _MEMBERS, timeout=ANSWER_S, context=context)
        try:
            connection.request(method, target, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            said = answer.read(60).decode(errors="replace")
        except OSError:  # TLS 1.3: whoever shows no certificate hears of it at the first reading
            return Came("tls")
        finally:
            connection.close()
        id_ = answer.headers.get("X-Request-Id", "")
        return Came(str(answer.status), Request(self.a, id_, f"{method} ", who), said)

    def publish(self, subject: str, shown: Path | None) -> Came:
        """What NATS says to a message: ``permissions``, ``tls``, or ``through``."""
        context = self.context(shown)
        try:
            with (
                socket.create_connection((_A, _NATS), ANSWER_S) as plain,
                context.wrap_socket(plain, server_hostname=_A) as connection,
            ):
                options = json.dumps({"tls_required": True, "verbose": False, "headers": True})
                connection.sendall(
                    f"CONNECT {options}\r\nPUB {subject} 2\r\n{{}}\r\nPING\r\n".encode()
                )
                said = b""
                while b"PONG" not in said and (piece := connection.recv(65536)):
                    said += piece
        except OSError:
            return Came("tls")
        told = said.decode(errors="replace")
        return Came(
            "permissions" if "Permissions Violation" in told else "through", detail=told[-60:]
        )


def open_fleet(place: Place) -> Fleet:
    """To be called once for a place."""
    at = place.directory / "fleet"
    made = (("a", _A), ("b", _B))
    _init(place, at, made)
    _init(place, at / "strangers", made)
    place.enter(_nats(at))
    a, _ = (place.serve(name, _settings(at, name)) for name in "ab")
    a.until_told("host joined")
    return Fleet(a, at, at / "strangers")


def _init(place: Place, at: Path, members: tuple[tuple[str, str], ...]) -> None:
    """The files as the code that is attacked makes them."""
    words = [f"--member={name}={address}" for name, address in members]
    where = [f"--installed={at / 'a'}", f"--store={at / 'store'}"]
    command = [sys.executable, "-P", "-m", "supervisor", "fleet", "init", str(at), *words, *where]
    environ = environ_of(place.source)
    subprocess.run(command, env=environ, cwd=place.source, check=True, capture_output=True)


def _settings(at: Path, name: str) -> dict[str, str]:
    lines = (at / name / "fleet.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines)
    return settings | {"MANAGER_FLEET_DIR": str(at / name), "MANAGER_MAX_VMS": "1"}


@contextmanager
def _nats(at: Path) -> Iterator[None]:
    program = Path(sys.executable).with_name("nats-server")
    with (at / "nats.log").open("w") as log:
        command = [str(program), "-c", str(at / "a" / "nats.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _members(what: str, held_by: str, refusal: str, **more: Any) -> Callable[[Any], Act]:
    def declare(act: Callable[[Fleet], Came]) -> Act:
        return attack(From.NETWORK, what, held_by=held_by, refusal=refusal, **more)(
            lambda place: act(place.fleet)
        )

    return declare


def _token(fleet: Fleet, to: str = "a", method: str = "GET", target: str = "/vms") -> str:
    return Identity.read(fleet.files / "b").sign(RITA, to, method, target)


_NO_TLS = "TLS lets nobody speak"
_AT_NATS = "NATS refuses it"


@_members(
    "a stranger without a certificate asks a member",
    "certificates between members",
    "tls",
    below=_NO_TLS,
    through="401",
)
def _nobody(fleet: Fleet) -> Came:
    return fleet.ask("GET", "/vms", "a.b.c")


@_members(
    "a stranger asks a member with a certificate of another fleet's",
    "certificates between members",
    "tls",
    below=_NO_TLS,
    through="401",
)
def _foreign(fleet: Fleet) -> Came:
    return fleet.ask("GET", "/vms", "a.b.c", shown=fleet.strangers / "b")


@_members(
    "a member uses a token that was signed for another request",
    "what a member's token is for",
    "401",
)
def _another_request(fleet: Fleet) -> Came:
    return fleet.ask("GET", "/vms?limit=1", _token(fleet), shown=fleet.files / "b")


@_members(
    "a member uses a token that was signed for another member",
    "whom a member's token is for",
    "401",
)
def _another_member(fleet: Fleet) -> Came:
    return fleet.ask("GET", "/vms", _token(fleet, to="b"), shown=fleet.files / "b")


@_members(
    "a member has a reader of VMs drain another host",
    "roles",
    "403",
)
def _more_than_its_role(fleet: Fleet) -> Came:
    token = _token(fleet, method="POST", target="/host/drain")
    return fleet.ask("POST", "/host/drain", token, shown=fleet.files / "b", who="rita")


@_members(
    "a stranger speaks to NATS without a certificate",
    "certificates at NATS",
    "tls",
    below=_NO_TLS,
)
def _nobody_at_nats(fleet: Fleet) -> Came:
    return fleet.publish("fleet.hosts.a", None)


@_members(
    "a member tells that another host is somewhere else",
    "what a member publishes",
    "permissions",
    below=_AT_NATS,
)
def _anothers_lease(fleet: Fleet) -> Came:
    return fleet.publish("fleet.hosts.a", fleet.files / "b")


@_members(
    "a member makes a stream that publishes in another's name",
    "the streams that a member makes",
    "permissions",
    below=_AT_NATS,
)
def _own_stream(fleet: Fleet) -> Came:
    return fleet.publish("$JS.API.STREAM.CREATE.more", fleet.files / "b")
