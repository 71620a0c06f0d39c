"""Descriptors that are passed to a real QEMU at the same time: each arrives where it belongs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from supervisor import bridge
from supervisor.config.timing import Timing
from supervisor.qemu import qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE_S = 60.0
PORT = "org.example.port"


@pytest.fixture
async def monitor(short_tmp: Path) -> AsyncIterator[qmp.Monitor]:
    """Of a machine that does not run."""
    command = [
        *("qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-m", "16M"),
        *("-chardev", f"file,id=serial,path={short_tmp}/serial.log", "-serial", "chardev:serial"),
        *("-device", "virtio-serial-pci", "-qmp", f"unix:{short_tmp}/qmp,server=on,wait=off"),
        *("-daemonize", "-pidfile", f"{short_tmp}/pid"),
    ]
    await trio.run_process(command)  # it listens from now on
    connecting = qmp.connect("vm", short_tmp / "qmp", PATIENCE_S, PATIENCE_S, Timing())
    async with bridge.open_loop(), connecting as opened:
        try:
            yield opened
        finally:
            await opened.execute("quit")


async def test_console_and_port_at_once(monitor: qmp.Monitor, short_tmp: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_tmp / "console"))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(monitor.add_port, PORT, theirs)
            nursery.start_soon(monitor.serve_serial, listener, short_tmp / "serial.log")
        answer = await monitor.execute("query-chardev")
        names = {one["label"]: one["filename"] for one in answer}
    assert f"{short_tmp}/console" in names["serial"]
    assert "console" not in names[PORT]
