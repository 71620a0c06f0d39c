"""``GET /vms/<id>/logs`` and the command ``logs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.fake.test_cli import cli
from tests.support.tenants import ALICE, BOB, Asking
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.support.world import World


async def test_what_a_guest_printed(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        vm.dir.serial_log.with_name("serial.log.1").write_bytes(b"one\n")
        vm.dir.serial_log.write_bytes(b"two\nthree \xff\x1b[2J")
        vm.dir.qemu_log.write_bytes(b"qemu: warning\n")
        for query, content in {
            "": b"one\ntwo\nthree \xff\x1b[2J",
            "?tail=2": b"two\nthree \xff\x1b[2J",
            "?tail=0": b"",
            "?tail=9": b"one\ntwo\nthree \xff\x1b[2J",
            "?source=qemu": b"qemu: warning\n",
            "?source=algorithm": b"",
            "?since=1h": b"one\ntwo\nthree \xff\x1b[2J",
            "?since=2026-01-31T13:05:00%2B01:00&tail=1": b"three \xff\x1b[2J",
            "?since=2999-01-01T00:00:00Z": b"",
        }.items():
            answer = await supervisor.http.get(f"/vms/{vm.id}/logs{query}")
            assert (answer.status_code, answer.content) == (200, content), query
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        told = await cli(supervisor)("logs", "--tail", "1", vm.id[:8])
        assert told.stdout == b"three \xff\x1b[2J"
        told = await cli(supervisor)("logs", "--qemu", "--since", "1h", vm.id[:8])
        assert told.stdout == b"qemu: warning\n"


@pytest.mark.parametrize(
    "query", ["source=disk", "tail=-1", "follow=yes", "since=then", "since=2026-01-31T13:05"]
)
async def test_queries_that_are_none(world: World, query: str) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        assert (await supervisor.http.get(f"/vms/{vm_id}/logs?{query}")).status_code == 400


async def test_following(world: World) -> None:
    """Through a cut, to the VM's end."""
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        vm.dir.serial_log.write_bytes(b"first\n")
        got = b""
        path = f"/vms/{vm.id}/logs?follow=1"
        with trio.fail_after(PATIENCE_S):
            async with supervisor.http.stream("GET", path) as answer:
                pieces = answer.aiter_bytes()
                got += await anext(pieces)
                with vm.dir.serial_log.open("ab") as log:
                    log.write(b"second, which is longer\n")
                got += await anext(pieces)
                vm.dir.serial_log.write_bytes(b"after a cut\n")
                got += await anext(pieces)
                await supervisor.http.post(f"/vms/{vm.id}/shutdown", json={"mode": "force"})
                async for piece in pieces:
                    got += piece
        assert got == b"first\nsecond, which is longer\nafter a cut\n"


async def test_logs_of_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = (await supervisor.run())["id"]
        with asking(BOB):
            assert (await supervisor.http.get(f"/vms/{vm_id}/logs")).status_code == 404
