"""A client that follows ``/events`` through every restart, as a browser would."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any

_PATIENCE_S = 60.0


class Reader:
    """Reads from the first event there ever was; ``seen`` has all of them, in their order.

    After each loss of the connection it goes on after the last one, at ``follow``'s port.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        #: What a reader may never meet.
        self.problems: list[str] = []
        self._port = 0
        self._connection: http.client.HTTPConnection | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def last(self) -> int:
        return int(self.seen[-1]["sequence"]) if self.seen else 0

    def follow(self, port: int) -> None:
        """Read there from now on."""
        with self._changed:
            self._port = port
            self._changed.notify_all()

    def wait_for(self, sequence: int, timeout_s: float) -> bool:
        """Whether it has come so far within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.last >= sequence, timeout_s)

    def ids(self) -> set[str]:
        """Of every VM it was told of."""
        return {one["vm"] for one in self.seen if one["vm"]}

    def deletions(self, vm_id: str) -> int:
        return sum(one["event"] == "deleted" and one["vm"] == vm_id for one in self.seen)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._connection and self._connection.sock:
                with contextlib.suppress(OSError):
                    self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._port or self._closed)
                if self._closed:
                    return
                port = self._port
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self._read(port)
            with self._changed:
                self._connection = None
                # A dead supervisor's port may soon be somebody else's.
                self._changed.wait(0.05)

    def _read(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", "/events", headers={"Last-Event-ID": str(self.last)})
            response = connection.getresponse()
            if response.status != 200:
                self.problems.append(f"GET /events answers {response.status}")
                return
            with self._changed:
                if self._closed:
                    return
                self._connection = connection
            number = 0
            while line := response.readline():
                if line.startswith(b"id:"):
                    number = int(line[3:])
                elif line.startswith(b"data:") and line.endswith(b"\n"):
                    self._take(number, json.loads(line[5:]))
        finally:
            connection.close()

    def _take(self, number: int, event: dict[str, Any]) -> None:
        with self._changed:
            if number != event["sequence"]:
                self.problems.append(f"id {number} is not the sequence of {event}")
            if number <= self.last:
                self.problems.append(f"event {number} after {self.last}: {event}")
            self.seen.append(event)
            self._changed.notify_all()
