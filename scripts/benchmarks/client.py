"""HTTP clients that cost little beside what they measure: raw sockets, kept alive."""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PATIENCE_S = 300.0
#: A server may close a connection that nobody has used for longer.
_IDLE_S = 5.0
#: Runs that are under way at the same time while a host is filled.
_FILLERS = 8
_BODY = json.dumps({"computation": list(b"{}")}).encode()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def delete(path: str) -> bytes:
    return f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes, prefer: str = "") -> bytes:
    """A request with a JSON document."""
    more = f"Prefer: {prefer}\r\n" if prefer else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def post_run(prefer: str = "") -> bytes:
    return post("/run", _BODY, prefer)


def complete(answer: bytes) -> bool:
    """Whether these bytes are a whole response, with or without a Content-Length."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    _, found, after = head.lower().partition(b"content-length:")
    return not found or len(body) >= int(after.split(b"\r\n", 1)[0])


def closes(answer: bytes) -> bool:
    """Whether it is the last on its connection; servers close one after so many requests."""
    return b"\r\nconnection: close" in answer.partition(b"\r\n\r\n")[0].lower()


class Connection:
    """One request at a time; on a new connection when the supervisor has closed the last."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._used_at = time.monotonic()
        self.socket = self._open()

    def _open(self) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def renew(self) -> None:
        self.socket.close()
        self.socket = self._open()

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if time.monotonic() - self._used_at > _IDLE_S:
            self.renew()
        self.socket.sendall(request)
        answer = b""
        while not complete(answer):
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("the supervisor closed the connection")
            answer += data
        self._used_at = time.monotonic()
        if closes(answer):
            self.renew()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body

    def json(self, request: bytes) -> tuple[int, Any]:
        status, body = self.ask(request)
        return status, json.loads(body or b"null")


def vms(port: int) -> list[dict[str, Any]]:
    with Connection(port) as connection:
        return list(connection.json(get("/vms"))[1]["vms"])


def in_parallel(port: int, requests: Iterable[bytes]) -> list[tuple[int, Any]]:
    """All answers; a few requests are under way at any time."""
    mine = threading.local()

    def ask(request: bytes) -> tuple[int, Any]:
        if not hasattr(mine, "connection"):
            mine.connection = Connection(port)
        connection: Connection = mine.connection
        return connection.json(request)

    with ThreadPoolExecutor(_FILLERS) as threads:
        return list(threads.map(ask, requests))


@attrs.frozen
class Load:
    """What came of many requests: how long each took, in seconds, and whether all were answered."""

    latencies: list[float]
    wrong: int
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def as_fast_as_possible(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    """Ask on each connection again as soon as it has answered; requests in turn."""
    pending = itertools.cycle(requests)
    latencies: list[float] = []
    wrong = 0
    with selectors.DefaultSelector() as selector, ExitStack() as stack:

        def send(asking: _Asking) -> None:
            asking.sent_at, asking.answer = time.perf_counter(), b""
            asking.connection.socket.sendall(next(pending))

        started = time.perf_counter()
        for _ in range(connections):
            one = _Asking(stack.enter_context(Connection(port)))
            selector.register(one.connection.socket, selectors.EVENT_READ, one)
            send(one)
        while (now := time.perf_counter()) - started < seconds:
            for key, _ in selector.select(seconds):
                one = key.data
                data = one.connection.socket.recv(65536)
                if not data:
                    raise ConnectionError("the supervisor closed the connection")
                one.answer += data
                if not complete(one.answer):
                    continue
                latencies.append(time.perf_counter() - one.sent_at)
                wrong += not one.answer.startswith(b"HTTP/1.1 200")
                if closes(one.answer):
                    selector.unregister(one.connection.socket)
                    one.connection.renew()
                    selector.register(one.connection.socket, selectors.EVENT_READ, one)
                send(one)
    return Load(latencies, wrong, now - started)


@attrs.define
class _Asking:
    """A connection on which an answer is awaited."""

    connection: Connection
    sent_at: float = 0.0
    answer: bytes = b""


def at_a_pace(
    port: int, requests: list[bytes], rate: float, seconds: float, connections: int
) -> Load:
    """So many requests a second, however long the answers take.

    A request that had to wait for its turn has waited from the moment it was due.
    """
    latencies: list[float] = []
    wrong: list[int] = []
    started = time.perf_counter()

    def keep_pace(first: int) -> None:
        with Connection(port) as connection:
            for number in range(first, int(rate * seconds), connections):
                due = started + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                status, _ = connection.ask(requests[number % len(requests)])
                latencies.append(time.perf_counter() - due)
                if status >= 300:
                    wrong.append(status)

    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(keep_pace, range(connections)))
    return Load(latencies, len(wrong), time.perf_counter() - started)


class EventReader:
    """A reader of ``/events``: ``heard`` is called with each event and when it came.

    :raises LookupError: if there is no such page
    """

    def __init__(self, port: int, heard: Callable[[dict[str, Any], int], None]) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        self._connection.request("GET", "/events", headers={"Accept": "text/event-stream"})
        self._sock = self._connection.sock
        self._response = self._connection.getresponse()
        if self._response.status != 200:
            status = self._response.status
            self._connection.close()
            raise LookupError(f"GET /events answers {status}")
        self._heard = heard
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while line := self._response.readline():
                now = time.time_ns() // 1000
                if line.startswith(b"data:"):
                    self._heard(json.loads(line[5:]), now)
        except (OSError, ValueError):
            pass  # closed from here

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()
