"""A gRPC call as a method sees it: a message in; a message out, or a status and a sentence.

Source: gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from .refusal import Refusal, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .algorithm import OnEnd

    # A message to a message. Raises Refusal.
    Behaviour = Callable[[bytes, OnEnd], bytes]

# Before each message: whether it is compressed, and its length.
PREFIX_BYTES = 5
# A guest's processor works for a while on a message that is longer.
SHORT_BYTES = 1 << 16
# A detail goes into a header, and headers end at 8 kB.
MAX_DETAIL = 2000


class Method(NamedTuple):
    """What answers a call. *slow*: other calls must not wait for the answer."""

    behaviour: Behaviour
    slow: bool = False


class Answer(NamedTuple):
    """How a call ends: with a message, or with a code and a sentence."""

    message: bytes = b""
    code: StatusCode = StatusCode.OK
    detail: str = ""

    def trailers(self) -> list[tuple[str, str]]:
        status = ("grpc-status", str(self.code.value))
        return [status, ("grpc-message", percent_encode(self.detail))] if self.detail else [status]


class Call:
    """One call, from its headers to its end. *method*: None if there is none of that name."""

    def __init__(self, method: Method | None) -> None:
        self.method = method
        self.received = bytearray()
        #: The answer when it is known and a message. `body` is its part that has not been sent.
        self.answer: Answer | None = None
        self.body = memoryview(b"")
        self._lock = threading.Lock()
        self._ended = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_slow(self) -> bool:
        """Whether other calls must not wait for its answer."""
        return bool(self.method and self.method.slow) or len(self.received) > SHORT_BYTES

    def on_end(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            if not self._ended:
                self._callbacks.append(callback)
            return not self._ended

    def end(self) -> None:
        with self._lock:
            self._ended = True
        for callback in self._callbacks:
            callback()

    def set_answer(self, answer: Answer) -> None:
        self.answer = answer
        size = len(answer.message).to_bytes(PREFIX_BYTES - 1, "big")
        self.body = memoryview(b"\0" + size + answer.message)

    def perform(self) -> Answer:
        """Its answer, worked out in the thread that calls this."""
        if self.method is None:
            return Answer(code=StatusCode.UNIMPLEMENTED, detail="there is no such method")
        compressed, size = self.received[:1], self.received[1:PREFIX_BYTES]
        if compressed == b"\1":
            return Answer(code=StatusCode.UNIMPLEMENTED, detail="no compressed message is taken")
        message = bytes(self.received[PREFIX_BYTES:])
        if len(size) < PREFIX_BYTES - 1 or len(message) != int.from_bytes(size, "big"):
            return Answer(code=StatusCode.INTERNAL, detail="the call is not of one whole message")
        try:
            return Answer(self.method.behaviour(message, self.on_end))
        except Refusal as refusal:
            return Answer(code=refusal.code, detail=refusal.detail)
        except Exception as error:  # a bug in one method must not end the server
            why = f"the agent failed: {error!r}"[:MAX_DETAIL]
            return Answer(code=StatusCode.UNKNOWN, detail=why)


def percent_encode(text: str) -> str:
    """*text* as gRPC carries it in a header."""
    plain = range(0x20, 0x7F)
    return "".join(
        chr(byte) if byte in plain and byte != ord("%") else f"%{byte:02X}"
        for byte in text.encode(errors="replace")
    )
