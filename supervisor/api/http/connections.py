"""Hypercorn's server, with what it lacks.

- The end of an answer is not cut off. Quart-trio cancels a request as soon as its answer is
  complete. Hypercorn may not yet have closed the connection, or begun to wait for the next request.
- An answer that comes before the whole request was read reaches a client that is still sending: a
  connection that is closed with bytes unread is reset, and what it holds for the client is lost.
- A malformed request gets an answer with a body.
- An error in one connection ends that connection, and not the server.
- Every connection without a request is closed in the end, and there are only so many. Hypercorn's
  own clock stops at the first bytes of some connections, and nothing starts it again.

Sources: RFC 9112, sections 9.3 and 9.6; hypercorn's ``protocol/h11.py`` and ``trio/tcp_server.py``.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import h11
import hypercorn.protocol
import hypercorn.trio.run
import structlog
import trio
from hypercorn.events import Closed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer
from quart_trio.asgi import TrioASGIHTTPConnection

from supervisor.api.callers import serving
from supervisor.api.http.problems import document
from supervisor.caller import ANYBODY
from supervisor.errors import single

__all__ = ["Exchange", "serve"]

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.stdlib.get_logger()

#: The longest time that an answer waits for the rest of its request.
_LINGER_S = 2.0
#: The longest time that the end of an answer is protected from being cancelled.
_END_S = 5.0

_GONE = trio.BrokenResourceError, trio.ClosedResourceError

_MALFORMED = {
    400: ("BadRequest", "send HTTP/1.1, with a request line and a Host header"),
    431: ("RequestHeaderFieldsTooLarge", "the request line and the headers may have {limit} bytes"),
    501: ("NotImplemented", "send the body with Content-Length, or chunked"),
}


class Exchange(TrioASGIHTTPConnection):
    """One request and its answer, over HTTP/1 or HTTP/2."""

    async def __call__(
        self,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        read = trio.Event()

        async def receive_and_note() -> Any:
            message = await receive()
            if not message.get("more_body"):
                read.set()
            return message

        async def send_to_the_end(message: Any) -> None:
            if message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            with trio.move_on_after(_LINGER_S):
                await read.wait()
            with trio.move_on_after(_END_S, shield=True):
                await send(message)

        with serving(ANYBODY):
            await super().__call__(receive_and_note, send_to_the_end)


class Http1(H11Protocol):
    """One connection that speaks HTTP/1."""

    async def _create_stream(self, request: h11.Request) -> None:
        try:
            urlsplit(request.target)
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


class Connection(TCPServer):
    """One connection."""

    #: How many there are.
    _count: ClassVar[int] = 0

    async def run(self) -> None:
        if Connection._count >= _most_connections():
            await trio.aclose_forcefully(self.stream)
            return
        Connection._count += 1
        try:
            await super().run()
        except Exception as error:
            log.warning("HTTP connection failed", problem=repr(single(error)))
        finally:
            Connection._count -= 1

    async def _read_data(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_idle)
            await super()._read_data()
            nursery.cancel_scope.cancel()
        # Else the task of a connection that is closed would wait for the next request.
        await self.idle_task.stop()

    async def _close_when_idle(self) -> None:
        """Close the connection if it has had no request for one to two idle times."""
        idle_before = False
        while True:
            await trio.sleep(self.config.keep_alive_timeout)
            idle = _is_idle(self.protocol.protocol)
            if idle and idle_before:
                await trio.aclose_forcefully(self.stream)
                return
            idle_before = idle

    async def _close(self) -> None:
        # The rest of a malformed request. If another task reads already, `Exchange` has waited.
        with suppress(AttributeError, trio.BusyResourceError, *_GONE):
            await self.stream.send_eof()
        with suppress(trio.BusyResourceError, *_GONE), trio.move_on_after(_LINGER_S):
            while await self.stream.receive_some():
                pass
        await super()._close()


def _is_idle(protocol: H11Protocol | H2Protocol) -> bool:
    if isinstance(protocol, H2Protocol):
        return bool(protocol.idle)
    # The stream of a websocket that was turned down stays.
    return protocol.stream is None or bool(protocol.stream.closed)


def _most_connections() -> int:
    """Half of our descriptors: VMs, agents and files need the rest."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 2


# Hypercorn has no setting for its classes.
hypercorn.protocol.H11Protocol = Http1  # type: ignore[attr-defined]
hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]
