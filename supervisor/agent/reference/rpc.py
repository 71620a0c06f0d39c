"""A gRPC server: HTTP/2 by h2, one thread for all clients, more for slow calls.

Why not grpcio's server: under emulation (TCG) QEMU translates all code of a clone anew, and h2 is
Python, which the agent runs in any case. Measured in November 2026 under TCG:

=========================================  =======  =======
                                           grpcio   h2
=========================================  =======  =======
instructions translated in a clone         150,000  116,000
a burst of 20 runs                         6.1 s    4.2 s
CPU of an idle guest                       0.8 %    0.13 %
size of the image                          22 MB    19 MB
=========================================  =======  =======

That was when the renewal of a clone needed gRPC; it has not been measured since. If little is left
of the difference, grpcio's server takes this module's place.

The server takes a stream of messages or answers with one, but not both at once: the answer begins
when the last message has come. It does without compression, which the agent's protocols do not use.
It closes the connection of a client that says goodbye, or that begins more than a hundred
calls at once, even if calls of this client are under way.

Source: gRPC's PROTOCOL-HTTP2.md, RFC 9113.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import traceback
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame

from .call import CROWDED, STRANGER, Call, Method, StreamCall, StreamMethod
from .refusal import StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from h2.events import Event

    from .access import Access
    from .call import Answer
    from .line import Line
    from .tls import Encrypted

READ_BYTES = 1 << 16
# What a client may send ahead of our reading, on each call and on all of a connection.
WINDOW_BYTES = 1 << 20
SETTINGS = {
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
    SettingCodes.MAX_CONCURRENT_STREAMS: 100,
    SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 14,
}
MAX_SLOW_CALLS = 8
# Of all messages that are not answered yet: two of the longest, or many short ones.
MAX_UNANSWERED_BYTES = 40 << 20

# h2 has each frame describe itself for a log that nobody keeps, with all that is in it.
Frame.__repr__ = object.__repr__  # type: ignore[method-assign]


def _begin_h2() -> H2Connection:
    """A server's side of a connection; what it says is yet to be sent."""
    # What is sent is ours and right.
    config = H2Configuration(
        client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    h2 = H2Connection(config)
    h2.local_settings = Settings(client=False, initial_values=SETTINGS)
    h2.initiate_connection()
    h2.increment_flow_control_window(WINDOW_BYTES)
    return h2


def _move_to_last_processor() -> None:
    """Of this thread's; it may leave again, but Linux moves none that sleeps."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    os.sched_setaffinity(0, processors)


class Connection:
    """One client's. Everything in it is done by the server's thread."""

    def __init__(self, server: Server, sock: socket.socket | Encrypted) -> None:
        self.socket = sock
        # Of a client over TLS; tls is not imported here, for that takes a guest a while.
        self._shake: Callable[[], None] | None = getattr(sock, "do_handshake", None)
        self._server = server
        self._calls: dict[int, Call] = {}
        self._unsent = b""
        self._is_closed = False
        self._h2 = _begin_h2()

    def handle(self, mask: int) -> None:
        """Read if there is something to read, then send what there is to send."""
        if self._shake:
            self._do(self._shake_hands)
        else:
            self._do(self._read if mask & selectors.EVENT_READ else lambda: None)

    def answered(self, stream_id: int, answer: Answer) -> None:
        """A slow call has been performed."""
        if stream_id in self._calls:
            self._do(partial(self._settle, stream_id, answer))

    def _do(self, act: Callable[[], None]) -> None:
        """Do it, and send what comes of it. Whatever goes wrong ends this connection alone."""
        if self.is_closed:
            return  # since the server's look at what is ready
        try:
            act()
            self._send()
        except BlockingIOError:
            pass  # it was not readable after all
        except ProtocolError:
            self._say_last_words()  # h2's, on what was wrong
        except OSError:
            self.close()
        except Exception:
            traceback.print_exc()
            self.close()

    def _shake_hands(self) -> None:
        if self._shake:
            self._shake()
        self._shake = None

    def _read(self) -> None:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError
        events = self._h2.receive_data(data)
        # To h2 these are gone by now, whatever else has come of them just before.
        taken_back = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for stream_id in taken_back:
            self._end(stream_id)
        for event in events:
            if isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if getattr(event, "stream_id", None) not in taken_back:
                self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event.stream_id, dict(event.headers))
        elif isinstance(event, DataReceived):
            call = self._calls.get(event.stream_id)
            if call and (failed := self._server.receive(call, event.data)):
                self._settle(event.stream_id, failed)
        elif isinstance(event, StreamEnded) and (call := self._calls.get(event.stream_id)):
            if call.is_slow:
                self._server.perform_slowly(call, partial(self.answered, event.stream_id))
            else:
                self._settle(event.stream_id, call.perform())
        elif isinstance(event, ConnectionTerminated):
            raise ConnectionResetError  # h2 sends nothing any more

    def _begin(self, stream_id: int, headers: Mapping[bytes, bytes]) -> None:
        if headers.get(b"content-type", b"").startswith(b"application/grpc"):
            path = headers.get(b":path", b"").decode(errors="replace")
            method = self._server.methods.get(path)
            if isinstance(method, StreamMethod):
                self._calls[stream_id] = StreamCall(method)
            else:
                self._calls[stream_id] = Call(method)
            public = isinstance(method, Method) and method.public
            # Now, so that nothing of a stranger's call is kept.
            if not public and not self._server.access.admits(headers):
                self._settle(stream_id, STRANGER)
        else:
            self._h2.send_headers(stream_id, [(":status", "415")], end_stream=True)

    def _settle(self, stream_id: int, answer: Answer) -> None:
        """The answer to a call is known, and begins to be sent."""
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        if answer.code is StatusCode.OK:
            self._h2.send_headers(stream_id, headers)
            self._calls[stream_id].set_answer(answer)
        else:
            self._h2.send_headers(stream_id, headers + answer.trailers(), end_stream=True)
            self._end(stream_id)

    def _send(self) -> None:
        """Send as much as the client takes now; while it takes nothing, nothing is read of it."""
        while True:
            self._unsent += self._h2.data_to_send()
            if not self._unsent and not self._fill():
                return self._server.watch(self, selectors.EVENT_READ)
            try:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                return self._server.watch(self, selectors.EVENT_WRITE)

    def _fill(self) -> bool:
        """Give h2 something of what is to be sent, as far as windows are open; whether it was."""
        for stream_id, call in self._calls.items():
            if call.answer and not call.body and not call.next_body():
                self._h2.send_headers(stream_id, call.answer.trailers(), end_stream=True)
                self._end(stream_id)
                return True
            room = self._h2.local_flow_control_window(stream_id)
            # A client may make a window smaller than what is under way in it.
            chunk = call.body[: max(0, min(room, self._h2.max_outbound_frame_size))]
            if chunk:
                self._h2.send_data(stream_id, chunk)
                call.body = call.body[len(chunk) :]
                return True
        return False

    def _end(self, stream_id: int) -> None:
        if call := self._calls.pop(stream_id, None):
            self._server.let_go(call)
            call.end()

    def go_away(self) -> None:
        """Close it because the server stops, and say so."""
        with suppress(ProtocolError):
            self._h2.close_connection(ErrorCodes.NO_ERROR)
        self._say_last_words()

    def _say_last_words(self) -> None:
        with suppress(OSError):
            self.socket.send(self._unsent + self._h2.data_to_send())
        self.close()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self._server.forget(self)
        self._is_closed = True
        self.socket.close()
        for stream_id in list(self._calls):
            self._end(stream_id)


class Server:
    """Serves *methods*, which are known by their paths, until `stop`.

    *access* decides whose calls are answered, *encrypt* makes a client's connection one over TLS.
    OSError: no such port.
    """

    def __init__(
        self,
        methods: Mapping[str, Method | StreamMethod],
        access: Access,
        host: str,
        port: int,
        encrypt: Callable[[socket.socket], Encrypted] | None = None,
    ) -> None:
        self._encrypt = encrypt
        self.methods = methods
        self.access = access
        v6 = ":" in host
        self._listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if v6 else socket.AF_INET, dualstack_ipv6=v6
        )
        self._listener.setblocking(False)
        # Of its connections, too.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[Connection] = set()
        self._performers = ThreadPoolExecutor(MAX_SLOW_CALLS)
        #: What other threads want done by the server's.
        self._wanted: deque[Callable[[], None]] = deque()
        self._wanting = os.eventfd(0)
        self._stopping = False
        self._unanswered_bytes = 0
        #: Whether no client is taken until one has left.
        self._is_full = False
        self._selector = selectors.PollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wanting, selectors.EVENT_READ, self._do_what_is_wanted)
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self._thread.start()

    def serve_line(self, line: Line) -> None:
        """Has the line served by this server's thread, too.

        A copy of the guest comes up sooner if the thread does not share a processor with all else
        that wakes up.
        """
        self._want(_move_to_last_processor)
        self._want(partial(self._watch_line, line))

    def stop(self) -> None:
        """Ends all calls; when it returns the port is free and no thread of the server's runs."""
        self._want(self._begin_to_stop)
        self._thread.join()
        self._performers.shutdown()
        os.close(self._wanting)

    def perform_slowly(self, call: Call, answered: Callable[[Answer], None]) -> None:
        """Perform it in a thread of its own; *answered* is called in the server's."""

        def perform() -> None:
            answer = call.perform()
            self._want(lambda: answered(answer))

        self._performers.submit(perform)

    def receive(self, call: Call, data: bytes) -> Answer | None:
        """Has *call* take data of its body; an answer if it has failed."""
        before = len(call.received)
        if self._unanswered_bytes + len(data) > MAX_UNANSWERED_BYTES:
            return CROWDED
        failed = call.receive(data)
        self._unanswered_bytes += len(call.received) - before
        return failed

    def let_go(self, call: Call) -> None:
        """The call is over, and so is what it has received."""
        self._unanswered_bytes -= len(call.received)

    def watch(self, connection: Connection, events: int) -> None:
        """Have it handled when it is readable, or writable."""
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection.handle)

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        if self._is_full:
            self._is_full = False
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _watch_line(self, line: Line) -> None:
        def handle(_: int) -> None:
            if events := line.handle():
                self._selector.modify(line, events, handle)
            else:
                self._selector.unregister(line)
                line.close()

        self._selector.register(line, selectors.EVENT_READ, handle)

    def _serve(self) -> None:
        while not self._stopping:
            for key, mask in self._selector.select():
                key.data(mask)
        for connection in list(self._connections):
            connection.go_away()
        self._listener.close()
        self._selector.close()

    def _begin_to_stop(self) -> None:
        self._stopping = True

    def _want(self, action: Callable[[], None]) -> None:
        self._wanted.append(action)
        os.eventfd_write(self._wanting, 1)

    def _do_what_is_wanted(self, _: int) -> None:
        os.eventfd_read(self._wanting)
        while self._wanted:
            self._wanted.popleft()()

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError as error:
            # Else one that waits would be tried again and again; or it has left already.
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._connections:
                self._is_full = True
                self._selector.unregister(self._listener)
            return
        client.setblocking(False)
        try:
            connection = Connection(self, self._encrypt(client) if self._encrypt else client)
        except OSError:  # it has left already
            client.close()
            return
        self._connections.add(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection.handle)
