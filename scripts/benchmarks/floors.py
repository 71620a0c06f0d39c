"""What an answer costs in the libraries alone, before a supervisor has any part in it.

    scripts/bench floors [--seconds 4] [--turns 5] [--json FILE]

HTTP: Hypercorn with nothing on it, and with a Quart-Trio application of one empty route, eight
connections. QMP: a real QEMU without a machine is asked `query-status` by one caller, over a plain
socket, by qemu.qmp under asyncio, and by qemu.qmp under trio-asyncio. All take turns.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio_asyncio
from qemu.qmp import QMPClient
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import bare, client
from supervisor.bridge import aio_as_trio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

console = Console()

_CONNECTIONS = 8
_QUESTION = b'{"execute": "query-status"}\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=4, help="of each turn; default: 4")
    parser.add_argument("--turns", type=int, default=5, help="of each; default: 5")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {}
    with bare.server() as empty, bare.server("quart") as quart, _qemu() as monitor:
        ways: dict[str, Callable[[], float]] = {
            "Hypercorn with nothing on it": lambda: _http(empty, wanted.seconds),
            "with an empty route of Quart-Trio": lambda: _http(quart, wanted.seconds),
            "QMP over a plain socket": lambda: _plain(monitor, wanted.seconds),
            "by qemu.qmp, asyncio": lambda: asyncio.run(_asyncio(monitor, wanted.seconds)),
            "by qemu.qmp, trio-asyncio": lambda: trio.run(_trio, monitor, wanted.seconds),
        }
        for _ in range(wanted.turns):
            for name, measure in ways.items():
                rates.setdefault(name, []).append(measure())
    medians = {name: statistics.median(each) for name, each in rates.items()}
    table = Table("", "a second", "µs each", "slowest and fastest turn")
    for name, rate in medians.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        table.add_row(name, f"{rate:.0f}", f"{1e6 / rate:.0f}", spread)
    console.print(table)
    if wanted.json:
        wanted.json.write_text(json.dumps(medians, indent=2) + "\n")


def _http(port: int, seconds: float) -> float:
    asked = [client.get("/vms/7f0c5f3e-0000-4000-8000-0123456789ab/status")]
    return client.as_fast_as_possible(port, asked, _CONNECTIONS, seconds).rate


@contextmanager
def _qemu() -> Iterator[str]:
    """The path of its monitor."""
    with tempfile.TemporaryDirectory(prefix="floors-") as directory:
        monitor = f"{directory}/qmp"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(monitor)
            listener.listen()
            chardev = f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"
            words = ["-machine", "none", "-display", "none", "-chardev", chardev]
            command = ["qemu-system-x86_64", *words, "-mon", "chardev=qmp,mode=control"]
            process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            yield monitor
        finally:
            process.kill()
            process.wait()


def _plain(monitor: str, seconds: float) -> float:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(monitor)
        with opened.makefile("rb") as answers:
            answers.readline()  # the greeting
            opened.sendall(b'{"execute": "qmp_capabilities"}\n')
            answers.readline()
            count, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                opened.sendall(_QUESTION)
                answers.readline()
                count += 1
    return count / seconds


async def _asyncio(monitor: str, seconds: float) -> float:
    qmp = QMPClient("floors")
    await qmp.connect(monitor)
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        await qmp.execute("query-status")
        count += 1
    await qmp.disconnect()
    return count / seconds


async def _trio(monitor: str, seconds: float) -> float:
    async with trio_asyncio.open_loop():
        qmp = QMPClient("floors")
        await aio_as_trio(qmp.connect)(monitor)
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            await aio_as_trio(qmp.execute)("query-status")
            count += 1
        await aio_as_trio(qmp.disconnect)()
    return count / seconds
