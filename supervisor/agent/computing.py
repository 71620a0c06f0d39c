"""Algorithms, data sets and results, to and from the reference agent: ``protos/compute.proto``.

All of it passes in chunks, and no faster than the slower side takes it.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import trio

from supervisor.agent.client import told
from supervisor.bridge import aio_as_trio
from supervisor.errors import AgentError, AgentTimeout
from supervisor.guest_text import clean
from supervisor.pb import compute_pb2, compute_pb2_grpc
from supervisor.waiting import move_on_when

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator

    from supervisor.agent.client import Agent, Metadata

#: Of a message. The agent takes up to 1 MiB.
_CHUNK = 1 << 20

#: What is kept of each of an agent's sentences, and of what an algorithm has printed.
_WORD_BYTES, _PRINTED_BYTES = 1000, 64 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_NOTHING = hashlib.sha256().hexdigest()

#: The largest message that is taken: a chunk, or an outcome with all that was printed.
REPLY_BYTES = (1 << 20) + 64 * 1024

#: An agent takes so many data sets.
MOST_DATASETS = 64

_STATES = {
    compute_pb2.Outcome.STATE_SUCCEEDED: "succeeded",
    compute_pb2.Outcome.STATE_FAILED: "failed",
    compute_pb2.Outcome.STATE_TIMED_OUT: "timed-out",
    compute_pb2.Outcome.STATE_OUT_OF_MEMORY: "out-of-memory",
    compute_pb2.Outcome.STATE_RESULT_TOO_LARGE: "result-too-large",
    compute_pb2.Outcome.STATE_CANCELLED: "cancelled",
}


@attrs.frozen
class Part:
    """What an agent is sent.

    :param number: of a data set; None for the algorithm
    """

    number: int | None = None

    def __str__(self) -> str:
        return "algorithm" if self.number is None else f"data/{self.number}"


@attrs.frozen
class Stored:
    """What the agent has got: SHA-256, in hexadecimal digits, and bytes."""

    sha256: str
    size: int


@attrs.frozen
class Outcome:
    """What became of an algorithm, as the agent tells it. The guest may tell anything.

    :param state: ``succeeded``, ``failed``, ``timed-out``, ``out-of-memory``,
        ``result-too-large`` or ``cancelled``
    :param error: a sentence; empty for a success
    :param exit_status: minus the signal's number if one ended it
    :param stdout, stderr: the last that was printed
    """

    state: str
    error: str
    exit_status: int
    duration_s: float
    stdout: str
    stderr: str
    algorithm_sha256: str
    data_sha256: tuple[str, ...]
    result_size: int
    result_sha256: str


@attrs.frozen
class Printed:
    """What algorithms have printed, as far as it is known. The guest may tell anything.

    :param run: which algorithm of the agent's; 0 for none
    :param position: how many bytes that one has printed, to the end of the data
    :param data: the last of what was not known before
    """

    run: int = 0
    position: int = 0
    data: bytes = b""


async def upload(
    agent: Agent,
    part: Part,
    chunks: AsyncIterable[bytes],
    size: int | None,
    sha256: str,
    stall_s: float,
) -> Stored:
    """Send an algorithm or a data set.

    :param size: of it, in bytes; None if nobody knows
    :param sha256: of it, in hexadecimal digits; empty if nobody knows. The agent compares both
    :param stall_s: how long the agent may take for a chunk, and for its answer
    :raises AgentError: if the agent refuses it, does not know this service, or says that it has got
        something else
    :raises AgentTimeout: if it does not take it
    """
    request = compute_pb2.UploadRequest
    kind = request.KIND_ALGORITHM if part.number is None else request.KIND_DATASET
    first = request(kind=kind, number=part.number or 0, size=size or 0, sha256=sha256)
    sender, receiver = trio.open_memory_channel[compute_pb2.UploadRequest](0)
    digest, sent = hashlib.sha256(), 0
    answered, token = trio.Event(), trio.lowlevel.current_trio_token()

    def tell(_: object) -> None:  # in another
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(answered.set)

    # grpc.aio would forget an answer that comes while it writes, and tell an error of its own.
    channel = agent.open_blocking()
    try:
        stub = compute_pb2_grpc.ComputeServiceStub(channel)
        with agent.told_of("compute.ComputeService/Upload") as metadata:
            call = stub.Upload.future(_taken(receiver, channel, token), metadata=metadata)
            call.add_done_callback(tell)
            # An agent that refuses does not wait for the rest.
            async with move_on_when(answered.wait), aclosing(_of_size(chunks)) as of_size:
                with _stalling(agent.vm_id, part, stall_s):
                    await sender.send(first)
                async for chunk in of_size:
                    digest.update(chunk)
                    sent += len(chunk)
                    with _stalling(agent.vm_id, part, stall_s):
                        await sender.send(request(chunk=chunk))
                await sender.aclose()
                with _stalling(agent.vm_id, part, stall_s):
                    await answered.wait()
            with told(agent.vm_id):
                answer = call.result()
    finally:
        # The channel first: a stream of messages that ends before would tell that all was sent.
        channel.close()
        receiver.close()
        sender.close()
    stored = Stored(digest.hexdigest(), sent)
    if (answer.id, answer.size) != (stored.sha256, stored.size):
        raise AgentError(agent.vm_id, "DATA_LOSS", f"it says that it has got another {part}")
    if sha256 not in ("", stored.sha256):  # the agent should have refused it
        raise AgentError(agent.vm_id, "DATA_LOSS", f"it took another {part} than was announced")
    return stored


def _taken(
    receiver: trio.MemoryReceiveChannel[compute_pb2.UploadRequest],
    channel: grpc.Channel,
    token: trio.lowlevel.TrioToken,
) -> Iterator[compute_pb2.UploadRequest]:
    """The messages, in a thread of grpc's, to which the end of this tells that all was sent."""
    try:
        while True:
            yield trio.from_thread.run(receiver.receive, trio_token=token)
    except trio.EndOfChannel:
        return
    except (trio.ClosedResourceError, trio.Cancelled, trio.RunFinishedError):
        channel.close()  # it was not


@contextmanager
def _stalling(vm_id: str, part: Part, stall_s: float) -> Iterator[None]:
    with trio.move_on_after(stall_s) as patience:
        yield
    if patience.cancelled_caught:
        raise AgentTimeout(
            vm_id,
            f"the agent of VM {vm_id} takes nothing of {part} for {stall_s:g} s",
            advice="see MANAGER_AGENT_GRPC_TIMEOUT",
        )


async def compute(
    agent: Agent, time_limit_s: int, memory_limit_mib: int, datasets: int
) -> AsyncGenerator[Outcome | bytes, None]:
    """Run the algorithm: its outcome, and then the result in chunks.

    It is killed when this generator is closed before its end.

    :param time_limit_s, memory_limit_mib: 0 for the agent's own
    :param datasets: so many of the first; 0 for all
    :raises AgentError: if the agent refuses, dies, or sends what is no outcome
    """
    request = compute_pb2.ComputeRequest(
        time_limit_s=time_limit_s, memory_limit_mib=memory_limit_mib, datasets=datasets
    )
    call: Any = None

    async def begin(metadata: Metadata) -> Any:  # asyncio-flavoured
        stub = compute_pb2_grpc.ComputeServiceStub(agent.channel)
        return stub.Compute(request, metadata=metadata)

    async def next_part() -> Any:  # asyncio-flavoured
        part = await call.read()  # raises what the agent's status says
        return None if part is grpc.aio.EOF else part

    try:
        with told(agent.vm_id), agent.told_of("compute.ComputeService/Compute") as metadata:
            call = await aio_as_trio(begin)(metadata)
            part = await aio_as_trio(next_part)()
        yield _outcome(agent.vm_id, part)
        while True:
            with told(agent.vm_id):
                part = await aio_as_trio(next_part)()
            if part is None:
                return
            yield part.chunk
    finally:
        if call:
            call.cancel()


async def printed(agent: Agent, known: Printed) -> Printed:
    """What the algorithm that runs has printed beyond what is known, or else the last one.

    :raises AgentError: if the agent refuses, or does not know this call
    """
    request = compute_pb2.PrintedRequest(run=known.run, position=known.position)

    async def ask() -> Any:  # asyncio-flavoured
        stub = compute_pb2_grpc.ComputeServiceStub(agent.channel)
        return await stub.Printed(request, metadata=agent.metadata)

    with told(agent.vm_id):
        answer = await aio_as_trio(ask)()
    if answer is None:  # so grpc.aio reports bytes that do not parse
        raise AgentError(agent.vm_id, "INTERNAL", "it tells nothing of what is printed")
    return Printed(answer.run, answer.position, answer.data[-_PRINTED_BYTES:])


def _outcome(vm_id: str, part: Any) -> Outcome:
    outcome = part.outcome if part is not None else compute_pb2.Outcome()
    state = _STATES.get(outcome.state)
    if state is None:
        raise AgentError(vm_id, "INTERNAL", "it tells no outcome of its algorithm")
    return Outcome(
        state=state,
        error=clean(outcome.error, _WORD_BYTES),
        exit_status=outcome.exit_status,
        duration_s=outcome.duration_ms / 1000,
        stdout=_printed(outcome.stdout),
        stderr=_printed(outcome.stderr),
        algorithm_sha256=_hash(vm_id, outcome.algorithm_id),
        data_sha256=tuple(_hash(vm_id, one) for one in outcome.dataset_ids[:MOST_DATASETS]),
        result_size=outcome.result_size,
        result_sha256=_hash(vm_id, outcome.result_sha256 or _OF_NOTHING),
    )


def _hash(vm_id: str, given: str) -> str:
    """A guest may have written anything there."""
    if not _SHA256.fullmatch(given):
        raise AgentError(vm_id, "INTERNAL", "it tells a SHA-256 that is none")
    return given


def _printed(output: compute_pb2.Output) -> str:
    return output.tail[-_PRINTED_BYTES:].decode(errors="replace")


async def _of_size(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in chunks that a message can have, and few of them."""
    held = bytearray()
    async for part in parts:
        held += part
        while len(held) >= _CHUNK:
            yield bytes(held[:_CHUNK])
            del held[:_CHUNK]
    if held:
        yield bytes(held)
