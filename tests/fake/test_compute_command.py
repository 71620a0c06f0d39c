"""The commands ``compute``, ``send`` and ``result``, with the reference agent."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.fake.test_cli import cli
from tests.fake.test_results import COUNT, HANG
from tests.support.world import PATIENCE_S, in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World


@pytest.fixture
def place(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with algorithms and data."""
    world.scenario(agent="reference")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "count.py").write_bytes(COUNT + b"\nprint('counted')")
    (tmp_path / "fails.py").write_bytes(b"raise SystemExit('no such column')")
    (tmp_path / "hangs.py").write_bytes(HANG)
    (tmp_path / "data").write_bytes(b"x" * 3_000_000)
    return tmp_path


NEW = ("compute", "--algorithm", "count.py", "--data", "data")


async def test_a_new_vm(world: World, place: Path) -> None:
    async with world.serve() as supervisor:
        done = await cli(supervisor)(*NEW)
        assert done.stdout == b"3000000"
        told = done.stderr.decode()
        assert "stdout of the algorithm:\ncounted" in told
        assert "computed over 1 data set in" in told
        vm = supervisor.only_vm()
        assert vm.ended
        await cli(supervisor)("result", vm.id, "-o", "again")
        assert (place / "again").read_bytes() == b"3000000"
        kept = await cli(supervisor)(*NEW, "--keep", "-o", "again")
        assert b"runs on; end it with" in kept.stderr


async def test_a_vm_that_is_there(world: World, place: Path) -> None:
    async with world.serve() as supervisor:
        vm_id, command = (await supervisor.run())["id"], cli(supervisor)
        await command("send", vm_id, "--algorithm", "count.py")
        sent = await command.json("send", vm_id, "--data", "count.py", "--number", "1")
        assert [one["part"] for one in sent["sent"]] == ["data/1"]
        outcome = await command.json("compute", "--vm", vm_id, "--data", "data", "-o", "out")
        assert (outcome["state"], len(outcome["data_sha256"])) == ("succeeded", 1)
        assert (place / "out").read_bytes() == b"3000000"
        failed = await command(
            "compute", "--vm", vm_id, "--algorithm", "fails.py", "-o", "out", check=False
        )
        assert failed.returncode == 1
        assert b"no such column" in failed.stderr
        assert (place / "out").read_bytes() == b"3000000"
        assert not supervisor.vm(vm_id).ended


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((*NEW, "--time-limit", "soon"), "--time-limit"),
        ((*NEW, "--memory-limit", "64MB"), "--memory-limit"),
        ((*NEW, "-o", "/no/such/dir/x"), "/no/such/dir is no directory"),
        (("compute", "--data", "data"), "needs --algorithm and --data"),
        ((*NEW, "--json"), "--json needs --output"),
        ((*NEW, "--vm", "x", "--keep"), "are for a new VM"),
    ],
)
async def test_mistakes_are_told_before_a_vm_is_started(
    world: World, place: Path, words: tuple[str, ...], problem: str
) -> None:
    async with world.serve() as supervisor:
        done = await cli(supervisor)(*words, check=False)
        assert (done.returncode, problem in done.stderr.decode()) == (2, True), done.stderr
        assert not len(supervisor.running.service.vms)


@pytest.mark.parametrize("new", [True, False])
async def test_interrupted(world: World, place: Path, new: bool) -> None:
    """A new VM ends, another one runs on."""
    os.mkfifo("runs")
    (place / "where").write_text(str(place / "runs"))
    async with world.serve() as supervisor:
        there = () if new else ("--vm", (await supervisor.run())["id"])
        words = ("compute", "--algorithm", "hangs.py", "--data", "where", *there)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(trio.run_process, **cli(supervisor).command(*words), check=False)
            )
            with trio.fail_after(PATIENCE_S):
                await in_thread((place / "runs").read_bytes)
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 128 + signal.SIGINT
        vm = supervisor.only_vm()
        if new:
            await vm.wait_ended()
        await vm.until(lambda: vm.record.computed == "interrupted")
        assert vm.ended is new


async def test_places_of_results(world: World, place: Path) -> None:
    """What is no file is written to and not replaced; a link stays one, a mode stays the same."""
    async with world.serve() as supervisor:
        command = cli(supervisor)
        await command(*NEW)
        vm_id = supervisor.only_vm().id
        (place / "real").write_text("before")
        (place / "real").chmod(0o640)
        (place / "link").symlink_to("real")
        await command("result", vm_id, "-o", "link")
        assert (place / "link").is_symlink()
        assert ((place / "real").read_bytes(), (place / "real").stat().st_mode & 0o777) == (
            b"3000000",
            0o640,
        )
        await command("result", vm_id, "-o", "/dev/null")
        assert (place / "/dev/null").is_char_device()
        assert not [name for name in os.listdir(place) if name.startswith(".")]
