"""The serial console over a WebSocket: readers, the writer, and who may be one."""

from __future__ import annotations

import json
import os
import pty
import select
import termios
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx_ws
import pytest
import trio
import wsproto.events
import wsproto.utilities

from supervisor.caller import Caller, KnownBy, Role
from supervisor.config import OnStop
from supervisor.errors import MonitorError
from supervisor.qemu.qmp import Monitor
from supervisor.vm import console_readers
from supervisor.vm.console import reading
from tests.fake.test_cli import cli
from tests.fake.test_control import events_of
from tests.support.tenants import ALICE, BOB, Asking
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.guest import Apart
    from tests.support.world import Supervisor, World

DASHBOARD = Caller("dash", Role.READ, KnownBy.TOKEN)
WRITE = '{"write": true}'


@asynccontextmanager
async def opened(supervisor: Supervisor | Apart, vm_id: str, **how: Any) -> AsyncIterator[Tty]:
    path = f"/vms/{vm_id}/console"
    socket: httpx_ws.AsyncWebSocketSession
    try:
        async with httpx_ws.aconnect_ws(path, supervisor.http, **how) as socket:
            yield Tty(socket)
    except* wsproto.utilities.LocalProtocolError:
        pass  # this client answers a ping that comes while it closes


class Tty:
    """A console, as one reader has it."""

    def __init__(self, socket: httpx_ws.AsyncWebSocketSession) -> None:
        self.socket = socket
        self.printed = b""
        self.states: list[dict[str, Any]] = []

    async def until(self, text: bytes) -> None:
        """Return when the guest has printed this."""
        with trio.fail_after(PATIENCE_S):
            while text not in self.printed:
                await self._next()

    async def until_state(self, **wanted: Any) -> None:
        with trio.fail_after(PATIENCE_S):
            while not self.states or self.states[-1] != wanted:
                await self._next()

    async def _next(self) -> None:
        message = await self.socket.receive()
        if isinstance(message, wsproto.events.TextMessage):
            self.states.append(json.loads(message.data))
        elif isinstance(message, wsproto.events.BytesMessage):
            self.printed += message.data

    async def until_closed(self) -> tuple[int, str]:
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    await self._next()
                except httpx_ws.WebSocketDisconnect as closed:
                    return closed.code, closed.reason or ""


async def connected(supervisor: Supervisor | Apart, tty: Tty, text: bytes) -> None:
    """Type until it is printed: QEMU is told to listen a moment after the console is opened."""
    await tty.socket.send_text(WRITE)
    with trio.fail_after(PATIENCE_S):
        while text not in tty.printed:
            await tty.socket.send_bytes(text)
            with trio.move_on_after(0.1):
                await tty.until(text)


async def test_typing(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        vm.dir.serial_log.write_bytes(b"booted\r\n")
        async with opened(supervisor, vm.id) as tty:
            await tty.until(b"booted\r\n")  # what was printed before
            await tty.until_state(writer=None, you=False)
            await connected(supervisor, tty, b"hello\r")
            async with opened(supervisor, vm.id) as second:
                await second.until(b"booted\r\n")
                await tty.socket.send_bytes(b"both\r")
                await second.until(b"both\r")
                await tty.until(b"both\r")
        # What is printed is in the log as well.
        assert b"both\r" in (await supervisor.http.get(f"/vms/{vm.id}/logs")).content
    assert {"by": ""}.items() <= next(
        one for one in events_of(world, vm.id) if one["event"] == "console"
    ).items()


async def test_one_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = (await supervisor.run())["id"]
            async with opened(supervisor, vm_id) as first, opened(supervisor, vm_id) as second:
                await connected(supervisor, first, b"one")
                await first.until_state(writer="alice", you=True)
                await second.until_state(writer="alice", you=False)
                await second.socket.send_bytes(b"unheard")
                await second.socket.send_text(WRITE)
                await first.until_state(writer="alice", you=False)
                await first.socket.send_bytes(b"unheard")
                await second.socket.send_bytes(b"two")
                await second.until(b"two")
                assert b"unheard" not in second.printed + first.printed
            async with opened(supervisor, vm_id) as third:
                await third.until_state(writer=None, you=False)
        audited = [
            json.loads(line) for line in (world.tmp / "audit.jsonl").read_text().splitlines()
        ]
        assert ["console" in line["what"] for line in audited].count(True) == 2


@pytest.mark.parametrize("caller", [BOB, DASHBOARD], ids=["another party", "a dashboard"])
async def test_who_may_not(world: World, monkeypatch: pytest.MonkeyPatch, caller: Caller) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = (await supervisor.run())["id"]
        with asking(caller), pytest.raises(httpx_ws.WebSocketUpgradeError) as refused:
            async with opened(supervisor, vm_id):
                pass
        wanted = 404 if caller is BOB else 403
        assert refused.value.response.status_code == wanted
        with asking(caller):
            told = await cli(supervisor)("console", "--read-only", vm_id, check=False)
            assert (told.returncode, b"Traceback" in told.stderr) == (1, False), told.stderr
            why = b"no VM has the id" if caller is BOB else b"lacks the right 'use'"
            assert why in told.stderr, told.stderr
        assert not (world.tmp / vm_id / "tty.sock").exists()


async def test_what_is_too_long_to_be_typed(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        async with opened(supervisor, vm_id) as tty:
            await tty.socket.send_bytes(bytes(100_000))
            code, _ = await tty.until_closed()
            assert code == 1009


async def test_end_of_a_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        async with opened(supervisor, vm_id) as tty:
            await connected(supervisor, tty, b"x")
            await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
            assert await tty.until_closed() == (1000, "the VM has ended")
        assert not (world.tmp / vm_id / "tty.sock").exists()
        with pytest.raises(httpx_ws.WebSocketUpgradeError) as refused:
            async with opened(supervisor, vm_id):
                pass
        assert refused.value.response.status_code == 409


async def test_a_qemu_that_has_just_gone_leaves_no_socket(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VM's other files may be removed by then."""
    told = trio.Event()

    async def gone(*_: object) -> None:
        told.set()
        raise MonitorError("QEMU is gone")

    monkeypatch.setattr(Monitor, "serve_serial", gone)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        async with opened(supervisor, vm.id):
            with trio.fail_after(PATIENCE_S):
                await told.wait()
            assert not vm.dir.console_socket.exists()


async def test_next_supervisor(world: World) -> None:
    """QEMU goes on to listen."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        async with opened(supervisor, vm_id) as tty:
            await connected(supervisor, tty, b"before")
        supervisor.running.stop(OnStop.LEAVE)
    async with world.serve() as supervisor, opened(supervisor, vm_id) as tty:
        await tty.until(b"before")
        await connected(supervisor, tty, b"after")


async def test_reader_who_does_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """He is cut off, and nobody waits for him."""
    monkeypatch.setattr(console_readers, "BEHIND", 20_000)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        async with opened(supervisor, vm.id) as tty:
            await connected(supervisor, tty, b"x")
            with reading(vm, "slow") as slow:
                for _ in range(40):
                    await tty.socket.send_bytes(b"y" * 1000)
                    await tty.until(b"y" * 1000)
                    tty.printed = b""
                assert slow.lagged
                assert await slow.take() == b""


async def test_nobody_looks_any_more(world: World) -> None:
    async with world.serve() as supervisor:
        world.hasten(console_look_s=0.01)
        vm = supervisor.vm((await supervisor.run())["id"])
        async with opened(supervisor, vm.id) as tty:
            await connected(supervisor, tty, b"x")
        with trio.fail_after(PATIENCE_S):
            await vm.until(lambda: vm.console.writer is None)


def _typed(tty: int, text: bytes, until: bytes) -> bytes:
    """Type this again and again until that is printed; all that was printed. Blocking."""
    printed = b""
    while until not in printed:
        os.write(tty, text)
        while select.select([tty], [], [], 0.2)[0]:
            printed += os.read(tty, 4096)
    return printed


async def test_a_terminal(world: World) -> None:
    """Ctrl-C goes to the guest, Ctrl-] ends the command, and the terminal is as it was."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        ours, theirs = pty.openpty()
        before = termios.tcgetattr(theirs)
        try:
            process = await trio.lowlevel.open_process(
                **cli(supervisor).command("console", vm_id[:8]), stdin=theirs, stdout=theirs
            )
            with trio.fail_after(PATIENCE_S):
                printed = await in_thread(partial(_typed, ours, b"hello\x03", b"hello\x03"))
                assert b"hello\x03" in printed
                os.write(ours, b"\x1d")
                assert await process.wait() == 0
            assert termios.tcgetattr(theirs) == before
        finally:
            os.close(ours)
            os.close(theirs)
        assert (await supervisor.http.get(f"/vms/{vm_id}/logs")).content.startswith(b"hello\x03")


async def test_no_terminal(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        done = await cli(supervisor)("console", vm_id, check=False)
        assert (done.returncode, b"is no terminal" in done.stderr) == (2, True)
