"""What systemd is told, over the socket that it gives a service; and the unit."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import dotenv
import pytest
import trio

from supervisor import config
from supervisor.config import Auth
from tests.support import pages
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

UNITS = pages.ROOT / "supervisor/share/systemd"


async def test_what_it_is_told(
    world: World, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = short_tmp / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(PATIENCE_S)

        async def until(wanted: bytes) -> list[bytes]:
            found = [await in_thread(lambda: systemd.recv(1024))]
            while wanted not in found[-1]:
                found.append(await in_thread(lambda: systemd.recv(1024)))
            return found

        async with world.serve() as supervisor:
            assert (await until(b"READY=1"))[0] == b"READY=1\n"
            await until(b"STATUS=VMs: none")
            await supervisor.run()
            told = await until(b"STATUS=VMs: 1 running")
            assert b"WATCHDOG=1\n" in told
            with trio.fail_after(PATIENCE_S):
                await until(b"WATCHDOG=1")
                await until(b"WATCHDOG=1")
    path.unlink()


async def test_nobody_has_started_it(world: World) -> None:
    async with world.serve() as supervisor:
        await supervisor.run()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_units(tmp_path: Path) -> None:
    """As systemd reads them, but for what is not installed here."""
    units = [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]
    assert len(units) == 4
    for unit in units:
        text = unit.read_text().replace("/opt/qmp-supervisor/.venv/bin/qmp-supervisor", "/bin/true")
        text = text.replace("User=qmp-supervisor", "User=root")
        (tmp_path / unit.name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / one.name) for one in units)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    # Of other units of this machine's there may be something to say.
    names = [unit.name for unit in units]
    assert not [line for line in done.stderr.splitlines() if any(name in line for name in names)]


def test_settings_for_it() -> None:
    """Those that come with the unit are settings, and what it may write is where they say."""
    settings = config.load(
        {k: v or "" for k, v in dotenv.dotenv_values(UNITS / "supervisor.env").items()}
    )
    assert settings.auth is Auth.ON
    socket_unit = (UNITS / "qmp-supervisor-scopes.socket").read_text()
    assert f"ListenSequentialPacket={settings.qemu.scopes}\n" in socket_unit
    assert settings.qemu.tmp.name in (UNITS / "qmp-supervisor.service").read_text()


async def test_scopes_that_nobody_makes(
    world: World, short_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VM runs all the same, and the log says why it has none."""
    path = short_tmp / "scopes"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE_S)

        def keep() -> None:
            client, _ = listener.accept()
            with client:
                packet, descriptors, _, _ = socket.recv_fds(client, 4096, 4)
                asked.append(json.loads(packet))
                for descriptor in descriptors:
                    os.close(descriptor)
                client.send(b'{"problem": "systemd is on holiday"}')

        asked: list[dict[str, Any]] = []
        async with (
            world.serve(MANAGER_SCOPES=str(path)) as supervisor,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(in_thread, keep)
            vm = await supervisor.run()
        assert asked[0]["vm"] == vm["id"]
        assert asked[0]["memory_bytes"] > 0
    assert "systemd is on holiday" in capsys.readouterr().out
