"""The supervisor's servers without a QEMU: what callers of every kind meet."""

from __future__ import annotations

import gc
import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from supervisor import app, config
from supervisor.config import OnStop
from supervisor.qemu.cmdline import Accel
from supervisor.qemu.groups import Bounds, Groups
from supervisor.qemu.host import Clock, Host
from supervisor.qemu.scopes import Scopes
from supervisor.qemu.users import Users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def serving(directory: Path, **settings: str) -> AsyncIterator[app.Running]:
    """Servers that ask, on free ports, with a tmp/ in this directory. No VM can be started."""
    environ = {
        "MANAGER_HTTP_PORT": "0",
        "MANAGER_GRPC_PORT": "0",
        "MANAGER_TEMPLATES": "off",
        "MANAGER_QEMU_TMP_FILE_LOC": str(directory),
        **settings,
    }
    accel = Accel(kvm=False)
    most = Bounds(memory_bytes=0, cpus=0, tasks=0)
    host = Host(
        "/nonexistent/qemu", False, accel, Users(), Groups(None, most), Scopes(None, most), Clock()
    )
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        serve: Any = partial(app.serve_on, host, config.load(environ))
        running: app.Running = await nursery.start(serve)
        try:
            yield running
        finally:
            running.stop(OnStop.END)
    assert trio.lowlevel.current_statistics().tasks_living == tasks, "tasks are left"
    assert not [name for name in os.listdir(directory) if name.endswith(".sock")]
    del running
    # See tests/fake/conftest.py: grpc.aio's poller serves one loop at a time.
    gc.collect()
