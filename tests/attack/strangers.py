"""From the network: who has no token, another's role, or a token that is not valid any more."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import TYPE_CHECKING

import httpx
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from supervisor.pb import vm_pb2
from tests.attack.asking import BOBS, UPGRADE, grpc, http, network
from tests.attack.kinds import Came, From, Request, attack
from tests.attack.service import ANSWER_S, read_all

if TYPE_CHECKING:
    from tests.attack.place import Place

LIST = vm_pb2.ListRequest()

# --- no token --------------------------------------------------------------------------------

network("a stranger lists the VMs", http("main", "GET", "/vms"), "asking who calls", "401")
network(
    "a stranger lists the VMs over gRPC",
    grpc("main", "vms.List", lambda _: LIST),
    "asking who calls",
    "UNAUTHENTICATED",
)
network(
    "a stranger sends HEAD, which has no route of its own",
    http("main", "HEAD", "/vms"),
    "asking who calls",
    "401",
)
network(
    "a stranger asks for a path's methods by OPTIONS",
    http("main", "OPTIONS", "/run"),
    "asking who calls",
    "401",
)
network(
    "a stranger says who he is in headers that proxies set",
    http(
        "main",
        "GET",
        "/vms",
        headers=[("X-Forwarded-User", "olivia"), ("X-Forwarded-For", "::1"), ("Remote-User", "0")],
    ),
    "asking who calls",
    "401",
)
network(
    "a stranger names /health, which asks nobody, as the original URL",
    http(
        "main", "GET", "/vms", headers=[("X-Original-URL", "/health"), ("X-Rewrite-URL", "/health")]
    ),
    "asking who calls",
    "401",
)
network(
    "a stranger deletes a VM under the method GET by an override",
    http("main", "DELETE", f"/vms/{BOBS}", headers=[("X-HTTP-Method-Override", "GET")]),
    "asking who calls",
    "401",
)
network("a stranger asks who it is", http("main", "GET", "/whoami"), "asking who calls", "401")
network(
    "a stranger has the host examined",
    http("main", "GET", "/host/checks"),
    "asking who calls",
    "401",
)
network(
    "a stranger types on a console with a token of nobody's as a subprotocol",
    http(
        "main",
        "GET",
        f"/vms/{BOBS}/console",
        headers=[*UPGRADE, ("Sec-WebSocket-Protocol", "bearer.qms_nobodys")],
    ),
    "knowing the tokens",
    "401",
    through="101|403|409",
)


@attack(
    From.NETWORK,
    "a token is shown as a subprotocol by a request that is no WebSocket",
    held_by="where a token may be",
    refusal="401",
)
def token_of_no_websocket(place: Place) -> Came:
    shown = ("Sec-WebSocket-Protocol", f"bearer.{place.main.tokens['olivia']}")
    came: Came = place.main.ask("GET", "/vms", headers=[shown]).came
    return came


@attack(
    From.NETWORK,
    "a stranger calls a path that does not exist by a long method, and sends no body",
    held_by="asking who calls at every path",
    refusal="401",
    through="404",
)
def long_method_of_no_path(place: Place) -> Came:
    with place.main.raw() as connection:
        connection.sendall(
            b"%b /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            % (b"A" * 15000)
        )
        return place.main.came_of(connection.recv(65536), "another method ")


@attack(
    From.NETWORK,
    "a stranger goes on where a caller with a token has left the connection",
    held_by="asking who calls",
    refusal="401",
)
def on_anothers_connection(place: Place) -> Came:
    connection = place.main.connection()
    try:
        assert place.main.send(connection, "GET", "/vms", by="olivia").status == 200
        return place.main.send(connection, "GET", "/vms").came
    finally:
        connection.close()


@attack(
    From.NETWORK,
    "a request is smuggled behind another's body: Transfer-Encoding beside Content-Length",
    held_by="one length of a body",
    refusal="400",
    below="a request that cannot be read has no line",
    through="401",  # it is served, in the name of nobody
)
def smuggled(place: Place) -> Came:
    inner = b"GET /vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    outer = (
        b"DELETE /vms/00000000-0000-0000-0000-000000000000 HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n%b"
    ) % (place.main.tokens["olivia"].encode(), 12 + len(inner), inner)
    return place.main.came_of(place.main.exchange(outer), "GET ")


@attack(
    From.NETWORK,
    "a request comes before the answer to another's, in one piece with it",
    held_by="asking who calls",
    refusal="401",
)
def pipelined(place: Place) -> Came:
    token = place.main.tokens["olivia"].encode()
    sent = (
        b"GET /vms HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
        b"GET /vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ) % token
    return place.main.came_of(place.main.exchange(sent), "GET ")


@attack(
    From.NETWORK,
    "a stranger speaks HTTP/1.0, and names no host",
    held_by="asking who calls",
    refusal="401",
)
def http_1_0(place: Place) -> Came:
    return place.main.came_of(place.main.exchange(b"GET /vms HTTP/1.0\r\n\r\n"), "GET ")


@attack(
    From.NETWORK,
    "a stranger speaks HTTP/2, without TLS and without asking for it first",
    held_by="asking who calls",
    refusal="401",
)
def http_2(place: Place) -> Came:
    url = f"http://127.0.0.1:{place.main.http_port}/vms"
    with httpx.Client(http1=False, http2=True, trust_env=False, timeout=ANSWER_S) as client:
        answer = client.get(url)
    assert answer.http_version == "HTTP/2"
    request = Request(place.main, answer.headers["X-Request-Id"], "GET ")
    return Came(str(answer.status_code), request)


@attack(
    From.NETWORK,
    "a stranger reads the gRPC server's methods by reflection",
    held_by="asking who calls at every method of gRPC",
    refusal="UNAUTHENTICATED",
)
def reflection(place: Place) -> Came:
    with place.main.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        return place.main.came_of_call(
            stub.ServerReflectionInfo, iter([asked]), "/grpc.reflection.v1alpha.ServerReflection/"
        )[0]


# --- a token that is no good ------------------------------------------------------------------


def shows(place: Place, token: str, who: str | None = None) -> Came:
    headers = [("Authorization", f"Bearer {token}")]
    return place.main.ask("GET", "/vms", headers=headers, who=who).came


network(
    "a token is made up",
    lambda place: shows(place, "qms_" + "A" * 43),
    "knowing the tokens",
    "401",
)
network(
    "a token is made up, over gRPC",
    grpc("main", "vms.List", lambda _: LIST, metadata=[("authorization", "Bearer qms_A")]),
    "knowing the tokens",
    "UNAUTHENTICATED",
)
network(
    "a token's hash, as it is on file, is shown as the token",
    lambda place: shows(place, _hash(place.main.tokens["olivia"])),
    "knowing the tokens",
    "401",
)
network(
    "a token without its last character is shown",
    lambda place: shows(place, place.main.tokens["olivia"][:-1]),
    "knowing the tokens",
    "401",
)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@attack(From.NETWORK, "an expired token is shown", held_by="the end of a token", refusal="401")
def expired(place: Place) -> Came:
    return shows(place, place.main.create_token("late", "operate", "--expires", "1ms"))


@attack(
    From.NETWORK,
    "an expired token is shown over gRPC",
    held_by="the end of a token",
    refusal="UNAUTHENTICATED",
)
def expired_grpc(place: Place) -> Came:
    place.main.create_token("late", "operate", "--expires", "1ms")
    return place.main.call("vms.List", LIST, by="late", who=None)[0]


@attack(
    From.NETWORK,
    "a token is revoked while its connection is open, and used on",
    held_by="reading the tokens again",
    refusal="401",
)
def revoked(place: Place) -> Came:
    service = place.main
    connection = service.connection()
    try:
        assert service.send(connection, "GET", "/vms", by="gone").status == 200
        service.revoke_token("gone")
        return service.send(connection, "GET", "/vms", by="gone", who=None).came
    finally:
        connection.close()


@attack(
    From.NETWORK,
    "a token is revoked while it reads a stream of events, and is told on",
    held_by="readers who may read no more",
    refusal="nothing",
    below="the answer has begun",
)
def told_on(place: Place) -> Came:
    victim, service = place.victim(), place.main
    service.create_token("told", "read")
    connection = service.connection()
    try:
        headers = {"Authorization": f"Bearer {service.tokens['told']}"}
        connection.request("GET", "/events", headers=headers)
        stream = connection.getresponse()
        assert stream.readline() == b": events\n"
        service.revoke_token("told")
        for action in ("pause", "resume"):
            assert service.ask("POST", f"/vms/{victim}/{action}", by="bob").status == 200
        for line in stream:
            if victim.encode() in line:
                return Came("through")
        return Came("nothing")
    finally:
        connection.close()


@attack(
    From.NETWORK,
    "a revoked token is shown over gRPC",
    held_by="the end of a token",
    refusal="UNAUTHENTICATED",
)
def revoked_grpc(place: Place) -> Came:
    place.main.create_token("gone-too", "operate")
    place.main.revoke_token("gone-too")
    return place.main.call("vms.List", LIST, by="gone-too", who=None)[0]


@attack(
    From.NETWORK,
    "a good token stands beside another Authorization",
    held_by="one Authorization",
    refusal="401",
)
def two_authorizations(place: Place) -> Came:
    headers = [("Authorization", "Bearer qms_A")]
    return place.main.ask("GET", "/vms", by="olivia", headers=headers, who=None).came


@attack(
    From.NETWORK,
    "a good token is shown under another scheme",
    held_by="the scheme of an Authorization",
    refusal="401",
)
def other_scheme(place: Place) -> Came:
    headers = [("Authorization", f"Basic {place.main.tokens['olivia']}")]
    return place.main.ask("GET", "/vms", headers=headers).came


@attack(
    From.NETWORK,
    "a token in the query, which logs and histories keep, stands for a header",
    held_by="asking who calls",
    refusal="401",
)
def token_in_query(place: Place) -> Came:
    return place.main.ask("GET", f"/templates?access_token={place.main.tokens['olivia']}").came


@attack(
    From.NETWORK,
    "a request id that would end a line of the log stands in a request",
    held_by="checking request ids",
    refusal="refused, with an id of our own",
    below="the request itself is refused as another one without a token",
    through="refused, with the caller's id",
)
def request_id(place: Place) -> Came:
    given = 'x", "caller": "olivia'
    answer = place.main.ask("GET", "/vms", headers=[("X-Request-Id", given)])
    ours = answer.headers["X-Request-Id"] != given
    assert answer.status == 401
    return Came(f"refused, with {'an id of our own' if ours else 'the caller' + chr(39) + 's id'}")


# --- a role that does not have the right --------------------------------------------------------

ROLES: list[tuple[str, str, str, str, str]] = [
    ("a scraper's token lists the VMs", "scraper", "GET", "/vms", ""),
    ("a scraper's token follows all events", "scraper", "GET", "/events", ""),
    ("a dashboard's token reads a reply", "reader", "GET", f"/vms/{BOBS}/reply", ""),
    ("a dashboard's token pauses a VM", "reader", "POST", f"/vms/{BOBS}/pause", ""),
    # There is no room for it, which only those are told who may run.
    ("a dashboard's token starts a run", "reader", "POST", "/run", "429"),
    ("a party's token reads the metrics of all", "alice", "GET", "/metrics", ""),
    ("a party's token lists the templates", "alice", "GET", "/templates", ""),
]
for _what, _by, _method, _path, _through in ROLES:
    _body = {"computation": [1]} if _path == "/run" else None
    network(
        _what,
        http("main", _method, _path, _body, by=_by),
        "roles",
        "403",
        through=_through,
    )
network(
    "a scraper's token watches all events over gRPC",
    grpc("main", "vms.Watch", lambda _: vm_pb2.WatchRequest(after=0), by="scraper"),
    "roles",
    "PERMISSION_DENIED",
)
network(
    "a dashboard's token deletes a VM over gRPC",
    grpc("main", "vms.Delete", lambda place: vm_pb2.DeleteRequest(id=place.victim()), by="reader"),
    "roles",
    "PERMISSION_DENIED",
)
network(
    "a dashboard's token shuts a VM down",
    http("main", "POST", f"/vms/{BOBS}/shutdown", {"mode": "force"}, by="reader"),
    "roles",
    "403",
)


# --- the audit log ---------------------------------------------------------------------------


@attack(
    From.NETWORK,
    "a flood of refusals pushes other lines out of the audit log",
    held_by="limiting the lines of refusals",
    refusal="limited",
    below="most of its requests have no line, and the next line counts them",
    through="through",
)
def audit_flood(place: Place) -> Came:
    connection = place.tight.connection()
    try:
        for _ in range(150):
            place.tight.send(connection, "GET", "/vms")
    finally:
        connection.close()
    lines = [line for line in place.tight.audit() if line["caller"] is None]
    many = f"{len(lines)} lines"
    return Came("limited" if len(lines) < 120 else "through", detail=many + json.dumps(lines[-1]))


@attack(
    From.NETWORK,
    "strangers are refused from thousands of addresses, so that a party's refusal has no line",
    held_by="shares of callers",
    refusal="403",
    through="unseen",
    short=False,
)
def many_addresses(place: Place) -> Came:
    ask = b"GET /vms HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for number in range(4096 + 110):
        source = f"127.1.{number // 250}.{number % 250 + 1}"
        at = "127.0.0.1", place.tight.http_port
        with socket.create_connection(at, ANSWER_S, (source, 0)) as connection:
            connection.sendall(ask)
            read_all(connection)
    answer = place.tight.ask("GET", "/templates", by="alice")
    seen = place.tight.audit_line(answer.request.id)
    return answer.came if seen else Came("unseen")
