"""How many VMs may run, whose agent is whose, and which host ports they get."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.qemu.users import User, Users
from tests.support.world import taken

if TYPE_CHECKING:
    from tests.support.world import World


async def test_as_many_vms_as_are_allowed(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="2", MANAGER_QUEUE="0") as supervisor:
        first = (await supervisor.run())["id"]
        await supervisor.run()
        refused = await supervisor.post(b"1")
        assert refused.status_code == 429
        assert "MANAGER_MAX_VMS" in refused.json()["detail"]
        # An ended VM makes room, though it is still listed.
        await supervisor.http.post(f"/vms/{first}/shutdown")
        await supervisor.run()
        assert len((await supervisor.http.get("/vms")).json()["vms"]) == 3


async def test_vms_that_are_being_started_count(world: World) -> None:
    world.scenario(agent="none")
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        await supervisor.begin()
        assert (await supervisor.post(b"1")).status_code == 429


async def test_vm_that_no_user_is_left_for(world: World) -> None:
    """It is not on record, and what it took is given back."""
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="0") as supervisor:
        vms = supervisor.running.service.vms
        host, group = vms.host, User(7_700_000, 7_700_000, ())
        vms.host = attrs.evolve(host, users=Users(group, [7_700_001]))
        taken = vms.host.users.take()
        refused = await supervisor.post(b"1")
        assert refused.status_code == 429
        assert "MANAGER_QEMU_RUN_AS" in refused.json()["advice"]
        assert (await supervisor.http.get("/vms")).json()["vms"] == []
        vms.host.users.give_back(taken)
        assert vms.host.users.take() == taken
        vms.host = host
        await supervisor.run()


async def test_one_fixed_agent_serves_one_vm_at_a_time(world: World) -> None:
    address = f"agent.invalid:{world.ports[0] + 2}"
    world.scenario(agent="none")
    async with world.serve(MANAGER_AGENT_GRPC_URL=address) as supervisor:
        first = await supervisor.begin()
        refused = await supervisor.post(b"1")
        assert refused.status_code == 409
        assert first in refused.json()["detail"]
        assert address in refused.json()["detail"]
        await supervisor.http.delete(f"/vms/{first}")
        await supervisor.begin()


async def test_fixed_address_with_a_place_for_the_port(world: World) -> None:
    """0.0.0.0 is no loopback address and yet reaches this host, so it stands for any other."""
    async with world.serve(MANAGER_AGENT_GRPC_URL="0.0.0.0:{port}") as supervisor:
        one, two = await supervisor.run(b"1"), await supervisor.run(b"2")
        assert one["computation"] != two["computation"]
        shown = (await supervisor.http.get(f"/vms/{two['id']}/status")).json()
        assert shown["agent"]["address"] == f"0.0.0.0:{two['forwards'][2]['host_port']}"


async def test_port_of_somebody_else_is_passed_over(world: World) -> None:
    first, _ = world.ports
    with taken(first + 1):
        async with world.serve() as supervisor:
            answer = await supervisor.run()
            ports = [forward["host_port"] for forward in answer["forwards"]]
            assert ports == [first, first + 2, first + 3]
            world.ports = (first + 2, first + 3)  # what must be free when all is over


async def test_ports_of_an_ended_vm_are_given_out_again(world: World) -> None:
    async with world.serve() as supervisor:
        first = await supervisor.run()
        await supervisor.http.post(f"/vms/{first['id']}/shutdown")
        assert (await supervisor.run())["forwards"] == first["forwards"]


async def test_port_lost_at_the_last_moment_means_another_try(world: World) -> None:
    world.scenario(port_races=2)
    first, _ = world.ports
    async with world.serve() as supervisor:
        answer = await supervisor.run()
        # The agent's port was lost twice; the others could be kept.
        ports = [forward["host_port"] for forward in answer["forwards"]]
        assert ports == [first, first + 1, first + 4]
        vm = supervisor.vm(answer["id"])
        assert vm.record.error is None
        assert vm.record.exit_code is None


async def test_qemu_that_lost_a_port_and_exits_late(world: World) -> None:
    """Its socket is gone before its process is."""
    world.scenario(port_races=1, exits_late=True)
    async with world.serve() as supervisor:
        answer = await supervisor.run()
        assert supervisor.vm(answer["id"]).record.error is None


async def test_port_lost_again_and_again(world: World) -> None:
    world.scenario(port_races=100)
    async with world.serve() as supervisor:
        answer = await supervisor.post(b"1")
        assert answer.status_code == 503
        assert answer.json()["title"] == "Ports taken"
        assert "Could not set up host forwarding rule" in answer.json()["detail"]


async def test_no_port_left(world: World) -> None:
    first, _ = world.ports
    settings = {"MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{first + 3}", "MANAGER_QUEUE": "0"}
    async with world.serve(**settings) as supervisor:
        await supervisor.run()
        answer = await supervisor.post(b"1")
        assert answer.status_code == 429
        assert "the VMs have 3 of 4 host ports" in answer.json()["detail"]
        assert "MANAGER_QEMU_HOST_FWD_RANGE" in answer.json()["detail"]
        body = {"computation": [1], "forwards": "none"}
        assert (await supervisor.http.post("/run", json=body)).status_code == 200


async def test_another_program_has_the_ports_of_the_range(world: World) -> None:
    first, _ = world.ports
    settings = {"MANAGER_QEMU_HOST_FWD_RANGE": f"{first}-{first + 2}"}
    async with world.serve(**settings) as supervisor:
        with socket.create_server(("127.0.0.1", first)):
            answer = await supervisor.post(b"1")
            assert answer.status_code == 503
            assert "MANAGER_QEMU_HOST_FWD_RANGE" in answer.json()["advice"]


async def test_vms_started_at_once_have_ports_of_their_own(world: World) -> None:
    async with world.serve() as supervisor:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(supervisor.run)
        vms = (await supervisor.http.get("/vms")).json()["vms"]
        ports = [forward["host_port"] for vm in vms for forward in vm["forwards"]]
        assert len(ports) == len(set(ports)) == 12


async def test_run_that_waits_is_served_when_another_ends(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE="1") as supervisor:
        first = (await supervisor.run())["id"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            while not supervisor.running.service.vms.admission.waiting:
                await trio.lowlevel.checkpoint()
            refused = await supervisor.post(b"1")
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            assert "MANAGER_QUEUE" in refused.json()["detail"]
            await supervisor.http.post(f"/vms/{first}/shutdown")


async def test_run_that_waited_too_long(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1", MANAGER_QUEUE_TIMEOUT="10ms") as supervisor:
        await supervisor.run()
        refused = await supervisor.post(b"1")
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert "MANAGER_QUEUE_TIMEOUT" in refused.json()["detail"]


async def test_caller_that_goes_away_does_not_wait_any_more(world: World) -> None:
    async with world.serve(MANAGER_MAX_VMS="1") as supervisor:
        await supervisor.run()
        admission = supervisor.running.service.vms.admission
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            while not admission.waiting:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        while admission.waiting:
            await trio.lowlevel.checkpoint()


async def test_one_fixed_agent_is_not_given_to_two_that_come_at_once(world: World) -> None:
    world.scenario(agent="none")
    answers = []
    async with world.serve(MANAGER_AGENT_GRPC_URL="agent.invalid:1") as supervisor:

        async def begin() -> None:
            answers.append((await supervisor.post(b"1", Prefer="respond-async")).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(begin)
        assert answers.count(202) <= 1
        assert set(answers) <= {202, 409}
