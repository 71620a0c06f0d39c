"""How a VM is brought to its end: by its guest, by QMP, by signals; and what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from supervisor.state.status import Status, VmState
from tests.support.scenario import ALWAYS

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

#: Graces that are over before one can look, for guests that use none of them.
IMPATIENT = {
    "MANAGER_POWERDOWN_GRACE": "20ms",
    "MANAGER_POWERDOWN_INTERVAL": "5ms",
    "MANAGER_QUIT_GRACE": "20ms",
    "MANAGER_TERM_GRACE": "20ms",
}


async def shutdown(supervisor: Supervisor, vm_id: str, **body: Any) -> dict[str, Any]:
    """``POST /vms/<id>/shutdown``; what it answers when the VM has ended."""
    answer = await supervisor.http.post(f"/vms/{vm_id}/shutdown", json=body or None)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("body", [{}, {"mode": "graceful"}], ids=["no body", "graceful"])
async def test_graceful(world: World, body: dict[str, str]) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        shown = await shutdown(supervisor, vm_id, **body)
        await guest.until("end")
        assert guest.count("system_powerdown") == 1
        assert (shown["state"], shown["reason"]) == ("shutoff", "guest-shutdown")
        assert (shown["ended"], shown["exit_code"], shown["error"]) == (True, 0, None)
        assert shown["ended_at"] >= shown["created_at"]
        assert shown["uptime_s"] is None


async def test_button_is_pressed_until_the_guest_hears(world: World) -> None:
    world.scenario(deaf_to_powerdown=3)
    async with world.serve(MANAGER_POWERDOWN_INTERVAL="10ms") as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        shown = await shutdown(supervisor, vm_id)
        await guest.until("end")
        # Once more, perhaps, while it is being heard of.
        assert guest.count("system_powerdown") >= 4
        assert shown["reason"] == "guest-shutdown"


async def test_force_does_not_ask_the_guest(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        shown = await shutdown(supervisor, vm_id, mode="force")
        await guest.until("end")
        assert guest.count("system_powerdown") == 0
        assert guest.count("quit") == 1
        assert (shown["state"], shown["reason"]) == ("shutoff", "host-qmp-quit")


async def test_force_hurries_an_end_that_was_begun_gracefully(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        guest = await world.guest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shutdown, supervisor, vm_id)
            await guest.until("system_powerdown")
            assert (await shutdown(supervisor, vm_id, mode="force"))["state"] == "shutoff"


#: For a step that is ignored: it must have been taken by then.
SHORT = "2s"


@pytest.mark.parametrize(
    ("scenario", "graces", "status", "steps"),
    [
        ({}, {}, Status(VmState.SHUTOFF, "host-qmp-quit"), ["quit"]),
        (
            {"ignores_quit": True},
            {"MANAGER_QUIT_GRACE": SHORT},
            Status(VmState.SHUTOFF, "host-signal"),
            ["quit", "SIGTERM"],
        ),
        (
            {"ignores_quit": True, "ignores_sigterm": True},
            {"MANAGER_QUIT_GRACE": SHORT, "MANAGER_TERM_GRACE": SHORT},
            Status(VmState.CRASHED, "exit:-9"),
            ["quit", "SIGTERM"],
        ),
        (
            {"refuses": {"system_powerdown": ["GenericError", "no"]}},
            {},
            Status(VmState.SHUTOFF, "host-qmp-quit"),
            ["quit"],
        ),
    ],
    ids=["deaf to the button", "and to quit", "and to SIGTERM", "button refused"],
)
async def test_escalation(
    world: World,
    scenario: dict[str, Any],
    graces: dict[str, str],
    status: Status,
    steps: list[str],
) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS, **scenario)
    powerdown = {"MANAGER_POWERDOWN_GRACE": "20ms", "MANAGER_POWERDOWN_INTERVAL": "5ms"}
    async with world.serve(**powerdown, **graces) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        await shutdown(supervisor, vm.id)
        await guest.until("end")
        assert vm.status == status
        assert [one["saw"] for one in guest.seen if one["saw"] in ("quit", "SIGTERM")] == steps


async def test_monitor_that_no_longer_answers_does_not_keep_a_vm_alive(world: World) -> None:
    world.scenario(swallows=["system_powerdown", "quit"], ignores_sigterm=True)
    async with world.serve(**IMPATIENT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        await shutdown(supervisor, vm.id)
        assert vm.record.exit_code == -9


async def test_shutdown_of_an_ended_vm_answers_with_its_end(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        first = await shutdown(supervisor, vm_id)
        assert await shutdown(supervisor, vm_id, mode="force") == first


@pytest.mark.parametrize(
    ("body", "member"),
    [({"mode": "gently"}, "mode"), ({"mode": 1}, "mode"), ({"mood": "force"}, "mood")],
)
async def test_shutdown_refuses_what_it_does_not_know(
    world: World, body: dict[str, Any], member: str
) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        answer = await supervisor.http.post(f"/vms/{vm_id}/shutdown", json=body)
        assert answer.status_code == 400
        assert answer.json()["member"] == member
        assert supervisor.vm(vm_id).status.state is VmState.RUNNING


async def test_caller_that_goes_away_does_not_call_the_end_off(world: World) -> None:
    world.scenario(deaf_to_powerdown=ALWAYS)
    async with world.serve() as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        guest = await world.guest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shutdown, supervisor, vm.id)
            await guest.until("system_powerdown")
            nursery.cancel_scope.cancel()
        await guest.emit("SHUTDOWN", guest=True, reason="guest-shutdown")
        await guest.exit(0)
        await vm.wait_ended()
        assert vm.status == Status(VmState.SHUTOFF, "guest-shutdown")


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
async def test_delete_leaves_nothing(world: World, ended: bool) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        directory = supervisor.vm(vm_id).dir.path
        if ended:
            await shutdown(supervisor, vm_id)
            assert directory.is_dir()
        answer = await supervisor.http.delete(f"/vms/{vm_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert "Content-Type" not in answer.headers
        assert not directory.exists()
        assert (await supervisor.http.get(f"/vms/{vm_id}")).status_code == 404
        assert (await supervisor.http.delete(f"/vms/{vm_id}")).status_code == 404
        assert world.free_again()


async def test_delete_of_a_vm_that_somebody_waits_for(world: World) -> None:
    world.scenario(agent="silent")
    async with world.serve() as supervisor:
        statuses = []

        async def caller() -> None:
            statuses.append((await supervisor.post(b"1")).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            guest = await world.guest()
            await guest.until("Run")
            assert (await supervisor.http.delete(f"/vms/{guest.vm_id}")).status_code == 204
        assert statuses == [502]
        assert not supervisor.running.service.vms


async def test_delete_of_a_vm_whose_qemu_hangs_at_its_start(world: World) -> None:
    world.scenario(greeting="nothing")
    async with world.serve(**IMPATIENT) as supervisor:
        vm_id = await supervisor.begin()
        guest = await world.guest()
        await guest.until("connected")
        with trio.fail_after(10):
            assert (await supervisor.http.delete(f"/vms/{vm_id}")).status_code == 204
        await guest.until("end")


@pytest.mark.parametrize("vm_id", ["no-such", "%2e%2e", "0", "a%2fb"])
@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("GET", "/status"), ("DELETE", ""), ("POST", "/shutdown")]
)
async def test_ids_that_are_none(world: World, vm_id: str, method: str, rest: str) -> None:
    async with world.serve() as supervisor:
        url = f"{supervisor.http.base_url}/vms/{vm_id}{rest}"
        answer = await supervisor.http.request(method, url)
        assert answer.status_code in (404, 405)
        assert answer.headers["Content-Type"] == "application/problem+json"
