"""What systemd is told, over the socket that it gives a service; and the unit."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support import pages
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

UNIT = pages.ROOT / "supervisor/share/systemd/qmp-supervisor.service"


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
def test_unit(tmp_path: Path) -> None:
    """As systemd reads it, but for what is not installed here."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/qmp-supervisor/.venv/bin/qmp-supervisor", "/bin/true")
    unit.write_text(text.replace("User=qmp-supervisor", "User=root"))
    words = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    # Of another unit of this machine's there may be something to say.
    about = [line for line in done.stderr.splitlines() if unit.name in line]
    # Known from version 254 on.
    assert not [line for line in about if "DelegateSubgroup" not in line]
