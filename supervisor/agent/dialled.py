"""The supervisor's end of ``cvms.Service``: an agent that dials it, instead of being called.

How an agent's streams get here: `dialled_server`. grpc.aio belongs to asyncio. The functions here
are trio-flavoured.

Source: protos/cvms.proto, and how the successor's agent uses it: it opens its stream again 5 s
after it broke, and answers each request on the stream of that time.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import grpc
import structlog
import trio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from supervisor.agent import manifest
from supervisor.bridge import aio_as_trio
from supervisor.config import AgentDials
from supervisor.errors import AgentError
from supervisor.guest_text import clean
from supervisor.pb import cvms_pb2
from supervisor.qemu import network
from supervisor.state.record import EventKind
from supervisor.state.shares import Shares
from supervisor.waiting import Budget, Signal, move_on_when

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Context = grpc.aio.ServicerContext[Any, Any]
    Tell = Callable[[EventKind, Mapping[str, object]], Awaitable[None]]

log = structlog.stdlib.get_logger()

#: Streams that an agent may open at once, of whatever method; after that, one in each interval.
_STREAMS, _STREAM_INTERVAL_S = 8, 2.0
#: Messages that are read at once; after that, one in each interval. The guest's network holds the
#: others back.
_MESSAGES, _MESSAGE_INTERVAL_S = 500, 0.01
#: Of those, so many logs and events are told.
_TOLD, _TOLD_INTERVAL_S = 200, 2.0
_CHUNK = 1024 * 1024
_WORDS_BYTES, _WORD_BYTES = 1024, 200

_FORWARDER = ("connection-type", "log-forwarder")


def shares() -> Shares:
    """What the guest of such an agent reads."""
    return Shares(
        environment=(
            ("AGENT_LOG_LEVEL", "info"),
            ("AGENT_CVM_GRPC_URL", network.DIALLED),
            ("AGENT_CERTS_TOKEN", ""),
            ("AGENT_CVM_CA_URL", ""),
        )
    )


class DialledAgent:
    """One VM's. It is what `supervisor.agent.client.Agent` is for an agent that is called.

    :ivar address: where it is reached; nothing listens there before it has its manifest
    :ivar refused: never: nobody calls it
    """

    refused = False

    def __init__(self, vm_id: str, address: str, how: AgentDials, tell: Tell) -> None:
        """
        :param tell: is told of logs and events, made clean
        """
        self.address = address
        self._vm_id = vm_id
        self._how = how
        self._tell = tell
        self._changed = Signal()
        self._stream: _Stream | None = None
        #: Who waits for an answer, by its kind and the id in it.
        self._waiting: dict[tuple[str, str], trio.MemorySendChannel[Any]] = {}
        self._stopping = trio.Lock()
        self._served = 0
        self._streams = Budget(_STREAMS, _STREAM_INTERVAL_S)
        self._messages = Budget(_MESSAGES, _MESSAGE_INTERVAL_S)
        self._news = Budget(_TOLD, _TOLD_INTERVAL_S)
        #: Logs and events since that were not told.
        self._untold = 0
        self._last_log = ""
        self._closed = False

    # --- as an agent that is called ---------------------------------------------------------

    @property
    def last_words(self) -> str:
        """The last of its logs, for errors of an agent that does not answer."""
        return _clean(self._last_log, _WORDS_BYTES)

    async def wait_ready(self, attempt_s: float | None = None) -> None:
        """Return when its stream is there."""
        await self._changed.until(lambda: self._stream is not None)

    async def wait_lost(self) -> None:
        """Return when its stream is not there."""
        await self._changed.until(lambda: self._stream is None)

    async def close(self) -> None:
        """Nothing: a guest that is paused keeps its stream."""

    async def run(self, computation: bytes, *, open_to_all: bool) -> str:
        """The agent's answer to a manifest, in JSON.

        :raises AgentError: if the agent refuses it, or its stream ends before
        """
        wanted = manifest.parse(computation)
        asked = [cvms_pb2.ServerStreamMessage(runReq=wanted)]
        if self._how is not AgentDials.WHOLE:
            asked = [
                cvms_pb2.ServerStreamMessage(runReqChunks=chunk)
                for chunk in chunks(wanted.id, wanted.SerializeToString())
            ]
        answer = await self._ask("run_res", wanted.id, *asked)
        if answer.error:
            said = _clean(answer.error, _WORDS_BYTES)
            raise AgentError(self._vm_id, "FAILED_PRECONDITION", said)
        return str(json_format.MessageToJson(answer, indent=None))

    # --- what only such an agent can --------------------------------------------------------

    async def state(self) -> str:
        """The state of its computation, in its words.

        :raises AgentError: if its stream is not there, or ends before
        """
        asked = cvms_pb2.AgentStateReq(id=str(uuid.uuid4()))
        message = cvms_pb2.ServerStreamMessage(agentStateReq=asked)
        return _clean((await self._ask("agentStateRes", asked.id, message)).state, _WORD_BYTES)

    async def stop(self, computation_id: str) -> None:
        """Have it stop its computation.

        :raises AgentError: if it says that it cannot, or its stream is not there, or ends before
        """
        asked = cvms_pb2.StopComputation(computation_id=computation_id)
        message = cvms_pb2.ServerStreamMessage(stopComputation=asked)
        async with self._stopping:  # one answer is not two
            answer = await self._ask("stopComputationRes", computation_id, message)
        if answer.message:
            said = _clean(answer.message, _WORDS_BYTES)
            raise AgentError(self._vm_id, "FAILED_PRECONDITION", said)

    async def _ask(self, kind: str, about: str, *messages: cvms_pb2.ServerStreamMessage) -> Any:
        stream = self._stream
        if stream is None:
            raise AgentError(self._vm_id, "UNAVAILABLE", "its stream is not there")
        send, receive = trio.open_memory_channel[Any](1)
        self._waiting[kind, about] = send
        try:
            async with move_on_when(lambda: self._wait_end_of(stream)):
                await stream.write(*messages)
                return await receive.receive()
        except grpc.aio.BaseError as error:  # it ended just before
            log.debug("an agent's stream failed", vm=self._vm_id, problem=repr(error))
        finally:
            del self._waiting[kind, about]
        raise AgentError(self._vm_id, "UNAVAILABLE", "its stream ended")

    async def _wait_end_of(self, stream: _Stream) -> None:
        await self._changed.until(lambda: self._stream is not stream)

    # --- its streams ------------------------------------------------------------------------

    def admits(self) -> bool:
        """Whether it may open one more stream now."""
        return self._streams.spend()

    async def serve(self, context: Context) -> None:
        """Read one of its streams to the end."""
        if self._closed:
            return
        self._served += 1
        try:
            if _FORWARDER in (context.invocation_metadata() or ()):
                await self._read(context)
            else:
                await self._serve_main(context)
        finally:
            self._served -= 1
            self._changed.notify()

    async def finish(self) -> None:
        """Take in nothing that it says any more. Its connections are closed."""
        self._closed = True
        await self._changed.until(lambda: self._served == 0)

    async def _serve_main(self, context: Context) -> None:
        stream, before = _Stream(context), self._stream
        self._stream = stream
        self._changed.notify()
        if before:
            before.scope.cancel()  # of a connection that has died, or of an agent before
        try:
            with stream.scope:
                await self._read(context)
        finally:
            if self._stream is stream:
                self._stream = None

    async def _read(self, context: Context) -> None:
        while (content := await aio_as_trio(context.read)()) is not grpc.aio.EOF:
            await self._messages.wait()
            try:
                await self._take_in(cvms_pb2.ClientStreamMessage.FromString(content))
            except DecodeError:
                self._untold += 1

    async def _take_in(self, message: cvms_pb2.ClientStreamMessage) -> None:
        kind = message.WhichOneof("message")
        match kind:
            case "agent_log":
                self._last_log = message.agent_log.message[: 4 * _WORDS_BYTES]
                if self._may_tell():
                    await self._pass_on(EventKind.AGENT_LOG, **_words_of_log(message.agent_log))
            case "agent_event":
                if self._may_tell():
                    words = _words_of_event(message.agent_event)
                    await self._pass_on(EventKind.AGENT_EVENT, **words)
            case "run_res" | "stopComputationRes":
                answer = getattr(message, kind)
                self._answer(kind, answer.computation_id, answer)
            case "agentStateRes":
                self._answer(kind, message.agentStateRes.id, message.agentStateRes)

    def _answer(self, kind: str, about: str, answer: Any) -> None:
        waiting = self._waiting.get((kind, about))
        if waiting is not None and not waiting.statistics().current_buffer_used:
            waiting.send_nowait(answer)
        elif self._may_tell():
            log.warning("an agent answers what nobody asked", vm=self._vm_id, kind=kind)

    def _may_tell(self) -> bool:
        """Asked before anything is made of what it said: that takes longest."""
        if self._news.spend():
            return True
        self._untold += 1
        return False

    async def _pass_on(self, kind: EventKind, **data: object) -> None:
        if self._untold:
            untold, self._untold = self._untold, 0
            await self._tell(EventKind.DROPPED, {"count": untold})
        await self._tell(kind, data)


class _Stream:
    """:ivar scope: what it is read in"""

    def __init__(self, context: Context) -> None:
        self.scope = trio.CancelScope()
        self._write = aio_as_trio(context.write)
        self._writing = trio.Lock()

    async def write(self, *messages: cvms_pb2.ServerStreamMessage) -> None:
        """Write messages with no other between them. If that fails, the stream is of no use."""
        async with self._writing:
            try:
                for message in messages:
                    await self._write(message.SerializeToString())
            except BaseException:
                self.scope.cancel()
                raise


def _words_of_log(said: cvms_pb2.AgentLog) -> dict[str, str]:
    return {
        "level": _clean(said.level, _WORD_BYTES),
        "message": _clean(said.message, _WORDS_BYTES),
        "computation": _clean(said.computation_id, _WORD_BYTES),
    }


def _words_of_event(event: cvms_pb2.AgentEvent) -> dict[str, str]:
    details = event.details[: 4 * _WORDS_BYTES].decode(errors="replace")
    return {
        "type": _clean(event.event_type, _WORD_BYTES),
        "status": _clean(event.status, _WORD_BYTES),
        "originator": _clean(event.originator, _WORD_BYTES),
        "computation": _clean(event.computation_id, _WORD_BYTES),
        "details": _clean(details, _WORDS_BYTES),
    }


def _clean(text: str, limit_bytes: int) -> str:
    """The same as `clean`, which reads all of a text of whatever length."""
    return clean(text[: 4 * limit_bytes], limit_bytes)


def chunks(about: str, content: bytes) -> list[cvms_pb2.RunReqChunks]:
    """A manifest in parts, of which the last is empty."""
    parts = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)]
    return [
        *(cvms_pb2.RunReqChunks(id=about, data=part) for part in parts),
        cvms_pb2.RunReqChunks(id=about, is_last=True),
    ]
