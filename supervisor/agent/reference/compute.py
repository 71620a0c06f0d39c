"""``compute.ComputeService``: what is too long for one message, and what an algorithm printed.

protos/compute.proto describes it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

from .call import Method, StreamMethod
from .refusal import Refusal, StatusCode
from .store import ALGORITHM, MOST_DATASETS, dataset
from .wire import encode_fields, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .algorithm import OnEnd
    from .outcome import Outcome, Tail
    from .service import Agent
    from .store import Arriving
    from .wire import Fields

MAX_CHUNK_BYTES = 1 << 20
CHUNK_BYTES = 1 << 18


class Upload:
    """One call of Upload."""

    def __init__(self, agent: Agent, on_end: OnEnd) -> None:
        self._agent = agent
        self._on_end = on_end
        self._arriving: Arriving | None = None
        self._sha256 = ""

    def take(self, message: bytes) -> None:
        fields = fields_of(message)
        if self._arriving is None:
            self._arriving = self._begin(fields)
        elif (fields.payloads.keys() | fields.numbers.keys()) - {4}:
            why = "only the first message of an upload tells kind, size, sha256 and number"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why)
        chunk = fields.payloads.get(4, b"")
        if len(chunk) > MAX_CHUNK_BYTES:
            why = f"a chunk has {MAX_CHUNK_BYTES} bytes at most"
            raise Refusal(StatusCode.RESOURCE_EXHAUSTED, why)
        self._arriving.write(chunk)

    def finish(self) -> bytes:
        if self._arriving is None:
            raise Refusal(StatusCode.INVALID_ARGUMENT, "an upload has at least one message")
        arriving, sha256 = self._arriving, self._sha256
        stored = self._agent.counted("Upload", lambda: arriving.finish(sha256))
        return encode_fields((1, stored.id.encode()), (2, stored.size))

    def _begin(self, fields: Fields) -> Arriving:
        kind = _kind(fields.numbers.get(1, 0), fields.numbers.get(5, 0))
        size = fields.numbers.get(2, 0)
        self._sha256 = fields.payloads.get(3, b"").decode(errors="replace")
        arriving = self._agent.begin_upload(kind, size)
        if not self._on_end(arriving.abort):
            arriving.abort()
        return arriving


def _kind(kind: int, number: int) -> str:
    if kind == 1 and not number:
        return ALGORITHM
    if kind != 2:
        why = "the first message tells the kind: 1 for an algorithm, 2 for a data set"
        raise Refusal(StatusCode.INVALID_ARGUMENT, why)
    if number >= MOST_DATASETS:
        raise Refusal(StatusCode.INVALID_ARGUMENT, f"data sets have numbers below {MOST_DATASETS}")
    return dataset(number)


def methods(agent: Agent) -> dict[str, Method | StreamMethod]:
    """What *agent* serves over gRPC: methods by their paths."""

    def compute(message: bytes, on_end: OnEnd) -> Iterator[bytes]:
        numbers = fields_of(message).numbers
        # The guest's room for files bounds the result.
        limits = agent.limits(sys.maxsize, numbers.get(1, 0), numbers.get(2, 0))
        datasets = min(numbers.get(3, 0), MOST_DATASETS)
        outcome, result = agent.counted(
            "Compute", lambda: agent.runner.run(limits, on_end, datasets)
        )
        if not on_end(result.close):
            result.close()
        return _parts(outcome, result)

    def last_outcome(_: bytes, __: OnEnd) -> bytes:
        return encode_outcome(agent.counted("LastOutcome", lambda: _last(agent)))

    def printed(message: bytes, _: OnEnd) -> bytes:
        known = fields_of(message).numbers
        return agent.counted("Printed", lambda: _printed(agent, known))

    return {
        "/compute.ComputeService/Upload": StreamMethod(lambda on_end: Upload(agent, on_end)),
        "/compute.ComputeService/Compute": Method(compute, slow=True),
        "/compute.ComputeService/LastOutcome": Method(last_outcome),
        "/compute.ComputeService/Printed": Method(printed),
    }


def _parts(outcome: Outcome, result: BinaryIO) -> Iterator[bytes]:
    yield encode_fields((1, encode_outcome(outcome)))
    while outcome.result_size and (chunk := result.read(CHUNK_BYTES)):
        yield encode_fields((2, chunk))


def _last(agent: Agent) -> Outcome:
    if agent.runner.last is None:
        raise Refusal(StatusCode.FAILED_PRECONDITION, "no algorithm has ended yet")
    return agent.runner.last


def _printed(agent: Agent, known: dict[int, int]) -> bytes:
    run, printed = agent.runner.printed
    position, data = printed.since(known.get(2, 0) if known.get(1, 0) == run else 0)
    return encode_fields((1, run), (2, position), (3, data))


def encode_outcome(outcome: Outcome) -> bytes:
    """The message Outcome of protos/compute.proto."""
    return encode_fields(
        (1, outcome.state.value),
        (2, outcome.error.encode()),
        (3, outcome.exit_status),
        (4, _output(outcome.stdout)),
        (5, _output(outcome.stderr)),
        (6, outcome.algorithm_id.encode()),
        *((7, one.encode()) for one in outcome.dataset_ids),
        (8, int(outcome.duration_s * 1000)),
        (9, outcome.result_size),
        (10, outcome.result_sha256.encode()),
    )


def _output(tail: Tail) -> bytes:
    return encode_fields((1, tail.last), (2, tail.dropped))
