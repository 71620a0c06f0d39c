"""A guest that is up and has no agent: who waits for it hears why, and not after minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fake.test_agent_watch import agent_events, agent_shown
from tests.fake.test_failures import failed_run

if TYPE_CHECKING:
    from tests.support.world import World

#: Nobody shall wait for this one.
PATIENT = {"MANAGER_BOOT_TIMEOUT": "1h"}
AT_ONCE = {"agent_look_s": 0.01, "agent_verdict_s": 0.05, "agent_doubt_s": 0.05}
NEVER = {"agent_look_s": 0.01, "agent_verdict_s": 1000.0, "agent_doubt_s": 1000.0}

BOOTS = "BdsDxe: starting\n[guest 3.64] init\n"
UP = BOOTS + "[guest 4.49] eth0 has 10.0.2.15\n[guest 4.60] up\n"
NO_DEVICE = BOOTS + "[guest 9.70] problem: no network device\n"


async def test_guest_says_that_it_has_no_network(world: World) -> None:
    world.scenario(agent="none", console=NO_DEVICE)
    world.hasten(**AT_ONCE)
    async with world.serve(**PATIENT) as supervisor:
        document = await failed_run(supervisor, 504)
        vm = supervisor.only_vm()
        assert f"VM {vm.id} is not there: the guest says: no network device" in document["detail"]
        assert document["advice"].endswith(NO_DEVICE.rstrip())


async def test_agent_that_ends_again_and_again(world: World) -> None:
    ended = "[guest 6.10] problem: the agent ended: status 1\n"
    world.scenario(agent="none", console=UP + ended * 3)
    world.hasten(**AT_ONCE)
    async with world.serve(**PATIENT) as supervisor:
        assert "ends again and again" in (await failed_run(supervisor, 504))["detail"]


@pytest.mark.parametrize(
    ("agent", "console", "words"),
    [
        ("none", "", "nothing listens on its port 7002"),
        ("deaf", UP, "does not answer on its port 7002"),
        ("deaf", "Debian GNU/Linux 12 vm ttyS0\n\nvm login: ", "does not answer on its port 7002"),
    ],
    ids=["refused", "up", "foreign"],
)
async def test_agent_that_may_still_come(
    world: World, agent: str, console: str, words: str
) -> None:
    """It is told of, and waited for."""
    world.scenario(agent=agent, console=console)
    world.hasten(**AT_ONCE)
    async with world.serve(**PATIENT) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await vm.until(lambda: bool(vm.agent_problem))
        assert words in (await agent_shown(supervisor, vm.id))["reason"]
        await guest.order("end-agent", how="")
        await guest.order("start-agent", kind="recorder")
        await supervisor.wait_record(vm.id, lambda record: record.answered)
        assert (await agent_shown(supervisor, vm.id))["reason"] is None
        assert [kind for kind, _ in agent_events(world, vm.id)][0::2] == ["agent-late"]


async def test_signs_that_do_not_last_are_nothing(world: World) -> None:
    world.scenario(agent="none", console=NO_DEVICE)
    world.hasten(**NEVER)
    async with world.serve(**PATIENT) as supervisor:
        vm = supervisor.vm(await supervisor.begin())
        guest = await world.guest()
        await supervisor.wait_state(vm.id, "running")
        await guest.order("start-agent", kind="recorder")
        await supervisor.wait_record(vm.id, lambda record: record.answered)
        assert [kind for kind, _ in agent_events(world, vm.id)] == ["agent"]


async def test_boot_timeout_says_what_was_seen(world: World) -> None:
    world.scenario(agent="none")
    world.hasten(**AT_ONCE)
    async with world.serve(MANAGER_BOOT_TIMEOUT="2s") as supervisor:
        document = await failed_run(supervisor, 504)
        assert "nothing listens on its port 7002" in document["detail"]
