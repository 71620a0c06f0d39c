"""The guest's end of the line of a fake QEMU: calls to a copy are passed on to its agent."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc

from supervisor.pb import agent_pb2, agent_pb2_grpc, clone_pb2

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_LENGTH_BYTES = 4
#: To the agent: that this came over the line, and its time; that it is a rehearsal.
FIRST, REHEARSAL = "first-call", "rehearsal"


def serve(end: socket.socket, port: int, says: bytes, tell: Callable[..., None]) -> None:
    """Say this, and have the agent on this port of the loopback answer calls.

    :param tell: is told of each call
    """

    def work() -> None:
        with suppress(OSError, EOFError):
            end.sendall(says)
            is_followed = True
            while is_followed:
                size = int.from_bytes(_read(end, _LENGTH_BYTES), "big")
                call = clone_pb2.FirstCall.FromString(_read(end, size))
                is_followed = call.rehearsal
                kind = "rehearsal" if call.rehearsal else "line"
                tell(kind, open_to_all=call.open_to_all)
                answer = _answer(port, call).SerializeToString()
                end.sendall(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)

    threading.Thread(target=work, daemon=True).start()


def _answer(port: int, call: clone_pb2.FirstCall) -> clone_pb2.FirstAnswer:
    request = agent_pb2.RunRequest(computation=call.computation)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        run = agent_pb2_grpc.AgentServiceStub(channel).Run
        try:
            more = ((REHEARSAL, ""),) if call.rehearsal else ()
            answer = run(request, metadata=((FIRST, str(call.unix_time_ns)), *more))
        except grpc.RpcError as error:
            return clone_pb2.FirstAnswer(code=error.code().value[0], detail=error.details())
    return clone_pb2.FirstAnswer(computation=answer.Computation.encode())


def _read(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := end.recv(size - len(data))):
            raise EOFError
        data += part
    return bytes(data)
