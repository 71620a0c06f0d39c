"""What became of an algorithm."""

from __future__ import annotations

import enum
import threading
from typing import NamedTuple

from .refusal import Refusal, StatusCode

TAIL_BYTES = 64 << 10
# Of these, an error's sentence has the last: all of it goes into a header, and headers end at 8 kB.
TOLD_OF_STDERR, TOLD_OF_STDOUT = 1400, 400


class State(enum.Enum):
    """As in protos/compute.proto."""

    SUCCEEDED = 1
    FAILED = 2
    TIMED_OUT = 3
    OUT_OF_MEMORY = 4
    RESULT_TOO_LARGE = 5
    CANCELLED = 6


CODES = {
    State.FAILED: StatusCode.ABORTED,
    State.TIMED_OUT: StatusCode.DEADLINE_EXCEEDED,
    State.OUT_OF_MEMORY: StatusCode.RESOURCE_EXHAUSTED,
    State.RESULT_TOO_LARGE: StatusCode.RESOURCE_EXHAUSTED,
    State.CANCELLED: StatusCode.CANCELLED,
}


class Tail:
    """The last of what was printed. It may be read while more is added by another thread."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._total = 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._total += len(data)
            self._bytes += data
            if len(self._bytes) > 2 * TAIL_BYTES:
                del self._bytes[:-TAIL_BYTES]

    def since(self, position: int) -> tuple[int, bytes]:
        """How many bytes were printed, and those after *position*, if they are kept."""
        with self._lock:
            new = min(max(0, self._total - position), TAIL_BYTES)
            return self._total, self.last[len(self.last) - new :]

    @property
    def last(self) -> bytes:
        return bytes(self._bytes[-TAIL_BYTES:])

    @property
    def dropped(self) -> int:
        """How many bytes were printed before `last`."""
        return self._total - len(self.last)

    def told(self, limit: int) -> str:
        return self.last[-limit:].decode(errors="replace").strip()


class Outcome(NamedTuple):
    """*error* is a sentence, and empty for a success; *exit_status* is -N for signal N."""

    state: State
    error: str
    exit_status: int
    stdout: Tail
    stderr: Tail
    algorithm_id: str
    dataset_ids: tuple[str, ...]
    duration_s: float
    result_size: int
    result_sha256: str

    def refusal(self) -> Refusal:
        """Of a failure: its error and the last that the algorithm printed."""
        stderr, stdout = self.stderr.told(TOLD_OF_STDERR), self.stdout.told(TOLD_OF_STDOUT)
        told = f": {stderr}" if stderr else ""
        if not stderr and self.state is State.FAILED:
            told = ", and wrote nothing to stderr"
        if stdout:
            told += f"; the last of its stdout: {stdout}"
        return Refusal(CODES[self.state], self.error + told)
