"""The line: a serial port of virtio's, over which a copy of the guest gets its first call.

An emulated copy spends more on a TCP connection and on HTTP/2 than on all else that the call asks
for: QEMU translates what a copy executes anew. The line needs no beginning. It is opened when the
guest is prepared for being frozen, while the host is at the other end. In a copy the renewer says
one byte when it is done; then the host says a message and the agent answers, more than once if the
first was a rehearsal: protos/clone.proto. After that, or if nobody comes, the line is closed.

Source: the kernel's drivers/char/virtio_console.c; virtio 1.2, 5.3.
"""

from __future__ import annotations

import os
import selectors
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "org.qmp-supervisor.agent"
PORTS = "/sys/class/virtio-ports"
READ_BYTES = 1 << 16
# Before each message: its length, the most significant byte first.
LENGTH_BYTES = 4
MAX_BYTES = 1 << 20
# While nobody is at the other end the kernel says so at once, again and again.
PAUSE_S, PAUSES = 0.01, 50


class Line:
    """The guest's end. OSError: there is none, or it is open already.

    :param answer: makes the answer to a message, and says whether another message comes
    :param device: its path; by default, that of the port with the line's name
    """

    def __init__(self, answer: Callable[[bytes], tuple[bytes, bool]], device: str = "") -> None:
        self._answer = answer
        self._file = os.open(device or _find(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._received = bytearray()
        self._unsent = b""
        self._is_last = False
        self._pauses = 0
        #: How often in a row it is asked in vain whether anybody is at the other end.
        self._most_pauses = PAUSES

    def fileno(self) -> int:
        return self._file

    def handle(self) -> int:
        """Does what can be done now. The events that are waited for next: 0 for none, ever."""
        try:
            is_there = bool(self._unsent) or self._read()
            if self._unsent:
                self._unsent = self._unsent[os.write(self._file, self._unsent) :]
                if not self._unsent:
                    if self._is_last:
                        return 0
                    self._most_pauses = 0  # the host was there, and may only hang up now
        except BlockingIOError:
            is_there = False
        except (OSError, ValueError):
            return 0
        if is_there:
            self._pauses = 0
        elif self._pauses < self._most_pauses:
            self._pauses += 1
            time.sleep(PAUSE_S)
        else:
            return 0
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> bool:
        """Whether there was something. ValueError: the message is too long."""
        data = os.read(self._file, READ_BYTES)
        self._received += data
        size = int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes")
        if len(self._received) >= LENGTH_BYTES + size:
            message = bytes(self._received[LENGTH_BYTES : LENGTH_BYTES + size])
            del self._received[: LENGTH_BYTES + size]
            answer, is_followed = self._answer(message)
            self._unsent = len(answer).to_bytes(LENGTH_BYTES, "big") + answer
            self._is_last = not is_followed
        return bool(data)


def _find() -> str:
    for port in os.listdir(PORTS):
        with suppress(OSError), open(f"{PORTS}/{port}/name", encoding="ascii") as file:
            if file.read().strip() == NAME:
                return f"/dev/{port}"
    raise FileNotFoundError(f"no port in {PORTS} has the name {NAME}")
