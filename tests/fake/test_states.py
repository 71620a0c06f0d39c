"""A VM's state as QEMU's events move it, and what QEMU says of itself when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from supervisor.pb import vm_pb2
from supervisor.state.status import Status, VmState

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.mark.parametrize(
    ("runstate", "status"),
    [
        ("paused", Status(VmState.PAUSED, "paused")),
        ("io-error", Status(VmState.PAUSED, "io-error")),
        ("watchdog", Status(VmState.PAUSED, "watchdog")),
        ("daydreaming", Status(VmState.PAUSED, "daydreaming")),
    ],
)
async def test_stopped_guest_says_why(world: World, runstate: str, status: Status) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("set-status", status=runstate)
        await guest.emit("STOP")
        await supervisor.wait_state(vm.id, "paused")
        assert vm.status == status
        await guest.order("set-status", status="running")
        await guest.emit("RESUME")
        await supervisor.wait_state(vm.id, "running")
        assert vm.status == Status(VmState.RUNNING, "running")


async def test_suspended_guest_wakes_up(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("set-status", status="suspended")
        await guest.emit("SUSPEND")
        await supervisor.wait_state(vm.id, "paused")
        assert vm.status.reason == "suspended"
        await guest.emit("WAKEUP")
        await supervisor.wait_state(vm.id, "running")


@pytest.mark.parametrize(
    ("runstate", "event", "reason"),
    [
        ("internal-error", "STOP", "internal-error"),
        ("guest-panicked", "GUEST_PANICKED", "guest-panicked"),
    ],
)
async def test_guest_that_is_lost_is_killed(
    world: World, runstate: str, event: str, reason: str
) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.order("set-status", status=runstate)
        await guest.emit(event)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, reason)
        assert vm.record.exit_code == -9
        assert reason in (vm.record.error or "")
        assert world.free_again()


async def test_panic_during_the_relay_is_the_callers_answer(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await guest.until("Run")
        await guest.emit("GUEST_PANICKED", action="pause")
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "guest-panicked")


@pytest.mark.parametrize("reason", ["guest-shutdown", "guest-reset", "host-signal"])
async def test_cause_of_a_shutdown_is_kept(world: World, reason: str) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.emit("SHUTDOWN", guest=True, reason=reason)
        await guest.exit(0)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, reason)
        assert vm.record.error is None


@pytest.mark.parametrize("code", [0, 1, -6])
async def test_exit_that_nobody_announced(world: World, code: int) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.exit(code)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, f"exit:{code}")
        assert vm.record.exit_code == code
        assert f"exit:{code}" in (vm.record.error or "")


async def test_bad_end_of_a_shutdown(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
        await guest.exit(1)
        await vm.wait_ended()
        assert vm.status == Status(VmState.CRASHED, "exit:1")


#: What a guest makes of QEMU's words that has taken it over: a terminal's title, lines of a log.
EVIL = "\x1b]0;owned\x07\nlevel=error forged " + "x" * 10_000


async def test_words_of_a_qemu_that_was_taken_over(world: World) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.emit("WATCHDOG", action=EVIL)
        await guest.emit("BLOCK_IO_ERROR", operation=EVIL, action=[], nospace={}, reason=EVIL)
        await guest.order("set-status", status=EVIL)
        await guest.emit("STOP")
        await supervisor.wait_state(vm.id, "paused")
        assert vm.status.reason.startswith("level=error forged")
        told = vm.dir.events.read_text()
        assert "level=error forged" in told
        assert "owned" not in told
        assert max(map(len, told.splitlines())) < 500
        await guest.emit("SHUTDOWN", guest=True, reason={"a": ["b"]})
        await supervisor.wait_state(vm.id, "shutdown")
        assert vm.status.reason == "shutdown"
        listed = await supervisor.call(supervisor.vm_service.List, vm_pb2.ListRequest())
        assert [one.reason for one in listed.vms] == ["shutdown"]


async def test_refusal_by_a_qemu_that_was_taken_over(world: World) -> None:
    world.scenario(refuses={"set-action": (EVIL, EVIL)})
    async with world.serve() as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        await vm.wait_ended()
        error = vm.record.error or ""
        assert "level=error forged" in error
        assert error.isprintable()
        assert len(error) < 1000


@pytest.mark.parametrize("event", ["NIC_RX_FILTER_CHANGED", "WAKEUP", "RESUME", "SOMETHING_NEW"])
async def test_event_that_means_nothing_now(world: World, event: str) -> None:
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await guest.emit(event)
        # Events are heard in order, so the second tells that the first was.
        await guest.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
        await supervisor.wait_state(vm.id, "shutdown")
        assert (await supervisor.http.get(f"/vms/{vm.id}")).json()["error"] is None


async def test_status_is_what_qemu_said_at_its_last_event_unless_asked_anew(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        old = (await supervisor.http.get(f"/vms/{vm_id}/status")).json()
        assert old["query_status"] == {"status": "running", "running": True}
        assert old["query_sev"] == {"enabled": False}
        assert old["agent"]["ready"]
        assert old["uptime_s"] >= 0
        new = (await supervisor.http.get(f"/vms/{vm_id}/status?live=1")).json()
        assert new["query_status"] == {"status": "running", "running": True}
        assert new["asked_at"] > old["asked_at"]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (
            {
                "enabled": True,
                "api-major": 1,
                "api-minor": 55,
                "build-id": 21,
                "policy": 1,
                "state": "running",
                "handle": 4,
            },
            {
                "enabled": True,
                "state": "running",
                "sev_type": "sev",
                "api_major": 1,
                "api_minor": 55,
                "build_id": 21,
                "policy": 1,
                "handle": 4,
            },
        ),
        (
            {"enabled": True, "sev-type": "sev-snp", "snp-policy": 196608, "state": "running"},
            {"enabled": True, "state": "running", "sev_type": "sev-snp", "policy": 196608},
        ),
    ],
    ids=["sev", "sev-snp"],
)
async def test_sev_facts(world: World, answer: dict[str, Any], shown: dict[str, Any]) -> None:
    world.scenario(sev=answer)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        status = (await supervisor.http.get(f"/vms/{vm_id}/status?live=1")).json()
        assert status["query_sev"] == shown


async def test_ended_vm_has_no_monitor_to_ask(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        answer = await supervisor.http.get(f"/vms/{vm_id}/status?live=1")
        assert answer.status_code == 409
        assert vm_id in answer.json()["detail"]
        assert (await supervisor.http.get(f"/vms/{vm_id}/status")).status_code == 200


async def test_lists(world: World) -> None:
    async with world.serve() as supervisor:
        assert (await supervisor.http.get("/vms")).json() == {"vms": [], "next": None}
        ids = [(await supervisor.run())["id"] for _ in range(2)]
        listed = (await supervisor.http.get("/vms")).json()["vms"]
        assert [one["id"] for one in listed] == ids
        assert {one["state"] for one in listed} == {"running"}


async def test_all_that_is_known_of_a_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["pid"] == guest.pid
        assert shown["directory"] == str(world.tmp / vm_id)
        assert shown["relay"]["state"] == "answered"
        phases = shown["phases_s"]
        steps = ["queue", "directory", "overlay", "spawn", "greeting", "running", "agent", "relay"]
        assert list(phases) == steps
        assert list(phases.values()) == sorted(phases.values())
        assert shown["argv"][0] == str(world.qemu)
        assert f"path={world.tmp / vm_id}/qmp.sock" in shown["command"]
