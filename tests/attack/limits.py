"""From the network: too much, too often, too slow."""

from __future__ import annotations

import contextlib
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from supervisor.pb import vm_pb2
from tests.attack.kinds import Came, From, Request, attack
from tests.attack.service import LONG_S, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attack.place import Place
    from tests.attack.service import Service

_BELOW = "the connection has no request"


def post(service: Service, length: int, by: str) -> bytes:
    return (
        b"POST /run HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n" % (service.tokens[by].encode(), length)
    )


@attack(
    From.NETWORK,
    "a body is announced that is over the limit",
    held_by="the size of a body",
    refusal="413",
    through="408",
)
def announced(place: Place) -> Came:
    with place.tight.raw() as connection:
        connection.sendall(post(place.tight, 10**9, "alice"))
        return place.tight.came_of(connection.recv(65536), "POST ", "alice")


@attack(
    From.NETWORK,
    "a computation is over the limit, and as base64 within that of a body",
    held_by="the size of a computation",
    refusal="413",
    through="400",
)
def long_computation(place: Place) -> Came:
    body = b'{"computation": "%b", "ttl": 0}' % (b"A" * (17 * 2**20 * 4 // 3 // 4 * 4))
    headers = [("Content-Type", "application/json")]
    return place.main.ask("POST", "/run", body, by="alice", headers=headers).came


@attack(
    From.NETWORK,
    "members of a body beside the computation fill the memory",
    held_by="the size of a body's text",
    refusal="413",
    through="400",
)
def long_text(place: Place) -> Came:
    body = b'{"%b": 1}' % (b"A" * 2**20)
    headers = [("Content-Type", "application/json")]
    return place.main.ask("POST", "/run", body, by="alice", headers=headers).came


@attack(
    From.NETWORK,
    "a request's headers never end",
    held_by="the time for headers",
    refusal="cut off",
    below=_BELOW,
)
def slow_headers(place: Place) -> Came:
    with place.tight.raw(LONG_S) as connection:
        connection.sendall(b"GET /vms HTTP/1.1\r\nHost: localhost\r\n")
        try:
            connection.recv(65536)
        except TimeoutError:
            return Came("through", detail="the connection stays open")
        return Came("cut off")


@attack(
    From.NETWORK,
    "a request's body never ends",
    held_by="the time for a body",
    refusal="408",
    through="waits",
)
def slow_body(place: Place) -> Came:
    with place.tight.raw(LONG_S) as connection:
        connection.sendall(post(place.tight, 1000, "alice") + b'{"computation": [1')
        try:
            return place.tight.came_of(connection.recv(65536), "POST ", "alice")
        except TimeoutError:
            return Came("waits")


@attack(
    From.NETWORK,
    "a call over gRPC never sends its message",
    held_by="the time for a message",
    refusal="DEADLINE_EXCEEDED",
    through="waits",
)
def slow_message(place: Place) -> Came:
    stopped = threading.Event()

    def nothing() -> Iterator[vm_pb2.ListRequest]:
        stopped.wait(PATIENCE_S)
        yield from ()

    with place.tight.channel() as channel:
        call = channel.stream_unary(
            "/supervisor.v1.VmService/List",
            vm_pb2.ListRequest.SerializeToString,
            vm_pb2.ListResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {place.tight.tokens['alice']}")]
        try:
            call(nothing(), timeout=LONG_S, metadata=metadata)
        except grpc.RpcError as error:
            failed: grpc.Call = error  # type: ignore[assignment]
            ids = [value for key, value in failed.initial_metadata() if key == "x-request-id"]
            code, ours = failed.code().name, "did not arrive" in failed.details()
        finally:
            stopped.set()
    if not ours:
        return Came("waits", detail=code)
    what = "/supervisor.v1.VmService/List"
    return Came(code, Request(place.tight, str(ids[0]) if ids else "", what, "alice"))


@attack(
    From.NETWORK,
    "a caller asks more often than it may",
    held_by="the rate of requests",
    refusal="429",
)
def too_often(place: Place) -> Came:
    for _ in range(20):
        answer = place.rated.ask("GET", "/vms", by="alice")
        if answer.status != 200:
            break
    return answer.came


@attack(
    From.NETWORK,
    "a stranger guesses tokens as fast as it can",
    held_by="the rate of requests",
    refusal="429",
    through="401",
)
def guesses(place: Place) -> Came:
    for number in range(20):
        answer = place.rated.ask("GET", "/vms", headers=[("Authorization", f"Bearer qms_{number}")])
        if answer.status != 401:
            break
    return answer.came


@attack(
    From.NETWORK,
    "a caller asks at once what keeps the supervisor waiting",
    held_by="requests at once",
    refusal="429",
)
def at_once(place: Place) -> Came:
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(place.tight.raw())
            connection.sendall(post(place.tight, 100, "bob"))
        for _ in range(20):
            answer = place.tight.ask("GET", "/vms", by="bob")
            if answer.status != 200:
                break
        return answer.came


@attack(
    From.NETWORK,
    "a caller holds all the memory for bodies with slow ones",
    held_by="the budget of bodies",
    refusal="503",
    through="408",
)
def all_memory(place: Place) -> Came:
    with ExitStack() as stack:
        first = stack.enter_context(place.tight.raw())
        first.sendall(post(place.tight, 16 * 2**20, "carol"))
        second = stack.enter_context(place.tight.raw())
        second.sendall(post(place.tight, 16 * 2**20, "carol"))
        return place.tight.came_of(second.recv(65536), "POST ", "carol")


@attack(
    From.NETWORK,
    "a caller follows events more often than it may",
    held_by="readers of events",
    refusal="429",
)
def readers(place: Place) -> Came:
    with reading(place.tight):
        return place.tight.ask("GET", "/events", by="reader").came


@attack(
    From.NETWORK,
    "a caller follows events on both wires, more often than it may",
    held_by="readers of events",
    refusal="RESOURCE_EXHAUSTED",
)
def readers_grpc(place: Place) -> Came:
    with reading(place.tight):
        return place.tight.call("vms.Watch", vm_pb2.WatchRequest(after=0), by="reader")[0]


@contextlib.contextmanager
def reading(service: Service) -> Iterator[None]:
    connection = service.connection()
    try:
        headers = {"Authorization": f"Bearer {service.tokens['reader']}"}
        connection.request("GET", "/events", headers=headers)
        assert connection.getresponse().readline()
        yield
    finally:
        connection.close()


@attack(
    From.NETWORK,
    "an address makes more connections than it may",
    held_by="connections of an address",
    refusal="closed",
    below="the connection is closed before a request",
    through="200",
)
def connections(place: Place) -> Came:
    with ExitStack() as stack:
        for _ in range(8):  # which a busy machine must not cut off meanwhile: the time for headers
            stack.enter_context(place.rated.raw())
        one_more = stack.enter_context(place.rated.raw(LONG_S))
        with contextlib.suppress(ConnectionError):
            one_more.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            answered = one_more.recv(65536)
        except ConnectionError:
            answered = b""
        return place.rated.came_of(answered, "GET ")


#: RFC 9113, section 3.4: what a client begins with, and no setting.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@attack(
    From.NETWORK,
    "an address makes more connections to gRPC than it may",
    held_by="connections of an address",
    refusal="closed",
    below="the connection is closed before a call",
)
def connections_grpc(place: Place) -> Came:
    port = place.rated.grpc_port
    with ExitStack() as stack:
        for _ in range(9):
            last = stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG_S))
            with contextlib.suppress(ConnectionError):
                last.sendall(_PREFACE)
        try:
            return Came("through" if last.recv(65536) else "closed")
        except ConnectionError:
            return Came("closed")


@attack(
    From.NETWORK,
    "a stranger follows the health of gRPC for ever, in one of the few calls that there are",
    held_by="asking who calls at every method of gRPC",
    refusal="UNAUTHENTICATED",
)
def watching_health(place: Place) -> Came:
    with place.main.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest()
        return place.main.came_of_call(stub.Watch, asked, "/grpc.health.v1.Health/Watch")[0]


@attack(
    From.NETWORK,
    "a stranger asks for the health of gRPC again and again, and sends no message",
    held_by="few calls of strangers",
    refusal="RESOURCE_EXHAUSTED",
    through="waits",
)
def silent_health(place: Place) -> Came:
    stopped = threading.Event()

    def nothing() -> Iterator[health_pb2.HealthCheckRequest]:
        stopped.wait(PATIENCE_S)
        yield from ()

    with place.main.channel() as channel:
        check = channel.stream_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        calls = [check.future(nothing(), timeout=LONG_S) for _ in range(9)]
        try:
            refused = [call for call in calls if "of this caller already" in call.details()]
        finally:
            stopped.set()
        if not refused:
            return Came("waits")
        shown: Any = refused[0]
        ids = [value for key, value in shown.initial_metadata() if key == "x-request-id"]
        what = "/grpc.health.v1.Health/Check"
        return Came(shown.code().name, Request(place.main, str(ids[0]), what, None))
