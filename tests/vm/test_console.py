"""The serial console of a real guest: through a reset, and a restart of the supervisor."""

from __future__ import annotations

import queue
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx_ws
import wsproto.events

from tests.vm.conftest import PATIENCE_S, started, workplace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.conftest import Supervisor


class Tty:
    """A console that is read, and typed on."""

    def __init__(self, socket: httpx_ws.WebSocketSession) -> None:
        self._socket = socket
        self.printed = b""

    def until(self, text: bytes, *, typing: bytes = b"") -> None:
        """Return when the guest has printed this; type it again and again if it is to be echoed."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.printed:
            assert time.monotonic() < deadline, self.printed[-1000:]
            if typing:
                self._socket.send_bytes(typing)
            try:
                message = self._socket.receive(timeout=1)
            except queue.Empty:
                continue
            if isinstance(message, wsproto.events.BytesMessage):
                self.printed += message.data


@contextmanager
def opened(supervisor: Supervisor, vm_id: str) -> Iterator[Tty]:
    socket: httpx_ws.WebSocketSession
    with httpx_ws.connect_ws(f"/vms/{vm_id}/console", supervisor.http) as socket:
        socket.send_text('{"write": true}')
        yield Tty(socket)


def test_console_of_a_guest() -> None:
    with workplace() as tmp:
        with started(tmp) as supervisor:
            vm_id = supervisor.run(b"{}")["id"]
            with opened(supervisor, vm_id) as tty:
                tty.until(b"] up")  # what was printed before
                tty.until(b"typed-1", typing=b"typed-1\r")
                tty.printed = b""
                supervisor.post(vm_id, "reset")
                tty.until(b"] up")
                tty.until(b"typed-2", typing=b"typed-2\r")
            # QEMU tells a console's readers first, and then writes the log.
            log = b""
            with supervisor.http.stream("GET", f"/vms/{vm_id}/logs?follow=1") as answer:
                for piece in answer.iter_bytes():
                    log += piece
                    if b"typed-2" in log:
                        break
            assert b"typed-1" in log
            supervisor.end(signal.SIGTERM)
        with started(tmp) as supervisor, opened(supervisor, vm_id) as tty:
            tty.until(b"typed-2")
            tty.until(b"typed-3", typing=b"typed-3\r")
