"""Hypercorn's server, with what it lacks.

- The end of an answer is not cut off. Quart-trio cancels a request as soon as its answer is
  complete. Hypercorn may not yet have closed the connection, or begun to wait for the next request.
- An answer that comes before the whole request was read reaches a client that is still sending: a
  connection that is closed with bytes unread is reset, and what it holds for the client is lost.
- A malformed request gets an answer with a body.
- An error in one connection ends that connection, and not the server.
- Every connection without a request is closed in the end, and there are only so many. Hypercorn's
  own clock stops at the first bytes of some connections, and nothing starts it again.

Sources: RFC 9112, sections 6.1, 9.3 and 9.6; hypercorn's ``protocol/h11.py`` and
``trio/tcp_server.py``.
"""

from __future__ import annotations

import math
import os
import resource
import socket
import ssl
import sys
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import h11
import hypercorn.protocol
import hypercorn.trio.run
import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import LifespanState
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection

from supervisor.api.auth.certificates import Names
from supervisor.api.auth.door import STRANGER, Door, MemberDoor, Peer, uid_of
from supervisor.api.callers import serving
from supervisor.api.http.at_end import closing
from supervisor.api.http.bodies import Incoming
from supervisor.api.http.problems import document
from supervisor.api.rates import Who
from supervisor.errors import TooOften, single

__all__ = ["Exchange", "Settings", "Talk", "serve"]

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import HTTPScope, WebsocketScope
    from quart import Request
    from quart_trio import QuartTrio

    from supervisor.api.auth.files import Watched
    from supervisor.api.rates import AtOnce, Warnings
    from supervisor.caller import Caller

log = structlog.stdlib.get_logger()

#: The longest time that an answer waits for the rest of its request.
_LINGER_S = 2.0
#: The longest time that the end of an answer is protected from being cancelled.
_END_S = 5.0

#: How much a client must read within the time that it has for reading anything.
_PART = 65536
#: Bytes that are read at a time.
_MOST_BYTES = 2**16

#: Begins a WebSocket's subprotocol that is a token.
_BEARER = "bearer."

_GONE = trio.BrokenResourceError, trio.ClosedResourceError

_MALFORMED = {
    400: ("BadRequest", "send HTTP/1.1, with a request line and a Host header"),
    431: ("RequestHeaderFieldsTooLarge", "the request line and the headers may have {limit} bytes"),
    501: ("NotImplemented", "send the body with Content-Length, or chunked"),
}


class Exchange(TrioASGIHTTPConnection):
    """One request and its answer, over HTTP/1 or HTTP/2."""

    def __init__(self, door: Door | MemberDoor, app: QuartTrio, scope: HTTPScope) -> None:
        super().__init__(app, scope)
        self._caller = _asking(door, scope)

    async def __call__(
        self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        with serving(self._caller):
            async with closing():
                await super().__call__(receive, send)

    def _create_request_from_scope(self, send: Any) -> Request:
        request = super()._create_request_from_scope(send)
        limits, most = self.app.config["CALLERS"], self.app.config["MAX_CONTENT_LENGTH"]
        request.body = Incoming(request.content_length, most, limits)  # type: ignore[assignment]
        return request

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: Callable[[], Awaitable[Any]]
    ) -> None:
        body: Incoming = request.body  # type: ignore[assignment]
        while (message := await receive())["type"] != "http.disconnect":
            await body.arrived(message.get("body", b""), more=message.get("more_body", False))
        nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        body: Incoming = request.body  # type: ignore[assignment]

        async def send_to_the_end(message: Any) -> None:
            body.discard()
            if message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            with trio.move_on_after(_LINGER_S):
                await body.complete.wait()
            with trio.move_on_after(_END_S, shield=True):
                await send(message)

        await super().handle_request(nursery, request, send_to_the_end)


class Talk(TrioASGIWebsocketConnection):
    """A WebSocket."""

    def __init__(self, door: Door | MemberDoor, app: QuartTrio, scope: WebsocketScope) -> None:
        super().__init__(app, scope)
        self._caller = _asking(door, scope)

    async def __call__(self, receive: Any, send: Any) -> None:
        with serving(self._caller):
            async with closing():
                await super().__call__(receive, send)


def _asking(door: Door | MemberDoor, scope: HTTPScope | WebsocketScope) -> Callable[[], Caller]:
    """A function that finds out who asks, as often as it is called.

    It raises SupervisorError if nobody is known to ask.
    """
    if isinstance(door, Door):
        return partial(_caller, door, scope)
    # The member where the request has entered asks again, and ends it. Its token is for a minute.
    return lru_cache(1)(partial(_callers_member, door, scope))


def _callers_member(door: MemberDoor, scope: HTTPScope | WebsocketScope) -> Caller:
    method = scope["method"] if scope["type"] == "http" else "GET"
    query = scope["query_string"].decode("latin-1")
    target = scope["raw_path"].decode("latin-1").partition("?")[0]
    shown = _authorization(scope)
    peer = _peer(scope["state"]["stream"])
    return door.caller(peer, shown, method, f"{target}?{query}" if query else target)


def _authorization(scope: HTTPScope | WebsocketScope) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]


def _caller(door: Door, scope: HTTPScope | WebsocketScope) -> Caller:
    shown = _authorization(scope)
    if scope["type"] == "websocket":  # of which a browser's scripts can choose nothing else
        tokens = (one for one in scope["subprotocols"] if one.startswith(_BEARER))
        shown += [f"Bearer {one.removeprefix(_BEARER)}" for one in tokens]
    return door.caller(_peer(scope["state"]["stream"]), shown)


class Http1(H11Protocol):
    """One connection that speaks HTTP/1."""

    async def _create_stream(self, request: h11.Request) -> None:
        try:
            urlsplit(request.target)
            _check_length(request)
        except ValueError:
            await self._send_error_response(400)
            await self.send(Closed())
        else:
            await super()._create_stream(request)

    async def _send_error_response(self, status_code: int) -> None:
        """Called while h11's error, or another one about the request, is handled."""
        name, advice = _MALFORMED[status_code]
        advice = advice.format(limit=self.config.h11_max_incomplete_size)
        detail = f"the request cannot be read: {sys.exception()}; {advice}"
        body = document(status_code, name, detail, advice=advice)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(headers=headers, status_code=status_code))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class LocalStream(trio.abc.HalfCloseableStream):
    """A connection over a unix socket, which ends if its client reads nothing.

    TCP has TCP_USER_TIMEOUT for that. Hypercorn itself waits for ever, even when it stops.
    """

    def __init__(self, stream: trio.SocketStream, unread_s: float) -> None:
        self._stream = stream
        self._unread_s = unread_s
        self.socket = stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for begin in range(0, len(data), _PART):
            with trio.move_on_after(self._unread_s) as patience:
                await self._stream.send_all(data[begin : begin + _PART])
            if patience.cancelled_caught:
                raise trio.BrokenResourceError("the client reads nothing")

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Settings(HypercornConfig):
    """Hypercorn's settings, and ours.

    :ivar per_caller: connections that one address has, or one user of the unix socket
    :ivar unread_s: after this, a client of the unix socket that reads nothing is cut off
    """

    unread_s: float
    header_timeout_s: float
    per_caller: AtOnce
    warnings: Warnings

    #: None: no TLS.
    tls: Watched[ssl.SSLContext] | None = None


class Connection(TCPServer):
    """One connection."""

    config: Settings
    #: Whether it has TLS decides which.
    stream: Any

    #: How many there are.
    _count: ClassVar[int] = 0

    async def run(self) -> None:
        # If others have all that there are, it is an admin's to end that.
        if Connection._count >= _most_connections() and not _is_admins(self.stream):
            await trio.aclose_forcefully(self.stream)
            return
        Connection._count += 1
        try:
            with self.config.per_caller.one_more(_who(self.stream)):
                self._choose_stream()
                # What becomes ``scope["state"]`` of each request.
                self.state = LifespanState({**self.state, "stream": self.stream})
                if await self._shake_hands():
                    await super().run()
                else:
                    await trio.aclose_forcefully(self.stream)
        except TooOften as error:
            self.config.warnings.tell("HTTP connection refused", problem=str(error))
            await trio.aclose_forcefully(self.stream)
        except Exception as error:
            self.config.warnings.tell("HTTP connection failed", problem=repr(single(error)))
        finally:
            Connection._count -= 1

    def _choose_stream(self) -> None:
        """Here, and not in Hypercorn's listener: each connection has the certificates of now."""
        tls = self.config.tls
        if self.stream.socket.family == socket.AF_UNIX:
            self.stream = LocalStream(self.stream, self.config.unread_s)
        elif tls:
            self.stream = trio.SSLStream(
                self.stream, tls.get(), server_side=True, https_compatible=True
            )

    async def _shake_hands(self) -> bool:
        """Whether it succeeds. Hypercorn would do it, and say nothing of one that fails."""
        if not isinstance(self.stream, trio.SSLStream):
            return True
        peer = _address(self.stream)
        try:
            with trio.move_on_after(self.config.ssl_handshake_timeout):
                await self.stream.do_handshake()
                return True
        except trio.BrokenResourceError as error:
            why = error.__cause__
            if isinstance(why, ssl.SSLError):
                problem = getattr(why, "verify_message", "") or why.reason
                self.config.warnings.tell("TLS handshake failed", peer=peer, problem=problem)
        return False

    async def _read_data(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_idle)
            await self._read_in_time()
            nursery.cancel_scope.cancel()
        # Else the task of a connection that is closed would wait for the next request.
        await self.idle_task.stop()

    async def _read_in_time(self) -> None:
        """Read until the end, or until a request's headers have taken too long."""
        due = math.inf
        data: bytes | None = None
        while data != b"":
            data = b""
            with suppress(*_GONE), trio.move_on_at(due):
                data = bytes(await self.stream.receive_some(_MOST_BYTES))
            if data:
                await self.protocol.handle(RawData(data))
            if not _has_part_of_head(self.protocol.protocol):
                due = math.inf
            elif due == math.inf:
                due = trio.current_time() + self.config.header_timeout_s
        await self.protocol.handle(RawData(b""))
        await self.protocol.handle(Closed())

    async def _close_when_idle(self) -> None:
        """Close the connection if it has had no request for one to two idle times."""
        served_before = None
        while True:
            await trio.sleep(self.config.keep_alive_timeout)
            protocol = self.protocol.protocol
            # One who asks again and again is idle whenever we look.
            served = protocol.keep_alive_requests if _is_idle(protocol) else None
            if served is not None and served == served_before:
                await trio.aclose_forcefully(self.stream)
                return
            served_before = served

    async def _close(self) -> None:
        # The rest of a malformed request. If another task reads already, `Exchange` has waited.
        with suppress(AttributeError, trio.BusyResourceError, *_GONE):
            await self.stream.send_eof()
        with suppress(trio.BusyResourceError, *_GONE), trio.move_on_after(_LINGER_S):
            while await self.stream.receive_some():
                pass
        await super()._close()


def _check_length(request: h11.Request) -> None:
    """A proxy before us may go by the other one, and take a part of this body for a request.

    :raises ValueError:
    """
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
        raise ValueError("it has Content-Length and Transfer-Encoding")


def _peer(stream: Any) -> Peer:
    """:param stream: the connection's, after the handshake if there is TLS"""
    if isinstance(stream, trio.SSLStream):
        shown = stream.getpeercert()  # empty if the client was not asked for a certificate
        if not shown:
            return STRANGER
        return Peer(names=Names.of_ssl(shown), certificate=stream.getpeercert(binary_form=True))
    if stream.socket.family == socket.AF_UNIX:
        return Peer(uid=uid_of(stream.socket))
    return STRANGER


def _is_idle(protocol: H11Protocol | H2Protocol) -> bool:
    if isinstance(protocol, H2Protocol):
        return bool(protocol.idle)
    # The stream of a websocket that was turned down stays.
    return protocol.stream is None or bool(protocol.stream.closed)


def _has_part_of_head(protocol: H11Protocol | H2Protocol) -> bool:
    """Whether a request has begun to arrive. HTTP/2's are left to the idle time."""
    return (
        isinstance(protocol, H11Protocol)
        and protocol.stream is None
        and bool(protocol.connection.trailing_data[0])
    )


def _address(stream: Any) -> str:
    """The address that a connection comes from, without its port; ``unix`` for a local socket."""
    plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    address = plain.socket.getpeername()
    return str(address[0]) if isinstance(address, tuple) else "unix"


def _who(stream: trio.SocketStream) -> Who:
    """Whose share of the connections it takes."""
    if stream.socket.family == socket.AF_UNIX:
        return Who(f"uid:{uid_of(stream.socket)}", known=True)
    return Who.at(_address(stream))


def _is_admins(stream: trio.SocketStream) -> bool:
    """Whether the kernel says that root or our own user has made it."""
    is_local = stream.socket.family == socket.AF_UNIX
    return is_local and uid_of(stream.socket) in (0, os.geteuid())


def _most_connections() -> int:
    """Half of our descriptors: VMs, agents and files need the rest."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 2


# Hypercorn has no setting for its classes.
hypercorn.protocol.H11Protocol = Http1  # type: ignore[attr-defined]
hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]
