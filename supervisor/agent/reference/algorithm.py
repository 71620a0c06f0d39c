"""Runs an algorithm, a Python program, over data sets: one process, one socket."""

from __future__ import annotations

import errno
import hashlib
import os
import selectors
import socket
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self

from .outcome import Outcome, State, Tail
from .process import Shortage
from .store import ALGORITHM, DATASET, DATASETS, dataset, file_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .process import Isolation, Process
    from .store import Stored

    # Registers a callback for the end of a call; False says that the call has ended already.
    OnEnd = Callable[[Callable[[], None]], bool]

# execve takes no single argument of 32 pages or more, the final NUL included.
MAX_ARGUMENT_BYTES = 32 * 4096 - 1
READ_BYTES = 1 << 16
# More than pipes and sockets hold. Without isolation, a process that has left the group writes on.
MAX_READS_AFTER_END = 32
# epoll takes no longer one than three weeks.
LONGEST_WAIT_S = 3600.0
SOCKET = "result.sock"


class Limits(NamedTuple):
    """*memory_mib*: 0 for as much as the isolation gives."""

    time_s: float
    memory_mib: int
    result_bytes: int
    is_memory_default: bool


def run_algorithm(
    directory: str,
    inputs: dict[str, Stored],
    isolation: Isolation,
    limits: Limits,
    on_end: OnEnd,
    result: BinaryIO,
    printed: Tail,
) -> Outcome:
    """Runs the algorithm over the data sets, files in *directory*; *result* gets the result.

    *printed* gets stdout and stderr as they come.

    *on_end* registers the algorithm's kill.
    """
    began = time.monotonic()
    cancelled = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/{SOCKET}"
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(1)
        seen = isolation.seen(directory)
        files = {
            "ALGORITHM_FILE": f"{seen}/{ALGORITHM}",
            "DATASET_FILE": f"{seen}/{file_of(DATASET)}",
            "DATASET_DIR": f"{seen}/{DATASETS}",
        }
        command = _command(directory, seen, inputs)
        with (
            isolation.start(directory, command, files, limits.memory_mib) as process,
            _Reader(listener, process, result, limits.result_bytes, printed) as reader,
        ):

            def cancel() -> None:
                cancelled.set()
                process.kill()

            if not on_end(cancel):
                cancel()
            in_time = reader.read_until_end(began + limits.time_s)
            status = process.end()
            reader.read_what_is_left()
    state, error = _judge(process, status, reader, limits, in_time, cancelled.is_set())
    return Outcome(
        state=state,
        error=error,
        exit_status=status,
        stdout=reader.stdout,
        stderr=reader.stderr,
        algorithm_id=inputs[ALGORITHM].id,
        dataset_ids=tuple(inputs[dataset(number)].id for number in range(len(inputs) - 1)),
        duration_s=time.monotonic() - began,
        result_size=reader.size if state is State.SUCCEEDED else 0,
        result_sha256=reader.hash.hexdigest() if state is State.SUCCEEDED else "",
    )


def _command(directory: str, seen: str, inputs: dict[str, Stored]) -> list[str | bytes]:
    """``python3 -u -c ALGORITHM DATASET SOCKET``; what cannot be an argument is its file's path.

    With -u what it prints is told at once, and in the order of its stdout and stderr.
    """
    algorithm, data = (
        _argument(f"{directory}/{file_of(kind)}", inputs[kind].size)
        for kind in (ALGORITHM, DATASET)
    )
    if algorithm is None or not _is_text(algorithm):
        program: list[str | bytes] = [f"{seen}/{ALGORITHM}"]
    else:
        program = ["-c", algorithm]
    if data is None:
        data = f"{seen}/{file_of(DATASET)}".encode()
    return [sys.executable, "-u", *program, data, f"{seen}/{SOCKET}"]


def _argument(path: str, size: int) -> bytes | None:
    """What is in the file, if it can be a process's argument."""
    if size > MAX_ARGUMENT_BYTES:
        return None
    with open(path, "rb") as file:
        content = file.read()
    return None if b"\0" in content else content


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _judge(
    process: Process,
    status: int,
    reader: _Reader,
    limits: Limits,
    in_time: bool,
    cancelled: bool,
) -> tuple[State, str]:
    """The state, and a sentence on what went wrong."""
    if cancelled:
        return State.CANCELLED, "the algorithm was killed because its caller left"
    if reader.too_large:
        return State.RESULT_TOO_LARGE, reader.too_large
    if not in_time:
        return State.TIMED_OUT, f"the algorithm did not finish within {limits.time_s:g} s"
    if process.shortage:
        return State.OUT_OF_MEMORY, _want_of_memory(process, limits)
    if status:
        how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        return State.FAILED, f"the algorithm {how}"
    if not reader.is_connected:
        return State.FAILED, "the algorithm ended without connecting to its socket"
    return State.SUCCEEDED, ""


def _want_of_memory(process: Process, limits: Limits) -> str:
    limit = f"limit {process.memory_mib} MiB" if process.memory_mib else "no limit"
    if process.memory_mib and limits.is_memory_default:
        limit += ", the default" if limits.memory_mib else ", the default: all the guest can give"
    if process.shortage is Shortage.LIMIT:
        return f"the algorithm was killed for want of memory: {limit}"
    why = f"the guest ran out of memory and killed the algorithm ({limit})"
    return f"{why}; raise MANAGER_QEMU_MEMORY_SIZE"


class _Reader:
    """Reads what an algorithm prints, and all that the first to connect to its socket writes."""

    def __init__(
        self,
        listener: socket.socket,
        process: Process,
        result: BinaryIO,
        limit: int,
        printed: Tail,
    ) -> None:
        self.stdout, self.stderr = Tail(), Tail()
        self._printed = printed
        self.is_connected = False
        self.size = 0
        self.hash = hashlib.sha256()
        #: Why no more of the result is read.
        self.too_large = ""
        self._process = process
        self._result = result
        self._limit = limit
        self._has_ended = False
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        self._listener.setblocking(False)
        self._watch(self._listener.fileno(), self._accept)
        for stream, tail in (
            (self._process.stdout, self.stdout),
            (self._process.stderr, self.stderr),
        ):
            os.set_blocking(stream.fileno(), False)
            self._watch(stream.fileno(), partial(self._read_printed, stream.fileno(), tail))
        self._watch(self._process.pidfd, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        if self._connection:
            self._connection.close()

    def read_until_end(self, deadline: float) -> bool:
        """Whether the process has ended before *deadline*, or the result is too large."""
        while not self._has_ended and not self.too_large:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._read(min(left_s, LONGEST_WAIT_S))
        return True

    def read_what_is_left(self) -> None:
        """To be called when the process has ended."""
        self._selector.unregister(self._process.pidfd)
        for _ in range(MAX_READS_AFTER_END):
            if self.too_large or not self._read(0):
                return

    def _read(self, wait_s: float) -> bool:
        """Whether there was something to read."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, act)

    def _end(self) -> None:
        self._has_ended = True

    def _accept(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.setblocking(False)
        self.is_connected = True
        self._selector.unregister(self._listener)
        self._watch(self._connection.fileno(), self._read_result)

    def _read_result(self) -> None:
        assert self._connection
        data = self._connection.recv(READ_BYTES)
        if not data:
            self._selector.unregister(self._connection)
        elif self.size + len(data) > self._limit:
            self.too_large = f"the result exceeds {self._limit} bytes"
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        try:
            self._result.write(data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.too_large = f"there is no room for a result of more than {self.size} bytes"
            return
        self.size += len(data)
        self.hash.update(data)

    def _read_printed(self, fd: int, tail: Tail) -> None:
        data = os.read(fd, READ_BYTES)
        tail.add(data)
        self._printed.add(data)
        if not data:
            self._selector.unregister(fd)
