"""The line to a copy's agent: a serial port of virtio's, over which the copy gets its computation.

For TCP and HTTP/2 an emulated guest that has just begun to run needs as long as for all the rest.
The agent has its end open since before its guest was frozen; so its supervisor is at the other end
then, and before a copy runs: else the guest's kernel would first be told of it. What is said is in
``protos/clone.proto``. Nobody but this supervisor and QEMU has this end, so no credential is shown.

Source: QAPI's ``chardev-add`` and ``device_add``; QEMU's hw/char/virtio-serial-bus.c.
"""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import structlog
import trio
from google.protobuf.message import DecodeError

from supervisor.errors import AgentError, MonitorError
from supervisor.pb import clone_pb2
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.qemu.qmp import Monitor

log = structlog.stdlib.get_logger()

#: What the guest's agent knows the port by.
NAME = "org.qmp-supervisor.agent"

#: The longest computation that goes this way: a port takes a guest's page at a time.
MOST_BYTES = 1 << 16

#: The longest answer, which may repeat the computation.
_ANSWER_BYTES = 1 << 20

#: Of a refusal.
_DETAIL_CHARACTERS = 1 << 14

#: How long what a guest said before it closed its end may take to be here.
_LAST_WORDS_S = 1.0

_LENGTH_BYTES = 4
_RENEWED = b"r"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Line:
    """The supervisor's end.

    :ivar address: where the agent is, for a person
    :ivar has_answer: whether the guest has answered a call, in whatever way
    """

    address = "the end of its line"

    #: An agent says nothing there but its answer.
    last_words = ""

    def __init__(self, vm_id: str, stream: trio.SocketStream) -> None:
        self._vm_id = vm_id
        self._stream = stream
        self._received = bytearray()
        self._guest_closed = trio.Event()
        self.has_answer = False

    @property
    def is_open(self) -> bool:
        """Whether the guest's end is, as far as is known."""
        return not self._guest_closed.is_set()

    def guest_has_closed(self) -> None:
        """QEMU has told that. What the guest said before can still be read."""
        self._guest_closed.set()

    async def wait_renewed(self) -> None:
        """Return when the copy has its own identity.

        :raises AgentError: if it says anything else
        """
        with self._as_agreed():
            if await self._peek(len(_RENEWED)) != _RENEWED:
                raise ValueError
            del self._received[: len(_RENEWED)]

    def takes(self, computation: bytes) -> bool:
        """Whether this computation can be sent here."""
        return self.is_open and len(computation) <= MOST_BYTES

    async def rehearse(self) -> None:
        """Let the copy's agent go, and have it work as for a computation. After `wait_renewed`.

        :raises AgentError: if the agent answers with an error, or not at all
        """
        await self._ask(clone_pb2.FirstCall(unix_time_ns=time.time_ns(), rehearsal=True))

    async def run(self, computation: bytes, *, open_to_all: bool) -> str:
        """The agent's reply to *computation*. After `wait_renewed`, and once.

        :param computation: one that the line `takes`
        :param open_to_all: whether the agent answers everybody from now on
        :raises AgentError: if the agent answers with an error, or not at all
        """
        call = clone_pb2.FirstCall(
            unix_time_ns=time.time_ns(), open_to_all=open_to_all, computation=computation
        )
        return await self._ask(call)

    async def _ask(self, call: clone_pb2.FirstCall) -> str:
        message = call.SerializeToString()
        with self._as_agreed():
            await self._stream.send_all(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
            answer = clone_pb2.FirstAnswer.FromString(await self._answer())
            self.has_answer = True
            if answer.code:
                # As long as gRPC would take, and no longer: it is made fit for a terminal.
                detail = answer.detail[:_DETAIL_CHARACTERS]
                raise AgentError(self._vm_id, _CODES[answer.code], detail)
            return answer.computation.decode()

    async def _answer(self) -> bytes:
        """The next message. A guest that closes its end has said all that it will say."""
        async with move_on_when(self._guest_closed.wait) as listening:
            message = await self._message()
        if listening.cancelled_caught:
            with trio.fail_after(_LAST_WORDS_S):
                message = await self._message()
        return message

    async def _message(self) -> bytes:
        size = int.from_bytes(await self._peek(_LENGTH_BYTES), "big")
        if size > _ANSWER_BYTES:
            raise ValueError
        message = await self._peek(_LENGTH_BYTES + size)
        self._received.clear()
        return message[_LENGTH_BYTES:]

    async def close(self) -> None:
        await self._stream.aclose()

    async def _peek(self, size: int) -> bytes:
        """What came first and was not taken yet. Nothing is lost if this is cancelled."""
        while len(self._received) < size:
            part = await self._stream.receive_some(size - len(self._received))
            if not part:
                raise trio.BrokenResourceError
            self._received += part
        return bytes(self._received[:size])

    @contextmanager
    def _as_agreed(self) -> Iterator[None]:
        try:
            yield
        except trio.TooSlowError as error:
            raise AgentError(self._vm_id, "UNAVAILABLE", "its guest has closed its line") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise AgentError(self._vm_id, "UNAVAILABLE", "its line was cut") from error
        except (ValueError, LookupError, DecodeError) as error:
            why = "its answer is not what its protocol says"
            raise AgentError(self._vm_id, "INTERNAL", why) from error


async def connect(vm_id: str, monitor: Monitor) -> Line | None:
    """Give the guest its end, and have this one. Before the guest runs, or is restored.

    :returns: None if QEMU has no such device. The copy is called as others are then
    :raises MonitorError: if QEMU does not answer
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        log.warning("no line", vm=vm_id, problem=str(error))
        return None
    with theirs:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        try:
            await monitor.add_port(NAME, theirs)
        except MonitorError as error:
            ours.close()
            if error.error_class is None:
                raise
            log.info("no line", vm=vm_id, problem=str(error))
            return None
        except BaseException:
            ours.close()
            raise
    return Line(vm_id, stream)
