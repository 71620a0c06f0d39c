"""What callers hear when a VM or its agent fails, and what is kept for the post-mortem."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.support.world import Supervisor, World


async def failed_run(supervisor: Supervisor, status: int) -> dict[str, Any]:
    """A run that must fail with this status; its problem document."""
    return problem(await supervisor.post(b"x"), status)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= document.keys()
    assert "Traceback" not in document["detail"]
    return document


# --- the agent ------------------------------------------------------------------------------


async def test_agent_that_never_comes_up(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_BOOT_TIMEOUT="200ms") as supervisor:
        document = await failed_run(supervisor, 504)
        assert "MANAGER_BOOT_TIMEOUT" in document["detail"]
        vm = supervisor.only_vm()
        assert vm.ended
        assert vm.dir.path.is_dir()
        assert str(vm.dir.serial_log) in document["detail"]
        assert vm.record.error == document["detail"]
        assert world.free_again()


async def test_agent_that_never_answers(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve(MANAGER_AGENT_GRPC_TIMEOUT="100ms") as supervisor:
        document = await failed_run(supervisor, 504)
        assert "MANAGER_AGENT_GRPC_TIMEOUT" in document["detail"]
        assert supervisor.only_vm().ended


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("INTERNAL", "the disk is full"),
        ("FAILED_PRECONDITION", "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"),
        ("UNAVAILABLE", "not now"),
    ],
)
async def test_agent_that_answers_with_an_error(world: World, code: str, text: str) -> None:
    world.scenario(agent="status", status=[code, text])
    async with world.serve() as supervisor:
        document = await failed_run(supervisor, 502)
        vm = supervisor.only_vm()
        assert document["agent_code"] == code
        assert document["agent_message"] == text
        assert document["vm"] == vm.id
        assert text in document["detail"]
        assert vm.ended
        assert vm.dir.path.is_dir()


async def test_reference_agent_refuses_what_is_no_computation(world: World) -> None:
    world.scenario(agent="reference")
    async with world.serve() as supervisor:
        document = await failed_run(supervisor, 502)
        assert document["agent_code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("moment", ["cont", "Run"], ids=["while it boots", "during the relay"])
async def test_qemu_that_is_killed(world: World, moment: str) -> None:
    world.scenario(agent="none" if moment == "cont" else "silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        documents = []

        async def caller() -> None:
            documents.append(await failed_run(supervisor, 502))
            vm = supervisor.only_vm()
            assert documents[0]["vm"] == vm.id
            assert vm.id in documents[0]["detail"]
            assert "exit:-9" in documents[0]["detail"]
            assert vm.status == Status(VmState.CRASHED, "exit:-9")
            assert vm.record.exit_code == -9

        nursery.start_soon(caller)
        guest = await world.guest()
        await guest.until(moment)
        if moment == "cont":
            await supervisor.wait_state(guest.vm_id, "running")
        os.kill(guest.pid, signal.SIGKILL)


async def test_guest_that_powers_off_before_it_answers(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor, trio.open_nursery() as nursery:
        nursery.start_soon(failed_run, supervisor, 502)
        guest = await world.guest()
        await guest.until("Run")
        await guest.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
        await guest.exit(0)
        vm = supervisor.vm(guest.vm_id)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


# --- the launch -----------------------------------------------------------------------------


async def test_qemu_that_exits_at_once(world: World) -> None:
    world.scenario(says="one\ntwo\nqemu: -cpu what: no such CPU\n", exits=1)
    async with world.serve() as supervisor:
        document = await failed_run(supervisor, 500)
        assert document["title"] == "Launch error"
        assert "exit code 1" in document["detail"]
        assert document["detail"].endswith("one\ntwo\nqemu: -cpu what: no such CPU")
        vm = supervisor.only_vm()
        assert vm.status == Status(VmState.CRASHED, "exit:1")
        assert vm.record.error == document["detail"]
        assert vm.dir.qemu_log.read_text().startswith("one\n")


async def test_qemu_that_exits_before_its_greeting(world: World) -> None:
    world.scenario(greeting="exit", says="sorry\n")
    async with world.serve() as supervisor:
        document = await failed_run(supervisor, 500)
        assert "exit code 7" in document["detail"]
        assert "sorry" in document["detail"]


async def test_qemu_that_never_greets(world: World) -> None:
    world.scenario(greeting="nothing")
    async with world.serve(MANAGER_START_TIMEOUT="300ms") as supervisor:
        document = await failed_run(supervisor, 500)
        vm = supervisor.only_vm()
        assert vm.ended
        assert vm.id in document["detail"]
        assert "MANAGER_START_TIMEOUT" in document["detail"]


async def test_qemu_that_refuses_to_run_the_guest(world: World) -> None:
    world.scenario(refuses={"cont": ["GenericError", "Resetting the Virtual Machine is required"]})
    async with world.serve() as supervisor:
        document = await failed_run(supervisor, 500)
        assert "Resetting the Virtual Machine is required" in document["detail"]
        assert supervisor.only_vm().ended


async def test_qemu_without_query_sev_is_simply_not_confidential(world: World) -> None:
    world.scenario(refuses={"query-sev": ["CommandNotFound", "no such command"]})
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["query_sev"] == {"enabled": False}


async def test_failed_launch_of_an_asynchronous_run_is_on_record(world: World) -> None:
    world.scenario(says="no\n", exits=2)
    async with world.serve() as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        await vm.wait_ended()
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert (shown["state"], shown["reason"], shown["exit_code"]) == ("crashed", "exit:2", 2)
        assert shown["error"].endswith("no")
        # And the supervisor lives.
        world.scenario()
        await supervisor.run()


async def test_binary_that_is_gone(world: World) -> None:
    async with world.serve() as supervisor:
        world.qemu.unlink()
        document = await failed_run(supervisor, 500)
        assert str(world.qemu) in document["detail"]
        assert "MANAGER_QEMU_BIN_PATH" in document["advice"]


async def test_image_that_is_missing(world: World) -> None:
    async with world.serve(MANAGER_QEMU_DISK_IMG_FILE="/nowhere/base.qcow2") as supervisor:
        document = await failed_run(supervisor, 500)
        assert "/nowhere/base.qcow2" in document["detail"]
        assert document["title"] == "Image error"
        vm = supervisor.only_vm()
        assert vm.status.state is VmState.CRASHED
        assert vm.record.error == document["detail"]
        assert vm.record.process is None


async def test_directory_that_cannot_be_made(world: World) -> None:
    async with world.serve() as supervisor:
        shutil.rmtree(world.tmp)
        world.tmp.write_text("a file")
        document = await failed_run(supervisor, 500)
        assert str(world.tmp) in document["detail"]
        assert "Not a directory" in document["detail"]
        assert not supervisor.running.service.vms
        world.tmp.unlink()


# --- a full host ----------------------------------------------------------------------------


@contextmanager
def small_file_system(place: Path, **limits: str) -> Iterator[None]:
    """A tmpfs with limits as in tmpfs(5)."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full file system takes root, to mount a small one")
    options = ",".join(f"{name}={value}" for name, value in (limits | {"mode": "0700"}).items())
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def fill_all_but(place: Path, inodes: int) -> None:
    """Leave so many inodes."""
    for number in range(os.statvfs(place).f_favail - inodes):
        (place / f"filler-{number}").touch()


def fill_all_but_pages(place: Path, pages: int) -> None:
    stat = os.statvfs(place)
    (place / "filler").write_bytes(bytes((stat.f_bavail - pages) * stat.f_frsize))


@pytest.mark.parametrize(
    ("limits", "fill", "lefts", "words"),
    [
        ({"nr_inodes": "60"}, fill_all_but, range(10), "no inodes are left"),
        ({"size": "4m"}, fill_all_but_pages, range(0, 60, 7), "the file system is full"),
    ],
    ids=["inodes", "room"],
)
async def test_full_file_system_is_named(
    world: World,
    limits: dict[str, str],
    fill: Callable[[Path, int], None],
    lefts: range,
    words: str,
) -> None:
    """At whatever file a VM comes to meet it."""
    refused = 0
    with small_file_system(world.tmp, **limits):
        async with world.serve(MANAGER_KEEP_ENDED="0") as supervisor:
            for left in lefts:
                fill(world.tmp, left)
                answer = await supervisor.post(b"x")
                for file in world.tmp.glob("filler*"):
                    file.unlink()
                for vm in supervisor.running.service.vms:
                    await supervisor.http.delete(f"/vms/{vm.id}")
                if answer.status_code != 200:
                    refused += 1
                    document = problem(answer, 500)
                    assert words in document["detail"]
                    assert str(world.tmp) in document["detail"]
                    assert "MANAGER_QEMU_TMP_FILE_LOC" in document["detail"]
                    assert "base image" not in document["detail"]
    assert refused > 3
