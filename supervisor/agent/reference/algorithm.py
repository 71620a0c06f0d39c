"""Runs an algorithm, a Python program, over a dataset: one process, one socket."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO, Self

from .refusal import Refusal, StatusCode
from .wire import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    # Registers a callback for the end of a call; False says that the call has ended already.
    OnEnd = Callable[[Callable[[], None]], bool]

# execve takes no single argument of 32 pages or more, the final NUL included.
MAX_ARGUMENT_BYTES = 32 * 4096 - 1
STDERR_TAIL_BYTES = 2000  # gRPC carries it in a header, and headers end at 8 kB


class AlgorithmProcess:
    """``python3 -c ALGORITHM DATASET SOCKET`` in a process group that ends with the block."""

    def __init__(self, algorithm: bytes, dataset: bytes, path: str, stderr: BinaryIO) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", algorithm, dataset, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        os.close(self.pidfd)

    def kill(self) -> None:
        """Kills the group. Until the leader is reaped, its number cannot mean another group."""
        with self._lock:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Ends what still runs of the group; the exit status of its leader, -N for signal N."""
        self.kill()
        with self._lock:
            return self._process.wait()


def run_algorithm(algorithm: bytes, dataset: bytes, timeout_s: float, on_end: OnEnd) -> bytes:
    """What the algorithm writes to its socket. *on_end* registers the algorithm's kill."""
    # Imported here because it takes long and the agent should answer before.
    import tempfile

    deadline = time.monotonic() + timeout_s
    with (
        tempfile.TemporaryDirectory(prefix="agent-") as directory,
        open(f"{directory}/stderr", "w+b") as stderr,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = f"{directory}/result.sock"
        listener.bind(path)
        listener.listen(1)
        with AlgorithmProcess(algorithm, dataset, path, stderr) as process:
            if not on_end(process.kill):
                process.kill()
            try:
                result = _receive(listener, process.pidfd, deadline)
                _wait_readable([process.pidfd], deadline)
            except TimeoutError:
                why = f"the algorithm did not finish within {timeout_s:g} s"
                raise Refusal(StatusCode.DEADLINE_EXCEEDED, why + _tail(stderr)) from None
            status = process.wait()
        if status != 0:
            why = f"the algorithm ended with status {status}"
            raise Refusal(StatusCode.ABORTED, why + _tail(stderr))
        if result is None:
            why = "the algorithm ended without connecting to its socket"
            raise Refusal(StatusCode.ABORTED, why + _tail(stderr))
    return result


def _receive(listener: socket.socket, pidfd: int, deadline: float) -> bytes | None:
    """All that the first to connect writes; None if the process ends before it connects."""
    _wait_readable([listener.fileno(), pidfd], deadline)
    listener.setblocking(False)
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return None
    result = bytearray()
    with connection:
        connection.setblocking(False)
        while True:
            _wait_readable([connection.fileno(), pidfd], deadline)
            try:
                chunk = connection.recv(1 << 16)
            except BlockingIOError:  # the process has ended, a child of it holds the socket open
                return bytes(result)
            if not chunk:
                return bytes(result)
            result += chunk
            if len(result) > MAX_PAYLOAD_BYTES:
                why = f"the result exceeds {MAX_PAYLOAD_BYTES} bytes"
                raise Refusal(StatusCode.RESOURCE_EXHAUSTED, why)


def _wait_readable(fds: list[int], deadline: float) -> None:
    """Returns when one of *fds* is readable. TimeoutError: none was before *deadline*."""
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError


def _tail(stderr: BinaryIO) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - STDERR_TAIL_BYTES))
    tail = stderr.read().decode(errors="replace").strip()
    return f": {tail}" if tail else ", and wrote nothing to stderr"
