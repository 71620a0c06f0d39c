"""A gRPC call as a method sees it: messages in; messages out, or a status and a sentence.

Source: gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .refusal import Refusal, StatusCode
from .wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .algorithm import OnEnd

    # A message to a message, or to those of a stream. Raises Refusal.
    Behaviour = Callable[[bytes, OnEnd], bytes | Iterator[bytes]]

# Before each message: whether it is compressed, and its length.
PREFIX_BYTES = 5
# Of everybody's methods: what anybody can have the guest keep.
MAX_PUBLIC_BYTES = 1 << 10
# A guest's processor works for a while on a message that is longer.
SHORT_BYTES = 1 << 16
# Of a stream, the server's thread takes each message as it comes: others wait that long.
MAX_STREAMED_BYTES = (1 << 20) + (1 << 10)
# A detail goes into a header, where a byte may take three, and headers end at 8 kB.
MAX_DETAIL_BYTES = 2000


class Method(NamedTuple):
    """What answers a call.

    *slow*: other calls must not wait for the answer. *public*: it asks nobody for a credential.
    """

    behaviour: Behaviour
    slow: bool = False
    public: bool = False


class Sink(Protocol):
    """What takes a stream of messages. Its methods raise Refusal, and each returns soon."""

    def take(self, message: bytes) -> None: ...

    def finish(self) -> bytes:
        """The answer, when all messages have been taken."""


class StreamMethod(NamedTuple):
    """What answers a call of many messages: *begin* is called for each call."""

    begin: Callable[[OnEnd], Sink]


class Answer(NamedTuple):
    """How a call ends: with messages, or with a code and a sentence."""

    messages: Iterable[bytes] = ()
    code: StatusCode = StatusCode.OK
    detail: str = ""

    def trailers(self) -> list[tuple[str, str]]:
        status = ("grpc-status", str(self.code.value))
        return [status, ("grpc-message", percent_encode(self.detail))] if self.detail else [status]


class Call:
    """One call of one message, from its headers to its end. *method*: None if there is none."""

    def __init__(self, method: Method | None) -> None:
        self.method = method
        self.received = bytearray()
        #: The answer when it is known and no error. `body` is what of it is being sent.
        self.answer: Answer | None = None
        self.body = memoryview(b"")
        self._messages: Iterator[bytes] = iter(())
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
        self._messages = iter(answer.messages)

    def next_body(self) -> bool:
        """Whether another message is to be sent; it is in `body` then."""
        for message in self._messages:
            size = len(message).to_bytes(PREFIX_BYTES - 1, "big")
            self.body = memoryview(b"\0" + size + message)
            return True
        return False

    def receive(self, data: bytes) -> Answer | None:
        """Takes *data* of the call's body; an answer if the call has failed."""
        self.received += data
        most = MAX_PUBLIC_BYTES if self.method and self.method.public else MAX_MESSAGE_BYTES
        return _too_long(most) if len(self.received) > PREFIX_BYTES + most else None

    def perform(self) -> Answer:
        """Its answer, worked out in the thread that calls this."""
        if self.method is None:
            return Answer(code=StatusCode.UNIMPLEMENTED, detail="there is no such method")
        if self.received[:1] == b"\1":
            return COMPRESSED
        size, message = self.received[1:PREFIX_BYTES], bytes(self.received[PREFIX_BYTES:])
        if len(size) < PREFIX_BYTES - 1 or len(message) != int.from_bytes(size, "big"):
            return Answer(code=StatusCode.INTERNAL, detail="the call is not of one whole message")
        behaviour = self.method.behaviour
        return _answer(lambda: behaviour(message, self.on_end))


class StreamCall(Call):
    """One call of many messages, each of which is taken as it comes."""

    def __init__(self, method: StreamMethod) -> None:
        super().__init__(None)
        self._begin = method.begin
        self._sink: Sink | None = None

    @property
    def is_slow(self) -> bool:
        return False

    def receive(self, data: bytes) -> Answer | None:
        self.received += data
        while len(self.received) >= PREFIX_BYTES:
            size = int.from_bytes(self.received[1:PREFIX_BYTES], "big")
            if self.received[0]:
                return COMPRESSED
            if size > MAX_STREAMED_BYTES:
                return _too_long(MAX_STREAMED_BYTES)
            end = PREFIX_BYTES + size
            if len(self.received) < end:
                break
            message = bytes(self.received[PREFIX_BYTES:end])
            del self.received[:end]
            if failed := self._take(message):
                return failed
        return None

    def perform(self) -> Answer:
        if self.received:
            return Answer(code=StatusCode.INTERNAL, detail="the last message is not whole")
        return _answer(lambda: self._opened().finish())

    def _take(self, message: bytes) -> Answer | None:
        def take() -> bytes:
            self._opened().take(message)
            return b""

        answer = _answer(take)
        return None if answer.code is StatusCode.OK else answer

    def _opened(self) -> Sink:
        if self._sink is None:
            self._sink = self._begin(self.on_end)
        return self._sink


def _too_long(limit: int) -> Answer:
    why = f"a message has {limit} bytes at most"
    return Answer(code=StatusCode.RESOURCE_EXHAUSTED, detail=why)


STRANGER = Answer(
    code=StatusCode.UNAUTHENTICATED,
    detail="this agent is its run's alone: the metadata 'authorization: Bearer CREDENTIAL' is"
    " missing or wrong; the run's answer has the credential",
)
CROWDED = Answer(
    code=StatusCode.RESOURCE_EXHAUSTED,
    detail="the messages of other calls take all the room that there is; try again later",
)
COMPRESSED = Answer(code=StatusCode.UNIMPLEMENTED, detail="no compressed message is taken")


def _answer(act: Callable[[], bytes | Iterator[bytes]]) -> Answer:
    try:
        answer = act()
    except Refusal as refusal:
        return Answer(code=refusal.code, detail=refusal.detail)
    except Exception as error:  # a bug in one method must not end the server
        return Answer(code=StatusCode.UNKNOWN, detail=f"the agent failed: {error!r}")
    return Answer((answer,) if isinstance(answer, bytes) else answer)


def encode_detail(text: str) -> bytes:
    """*text* as UTF-8; of a long one, the beginning."""
    # A character must not be cut in two.
    return text.encode(errors="replace")[:MAX_DETAIL_BYTES].decode(errors="ignore").encode()


def percent_encode(text: str) -> str:
    """*text* as gRPC carries it in a header; of a long one, the beginning."""
    encoded = encode_detail(text)
    plain = range(0x20, 0x7F)
    return "".join(
        chr(byte) if byte in plain and byte != ord("%") else f"%{byte:02X}" for byte in encoded
    )
