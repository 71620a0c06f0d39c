"""What algorithms print, told while they run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.agent import computing
from supervisor.agent.computing import Printed
from supervisor.vm import printed
from tests.fake.test_results import HANG, compute, put, started, world
from tests.support.agent_process import WRITE
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

__all__ = ["world"]


async def test_what_it_prints_while_it_runs(world: World, tmp_path: Path) -> None:
    """Of each algorithm once. A reader is told until the VM's end."""
    world.hasten(printed_look_s=0.01)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, b"print('one')" + WRITE % b"b'x'", b"x")
        await compute(supervisor, vm_id)
        algorithm = b"import sys\nprint('two', flush=True)\n" + HANG
        await put(supervisor.http, f"/vms/{vm_id}/algorithm", algorithm)
        await put(supervisor.http, f"/vms/{vm_id}/data/0", str(fifo).encode())
        path = f"/vms/{vm_id}/logs?source=algorithm"
        got = b""
        with trio.fail_after(PATIENCE_S):
            async with (
                trio.open_nursery() as nursery,
                supervisor.http.stream("GET", f"{path}&follow=1") as answer,
            ):
                nursery.start_soon(supervisor.http.post, f"/vms/{vm_id}/compute")
                await trio.to_thread.run_sync(fifo.read_bytes)
                async for piece in answer.aiter_bytes():
                    got += piece
                    if got == b"one\ntwo\n":
                        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert got == b"one\ntwo\n"
        assert (await supervisor.http.get(path)).content == got
        assert (await supervisor.http.get(f"{path}&since=1h&tail=1")).content == b"two\n"


@pytest.mark.parametrize("position", [4, 70_000, 2**64 - 1])
async def test_what_is_not_told_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm(await started(supervisor, WRITE % b"b'x'", b"x"))
        told = iter([Printed(), Printed(1, position, b"data")])

        async def say(*_: object) -> Printed:
            return next(told)

        monkeypatch.setattr(computing, "printed", say)
        agent: Any = None
        async with printed.kept(vm, agent):
            pass
        log = vm.dir.results.printed.read_bytes()
    assert log == (
        b"data" if position == 4 else b"\n[%d bytes are left out]\ndata" % (position - 4)
    )
