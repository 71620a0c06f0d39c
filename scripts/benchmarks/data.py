"""How fast data reaches a guest through the supervisor, and how fast a result comes back.

    scripts/bench data [--megabytes 2000] [--json FILE]

A real guest gets a data set, and computes a result of the same length. In one run, by turns: sent
to the agent's own port over gRPC, and through the supervisor over HTTP, each time after the one
before was forgotten. Meanwhile the supervisor's memory is looked at.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from rich.console import Console

from scripts.benchmarks import figures, guest, host
from supervisor.pb import compute_pb2, compute_pb2_grpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_MB = 1_000_000
_CHUNK = 1 << 20
_LOOK_S = 0.05
#: Of the guest's memory half is for files: data and result beside each other, and some room.
_GUEST_MB = 5
_COPY = b"""
import os, socket, sys
with open(os.environ["DATASET_FILE"], "rb") as data, socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    while piece := data.read(1 << 20):
        result.sendall(piece)
"""

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=2000, help="length of the data set")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    size = wanted.megabytes * _MB
    memory = f"{_GUEST_MB * wanted.megabytes + 512}M"
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        directory = Path(name)
        settings = guest.environ(
            directory / "t", MANAGER_TEMPLATES="off", MANAGER_QEMU_MEMORY_SIZE=memory
        )
        try:
            with host.running(directory, settings) as supervisor:
                found = _measure(supervisor, size)
        finally:
            for process in host.left(directory / "t"):
                process.kill()
    console.print(figures.table(found, f"{wanted.megabytes} MB, by turns"))
    console.print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if wanted.json:
        wanted.json.write_text(json.dumps([one.as_json() for one in found], indent=2))


def _measure(supervisor: host.Supervisor, size: int) -> list[figures.Figure]:
    url = f"http://127.0.0.1:{supervisor.port}"
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as http:
        vm = http.post("/run", json={"computation": "e30="}).raise_for_status().json()
        port = vm["forwards"][-1]["host_port"]
        path = f"/vms/{vm['id']}"
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            agent = compute_pb2_grpc.ComputeServiceStub(channel)
            agent.Upload(_chunks(compute_pb2.UploadRequest.KIND_ALGORITHM, _COPY))
            kind = compute_pb2.UploadRequest.KIND_DATASET
            sent_directly_s = _took(lambda: agent.Upload(_of_zeros(kind, size)))
            fetched_directly_s = _took(lambda: _fetch(agent, size))
            agent.Upload(_chunks(kind, b""))
            before = supervisor.memory()
            with _Peak(supervisor) as peak:
                sent_s = _took(lambda: _put(http, path, size))
                fetched_s = _took(lambda: _compute(http, path, size))
    rates = {"to the guest": (sent_s, sent_directly_s), "back": (fetched_s, fetched_directly_s)}
    return [
        *(
            figures.Figure(
                f"{way}, of a direct connection",
                "times",
                directly_s / took_s,
                0.7,
                at_least=True,
                detail=f"{size / _MB / took_s:.0f} MB/s, directly {size / _MB / directly_s:.0f}",
            )
            for way, (took_s, directly_s) in rates.items()
        ),
        figures.Figure(
            "memory while it passes",
            "MB",
            (peak.most - before) / _MB,
            50,
            detail=f"{before / _MB:.0f} MB before",
        ),
    ]


def _took(act: Any) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _zeros(size: int) -> Iterator[bytes]:
    piece = bytes(_CHUNK)
    for at in range(0, size, _CHUNK):
        yield piece[: min(_CHUNK, size - at)]


def _of_zeros(kind: Any, size: int) -> Iterator[compute_pb2.UploadRequest]:
    yield compute_pb2.UploadRequest(kind=kind, size=size)
    for piece in _zeros(size):
        yield compute_pb2.UploadRequest(chunk=piece)


def _chunks(kind: Any, content: bytes) -> Iterator[compute_pb2.UploadRequest]:
    yield compute_pb2.UploadRequest(kind=kind, chunk=content)


def _fetch(agent: Any, size: int) -> None:
    got = sum(len(part.chunk) for part in agent.Compute(compute_pb2.ComputeRequest()))
    assert got == size, got


def _put(http: httpx.Client, path: str, size: int) -> None:
    announced = {"Content-Length": str(size)}
    http.put(f"{path}/data/0", content=_zeros(size), headers=announced).raise_for_status()


def _compute(http: httpx.Client, path: str, size: int) -> None:
    http.post(f"{path}/compute").raise_for_status()
    with http.stream("GET", f"{path}/result") as answer:
        got = sum(len(piece) for piece in answer.iter_bytes())
    assert got == size, got


class _Peak:
    """The most memory that the supervisor had, in bytes, of looks every 50 ms."""

    def __init__(self, supervisor: host.Supervisor) -> None:
        self.most = 0
        self._supervisor = supervisor
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._look)

    def __enter__(self) -> _Peak:
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looker.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.most = max(self.most, self._supervisor.memory())
