"""A stand-in for an agent of the original's successor: it dials, and answers what it is sent.

Written from what is known of that agent: protos/cvms.proto.
"""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from supervisor.pb import cvms_pb2
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    _Said = cvms_pb2.ClientStreamMessage | bytes

FORWARDER = (("connection-type", "log-forwarder"),)


class Dialling:
    """One stream.

    :ivar received: what the supervisor has sent, each message in its order
    :ivar manifests: the manifests in that
    """

    def __init__(
        self, channel: grpc.Channel, vm_id: str, *, refuses: str, silent: bool, forwards_logs: bool
    ) -> None:
        self.received: queue.SimpleQueue[cvms_pb2.ServerStreamMessage] = queue.SimpleQueue()
        self.manifests: queue.SimpleQueue[cvms_pb2.ComputationRunReq] = queue.SimpleQueue()
        self.stopped: list[str] = []
        self.code: grpc.StatusCode | None = None
        self._refuses = refuses
        self._silent = silent
        self._parts = b""
        self._outgoing: queue.SimpleQueue[_Said | None] = queue.SimpleQueue()
        metadata = (("job-id", vm_id), *(FORWARDER if forwards_logs else ()))
        process: Any = channel.stream_stream(
            "/cvms.Service/Process",
            request_serializer=_serialised,
            response_deserializer=cvms_pb2.ServerStreamMessage.FromString,
        )
        self._call = process(iter(self._outgoing.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def say(self, **member: Any) -> None:
        self._outgoing.put(cvms_pb2.ClientStreamMessage(**member))

    def say_bytes(self, content: bytes) -> None:
        """What is no message."""
        self._outgoing.put(content)

    def end(self) -> None:
        """Have nothing more to say."""
        self._outgoing.put(None)

    def hang_up(self) -> None:
        self.end()
        self._call.cancel()
        self._reader.join()

    def wait_ended(self) -> grpc.StatusCode | None:
        """How the supervisor ended it."""
        self._reader.join(PATIENCE_S)
        return self.code

    def _read(self) -> None:
        try:
            for message in self._call:
                self.received.put(message)
                self._answer(message)
            self.code = self._call.code()
        except grpc.RpcError:
            self.code = self._call.code()
        self.end()

    def _answer(self, message: cvms_pb2.ServerStreamMessage) -> None:
        match message.WhichOneof("message"):
            case "runReqChunks":
                self._parts += message.runReqChunks.data
                if message.runReqChunks.is_last:
                    self._take(cvms_pb2.ComputationRunReq.FromString(self._parts))
                    self._parts = b""
            case "runReq":
                self._take(message.runReq)
            case "stopComputation":
                about = message.stopComputation.computation_id
                self.stopped.append(about)
                said = "" if len(self.stopped) == 1 else "no computation to stop"
                answer = cvms_pb2.StopComputationResponse(computation_id=about, message=said)
                self.say(stopComputationRes=answer)
            case "agentStateReq":
                about, state = message.agentStateReq.id, "ReceivingAlgorithm"
                self.say(agentStateRes=cvms_pb2.AgentStateRes(id=about, state=state))

    def _take(self, manifest: cvms_pb2.ComputationRunReq) -> None:
        self.manifests.put(manifest)
        if not self._silent:
            answer = cvms_pb2.RunResponse(computation_id=manifest.id, error=self._refuses)
            self.say(run_res=answer)


def _serialised(said: _Said) -> bytes:
    return said if isinstance(said, bytes) else said.SerializeToString()


@contextmanager
def dialling(
    target: str,
    vm_id: str,
    *,
    refuses: str = "",
    silent: bool = False,
    forwards_logs: bool = False,
) -> Iterator[Dialling]:
    """An agent that has dialled. Blocks until there is a connection."""
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        agent = Dialling(
            channel, vm_id, refuses=refuses, silent=silent, forwards_logs=forwards_logs
        )
        try:
            yield agent
        finally:
            agent.hang_up()
