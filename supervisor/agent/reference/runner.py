"""Holds the algorithm and the data sets, and runs one algorithm at a time."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from .algorithm import run_algorithm
from .outcome import Tail
from .refusal import Refusal, StatusCode
from .store import ALGORITHM, DATASET, Store, dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .algorithm import Limits, OnEnd
    from .outcome import Outcome
    from .process import Isolation
    from .store import Stored


class Now(NamedTuple):
    """The algorithm that runs; *since* is a monotonic time."""

    algorithm_id: str
    dataset_id: str
    since: float


class Runner:
    """Methods may be called from many threads at once.

    :ivar now: the algorithm that runs, if one does
    :ivar waiting: how many callers wait until it has ended
    :ivar last: the outcome of the last that has ended
    :ivar printed: what the last that was begun has printed, and how many were begun until then
    """

    def __init__(self, isolation: Isolation, settle: Callable[[], object]) -> None:
        """*settle* returns when the devices that algorithms may need are there."""
        self.store = Store()
        self.now: Now | None = None
        self.waiting = 0
        self.last: Outcome | None = None
        self.printed = (0, Tail())
        self._isolation = isolation
        self._settle = settle
        self._is_taken = False
        self._turn = threading.Condition()

    def run(self, limits: Limits, on_end: OnEnd, datasets: int = 0) -> tuple[Outcome, BinaryIO]:
        """Runs the algorithm in its turn. The caller closes the result, which is at its start.

        *datasets*: over so many of the first; 0 for all.

        Refusal: there is no algorithm or no data set, or the caller has left.
        """
        # Imported here because they take long and the agent should answer before.
        import shutil
        import tempfile

        with self._in_turn(on_end):
            directory = self.store.name()
            inputs = self.store.link(directory, datasets)
            try:
                self._begin(inputs, datasets)
                self._settle()
                result: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
                try:
                    where = (directory, inputs, self._isolation)
                    outcome = run_algorithm(*where, limits, on_end, result, self.printed[1])
                    result.seek(0)
                    self.last = outcome  # before it is told that none runs any more
                except BaseException:
                    result.close()
                    raise
            finally:
                self.now = None
                shutil.rmtree(directory)
        return outcome, result

    def _begin(self, inputs: dict[str, Stored], datasets: int) -> None:
        datasets = datasets or max(1, len(inputs) - (ALGORITHM in inputs))
        for kind in (ALGORITHM, *map(dataset, range(datasets))):
            if kind not in inputs:
                raise Refusal(StatusCode.FAILED_PRECONDITION, f"there is no {kind} yet")
        self.now = Now(inputs[ALGORITHM].id, inputs[DATASET].id, time.monotonic())
        self.printed = (self.printed[0] + 1, Tail())

    @contextmanager
    def _in_turn(self, on_end: OnEnd) -> Iterator[None]:
        has_left = threading.Event()

        def leave() -> None:
            has_left.set()
            with self._turn:
                self._turn.notify_all()

        if not on_end(leave):
            has_left.set()
        with self._turn:
            self.waiting += 1
            self._turn.wait_for(lambda: has_left.is_set() or not self._is_taken)
            self.waiting -= 1
            if has_left.is_set():
                raise Refusal(StatusCode.CANCELLED, "the caller has left")
            self._is_taken = True
        try:
            yield
        finally:
            with self._turn:
                self._is_taken = False
                self._turn.notify_all()
