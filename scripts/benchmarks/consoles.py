"""What readers of consoles cost others, also those who read slowly, or not at all.

    scripts/bench consoles [--vms 50] [--rounds 4] [--seconds 10] [--json FILE]

Real QEMUs, whose firmware is a serial console (console.S, which ``as`` of binutils assembles). One
prints without end, and has a reader. By turns that is all, or it has one more who reads 4 KiB a
second, and one who reads nothing. Meanwhile somebody types at the console of each other VM, and
waits for what it says.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import trio
import wsproto
import wsproto.events
from rich.console import Console

from scripts.benchmarks import figures, guest, host

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

_MB = 1_000_000
_SOURCE = Path(__file__).with_name("console.S")
_FLASH_BYTES = 1 << 16
_PIECE = 1 << 16
_PATIENCE_S = 120.0
_SLOW_PIECE = 4096
_WRITE = '{"write": true}'

console = Console()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vms", type=int, default=50, help="real QEMUs, each with a reader")
    parser.add_argument("--rounds", type=int, default=4, help="of both kinds, by turns")
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def main(wanted: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        directory = Path(name)
        try:
            with host.running(directory, _settings(directory)) as supervisor:
                found = trio.run(_measure, supervisor, wanted)
        finally:
            for process in host.left(directory / "t"):
                process.kill()
    console.print(figures.table(found, f"{wanted.vms} consoles"))
    console.print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    if wanted.json:
        wanted.json.write_text(json.dumps([one.as_json() for one in found], indent=2))


def _settings(directory: Path) -> dict[str, str]:
    code, variables = directory / "code.fd", directory / "vars.fd"
    assembled = directory / "console.o"
    subprocess.run(["as", "--32", _SOURCE, "-o", assembled], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", assembled, code], check=True)
    variables.write_bytes(bytes(_FLASH_BYTES))
    disk = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    return guest.environ(
        directory / "t",
        MANAGER_CALLER_RATE="0",
        MANAGER_QEMU_OVMF_CODE_FILE=str(code),
        MANAGER_QEMU_OVMF_VARS_FILE=str(variables),
        MANAGER_QEMU_DISK_IMG_FILE=str(disk),
        MANAGER_QEMU_MEMORY_SIZE="64M",
        MANAGER_QEMU_SMP_COUNT="1",
        MANAGER_TEMPLATES="off",
        MANAGER_BOOT_TIMEOUT="1h",
        MANAGER_MAX_VMS="1000",
        MANAGER_MEMORY_OVERCOMMIT="1000",
        MANAGER_VCPU_OVERCOMMIT="1000",
    )


class _Tty:
    """One who looks at a console: a WebSocket that reads when it is told to."""

    def __init__(self, stream: trio.SocketStream, path: str) -> None:
        self._stream = stream
        self._socket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._hello = wsproto.events.Request(host="localhost", target=path)
        self._messages: list[bytes] = []
        self.is_over = False
        self.why = "cut off"

    async def open(self) -> None:
        await self._stream.send_all(self._socket.send(self._hello))
        accepted = False
        while not accepted:
            accepted = await self._receive(_PIECE)
            assert not self.is_over, "the console was refused"

    async def type(self, keys: Any) -> None:
        """:param keys: bytes for the guest, text for the supervisor"""
        await self._stream.send_all(self._socket.send(wsproto.events.Message(data=keys)))

    async def read(self, most: int = _PIECE) -> bytes:
        """What has been printed; empty at the end."""
        while not self._messages and not self.is_over:
            await self._receive(most)
        got, self._messages = b"".join(self._messages), []
        return got

    async def pieces(self, most: int) -> AsyncIterator[bytes]:
        """All that is printed."""
        while got := await self.read(most):
            yield got

    async def _receive(self, most: int) -> bool:
        """Whether the handshake was accepted."""
        data = await self._stream.receive_some(most)
        self._socket.receive_data(data or None)
        accepted = False
        for event in self._socket.events():
            if isinstance(event, wsproto.events.Ping):
                await self._stream.send_all(self._socket.send(event.response()))
            elif isinstance(event, wsproto.events.BytesMessage) and event.data:
                self._messages.append(bytes(event.data))
            elif isinstance(event, wsproto.events.CloseConnection):
                self.is_over = True
                self.why = event.reason or "cut off"
            accepted = accepted or isinstance(event, wsproto.events.AcceptConnection)
        self.is_over = self.is_over or not data
        return accepted


@asynccontextmanager
async def _tty(port: int, vm_id: str) -> AsyncIterator[_Tty]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        tty = _Tty(stream, f"/vms/{vm_id}/console")
        await tty.open()
        yield tty


class _Turn:
    """What was seen in some seconds."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []
        self.printed = 0
        self.peak = 0


async def _measure(supervisor: host.Supervisor, wanted: argparse.Namespace) -> list[figures.Figure]:
    port = supervisor.port
    vms = await _start(port, wanted.vms)
    turns: dict[bool, list[_Turn]] = {False: [], True: []}
    before = supervisor.memory()
    async with _tty(port, vms[0]) as flood:
        await _heard(flood, b"!")
        for _ in range(wanted.rounds):
            for loaded in (False, True):
                turns[loaded].append(await _turn(supervisor, flood, vms, loaded, wanted.seconds))
        await flood.type(b".")
    waits = {
        loaded: 1000 * statistics.median(figures.percentile(one.waits_s, 95) for one in some)
        for loaded, some in turns.items()
    }
    rates = {
        loaded: statistics.median(one.printed for one in some) / wanted.seconds
        for loaded, some in turns.items()
    }
    peaks = {loaded: max(one.peak for one in some) for loaded, some in turns.items()}
    return [
        figures.Figure(
            "others' wait for a key, beside slow readers",
            "times",
            waits[True] / waits[False],
            1.25,
            detail=f"p95 {waits[True]:.0f} ms, else {waits[False]:.0f} ms",
        ),
        figures.Figure(
            "what the same console's reader gets, beside slow readers",
            "times",
            rates[True] / rates[False],
            0.8,
            at_least=True,
            detail=f"{rates[True] / 1000:.0f} kB/s, else {rates[False] / 1000:.0f}",
        ),
        figures.Figure(
            "memory of slow readers",
            "MB",
            (peaks[True] - peaks[False]) / _MB,
            8,
            detail=f"{before / _MB:.0f} MB with no console open, {peaks[False] / _MB:.0f} else",
        ),
    ]


async def _start(port: int, count: int) -> list[str]:
    """VMs that run."""
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
        wish = {"Prefer": "respond-async"}
        ids = []
        for _ in range(count):
            answer = await http.post("/run", json={"computation": "e30="}, headers=wish)
            ids.append(str(answer.raise_for_status().json()["id"]))
        with trio.fail_after(_PATIENCE_S):
            for vm_id in ids:
                await _running(http, vm_id)
    return ids


async def _running(http: httpx.AsyncClient, vm_id: str) -> None:
    while True:
        vm = (await http.get(f"/vms/{vm_id}")).json()
        if vm["state"] == "running":
            return
        assert not vm["ended"], vm["error"]
        await trio.sleep(0.1)


async def _turn(
    supervisor: host.Supervisor, flood: _Tty, vms: list[str], loaded: bool, seconds: float
) -> _Turn:
    turn = _Turn()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count, flood, turn)
            nursery.start_soon(_look, supervisor, turn)
            if loaded:
                nursery.start_soon(_read_slowly, supervisor.port, vms[0])
                nursery.start_soon(_read_nothing, supervisor.port, vms[0])
            for vm_id in vms[1:]:
                nursery.start_soon(_type, supervisor.port, vm_id, turn)
    return turn


async def _count(flood: _Tty, turn: _Turn) -> None:
    while got := await flood.read():
        turn.printed += len(got)
    raise AssertionError(f"who reads all: {flood.why}")


async def _look(supervisor: host.Supervisor, turn: _Turn) -> None:
    while True:
        turn.peak = max(turn.peak, supervisor.memory())
        await trio.sleep(0.1)


async def _read_slowly(port: int, vm_id: str) -> None:
    """And come back, whenever that was too slow."""
    while True:
        async with _tty(port, vm_id) as tty:
            async for _ in tty.pieces(_SLOW_PIECE):
                await trio.sleep(1)


async def _read_nothing(port: int, vm_id: str) -> None:
    async with _tty(port, vm_id):
        await trio.sleep_forever()


async def _heard(tty: _Tty, key: bytes) -> None:
    """Type it until it is heard: the supervisor's connection to QEMU may be made meanwhile."""
    await tty.type(_WRITE)
    got = b""
    while key not in got:
        await tty.type(key)
        with trio.move_on_after(0.2):
            got = await tty.read()


async def _type(port: int, vm_id: str, turn: _Turn) -> None:
    """A key every so often, as somebody types, and wait for it."""
    async with _tty(port, vm_id) as tty:
        await _heard(tty, b"#")
        with trio.move_on_after(1):
            while True:
                await tty.read()
        while True:
            begun = trio.current_time()
            await tty.type(b"k")
            assert await tty.read(), "one who types was cut off"
            turn.waits_s.append(trio.current_time() - begun)
            await trio.sleep(0.2)
