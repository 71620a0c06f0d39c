"""From the network: clients of TLS, with certificates that are expired, foreign or of nobody."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.pb import vm_pb2
from tests.attack.asking import network
from tests.attack.kinds import Came, From, attack
from tests.attack.service import LONG_S

if TYPE_CHECKING:
    from tests.attack.kinds import Act
    from tests.attack.place import Place

CERTIFICATES = "certificates of clients"
_BELOW = "the handshake fails before a request"

#: Which certificate a client shows; none at all for the empty one.
CLIENTS = {
    "": "a client without a certificate asks for health, which asks nobody",
    "expired": "a client shows an expired certificate",
    "foreign": "a client shows a certificate of another authority",
}


def handshake(client: str) -> Act:
    def act(place: Place) -> Came:
        place.secured.tls = place.certificates.context(client)
        try:
            return place.secured.ask("GET", "/health").came
        except (ssl.SSLError, ConnectionError) as error:
            return Came("no connection", detail=str(error))

    return act


def handshake_grpc(client: str) -> Act:
    def act(place: Place) -> Came:
        with place.secured.channel(place.certificates.credentials(client)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest()
            return place.secured.came_of_call(stub.Check, asked, "/grpc.health.v1.Health/Check")[0]

    return act


for _client, _what in CLIENTS.items():
    network(_what, handshake(_client), CERTIFICATES, "no connection", below=_BELOW)
    network(
        f"{_what}, over gRPC",
        handshake_grpc(_client),
        "certificates of gRPC's clients",
        "UNAVAILABLE",
        below=_BELOW,
    )


@attack(
    From.NETWORK,
    "a client never begins its handshake",
    held_by="the time for a handshake",
    refusal="cut off",
    below=_BELOW,
)
def no_handshake(place: Place) -> Came:
    with place.secured.raw(LONG_S) as connection:
        try:
            connection.recv(1)
        except TimeoutError:
            return Came("through", detail="the connection stays open")
        except ConnectionError:
            pass
        return Came("cut off")


@attack(
    From.NETWORK,
    "a client whose certificate is of nobody on file lists the VMs",
    held_by="who has a certificate",
    refusal="403",
)
def nobody_on_file(place: Place) -> Came:
    place.secured.tls = place.certificates.context("unknown")
    return place.secured.ask("GET", "/vms").came


@attack(
    From.NETWORK,
    "a client whose certificate is of nobody on file lists the VMs over gRPC",
    held_by="who has a certificate",
    refusal="PERMISSION_DENIED",
)
def nobody_on_file_grpc(place: Place) -> Came:
    credentials = place.certificates.credentials("unknown")
    return place.secured.call("vms.List", vm_pb2.ListRequest(), credentials=credentials)[0]


@attack(
    From.NETWORK,
    "a client goes beyond the role of its certificate",
    held_by="roles",
    refusal="403",
)
def beyond_its_role(place: Place) -> Came:
    place.secured.tls = place.certificates.context("known")
    return place.secured.ask("GET", "/templates", who="reader-by-certificate").came


@attack(
    From.NETWORK,
    "a client shows a made-up token beside its certificate",
    held_by="knowing the tokens",
    refusal="401",
)
def token_beside_certificate(place: Place) -> Came:
    place.secured.tls = place.certificates.context("known")
    return place.secured.ask("GET", "/vms", headers=[("Authorization", "Bearer qms_A")]).came
