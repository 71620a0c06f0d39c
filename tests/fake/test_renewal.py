"""Copies that renew themselves: their first call is the computation, and tells them the time."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import trio

from supervisor.agent.line import MOST_BYTES, NAME, Line
from supervisor.errors import LaunchError, SupervisorError
from supervisor.state.record import RelayState
from supervisor.state.store import Store
from supervisor.state.vm_dir import VmDir
from tests.support.clones import (
    CLONE_STEPS,
    COLD_STEPS,
    HELD_STEPS,
    IMPATIENT,
    both_guests,
    clonable,
    declare,
    events,
    guest_of,
    heard,
    held,
    is_clone,
    metrics,
    post,
    ready,
    run,
    show,
    timing,
)

if TYPE_CHECKING:
    from supervisor.state.record import Event, Record
    from tests.support.world import World


@pytest.fixture
def world(world: World) -> World:
    clonable(world)
    declare(world.image, renews_itself=True)
    world.scenario(renews_itself=True)
    return world


def without_renew(steps: list[str]) -> list[str]:
    return [step for step in steps if step != "renew"]


async def test_copy_that_renews_itself_is_sent_the_computation_at_once(world: World) -> None:
    before = time.time_ns()
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        template = await world.guest()
        answer = await post(supervisor.http, b"mine")
        assert answer.status_code == 200, answer.text
        assert world.received(answer.json()["computation"]) == b"mine"
        assert list(timing(answer)) == [*without_renew(CLONE_STEPS), "total"]
        vm_id = answer.json()["id"]
        assert is_clone(await show(supervisor.http, vm_id))
        guest = await guest_of(world, vm_id)
        assert (await guest.until("line"))["open_to_all"]
        renewed = await guest.until("renewed")
        await guest.until("Run")
        assert (guest.count("Renew"), guest.count("refused"), template.count("renewed")) == (
            0,
            0,
            0,
        )
        item = bytes.fromhex(renewed["item"])
        assert len(item) == 128
        assert len(set(item[:64])) > 16, "64 bytes of entropy"
        assert UUID(item[64:96].decode()) == UUID(vm_id)
        assert item[96:].rstrip(b"\0").decode() == f"vm-{vm_id[:8]}"
        assert before <= renewed["unix_time_ns"] <= time.time_ns()
        assert len(events(world, vm_id, "renewed")) == 1
        directory = VmDir(world.tmp / vm_id)
        assert not directory.renewal.exists(), "it is as secret as its entropy"
        assert not directory.computation.exists()
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_clones_total{outcome="restored"}'] == 1


async def test_no_copy_has_the_entropy_of_another(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        told = set()
        for _ in range(2):
            guest = await guest_of(world, (await run(supervisor.http))["id"])
            told.add((await guest.until("renewed"))["item"][:128])
        assert len(told) == 2


async def test_held_clone_renews_itself(world: World) -> None:
    world.settings["MANAGER_HELD_CLONES"] = "1"
    async with world.serve() as supervisor:
        (waiting,) = await held(supervisor.http, 1)
        assert not VmDir(world.tmp / waiting).renewal.exists()
        answer = await post(supervisor.http)
        assert answer.json()["id"] == waiting
        assert list(timing(answer)) == [*without_renew(HELD_STEPS), "total"]
        guest = await guest_of(world, waiting)
        await guest.until("Run")
        assert (guest.count("renewed"), guest.count("Renew")) == (1, 0)


async def test_guest_that_has_no_line_open_is_called_over_tcp(world: World) -> None:
    world.scenario(opens_line=False)
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        answer = await post(supervisor.http)
        assert list(timing(answer)) == [*CLONE_STEPS, "total"]
        guest = await guest_of(world, answer.json()["id"])
        await guest.until("Run")
        assert (guest.count("Renew"), guest.count("line")) == (1, 0)


@pytest.mark.parametrize("more", [0, 1])
async def test_long_computation_takes_the_usual_way(world: World, more: int) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        computation = bytes(MOST_BYTES + more)
        answer = await post(supervisor.http, computation)
        assert world.received(answer.json()["computation"]) == computation
        guest = await guest_of(world, answer.json()["id"])
        await guest.until("Run")
        assert (guest.count("Renew"), guest.count("line")) == (more, 1 - more)


@pytest.mark.parametrize(
    ("says", "why"), [("", "did not answer within"), ("x", "not what its protocol says")]
)
async def test_copy_that_does_not_say_it_is_renewed_is_sent_nothing(
    world: World, says: str, why: str
) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, line=says)
        answer = await post(supervisor.http, b"once")
        assert world.received(answer.json()["computation"]) == b"once"
        vm_id = answer.json()["id"]
        assert not is_clone(await show(supervisor.http, vm_id))
        assert why in events(world, vm_id, "fallback")[0]["why"]
        states = [one["state"] for one in events(world, vm_id, "relay")]
        assert states == ["sent", "answered"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        first, second = await both_guests(world, vm_id)
        assert (await heard(first, "Run"), await heard(second, "Run")) == (0, 1)


@pytest.mark.parametrize("holds", ["0", "1"])
async def test_copy_that_is_not_renewed_refuses_and_a_cold_guest_takes_its_place(
    world: World, holds: str
) -> None:
    world.scenario(renews_itself=False)
    async with world.serve(MANAGER_HELD_CLONES=holds, **IMPATIENT) as supervisor:
        digest = (await ready(supervisor.http))["digest"]
        if holds == "1":
            await held(supervisor.http, 1)
        answer = await post(supervisor.http, b"once")
        assert answer.status_code == 200, answer.text
        assert world.received(answer.json()["computation"]) == b"once"
        shown = await show(supervisor.http, answer.json()["id"])
        assert not is_clone(shown)
        assert list(shown["phases_s"])[-5:] == COLD_STEPS[-5:]
        (told,) = events(world, shown["id"], "fallback")
        assert (told["template"], "its guest is not renewed" in told["why"]) == (digest, True)
        states = [one["state"] for one in events(world, shown["id"], "relay")]
        assert states == ["sent", "waiting", "sent", "answered"]
        assert events(world, shown["id"], "renewed") == []
        await supervisor.http.post(f"/vms/{shown['id']}/shutdown")
        first, second = await both_guests(world, shown["id"])
        assert (await heard(first, "Run"), await heard(second, "Run")) == (0, 1)
        assert first.count("refused") == 1


async def test_copy_that_is_not_renewed_fails_a_run_that_requires_one(world: World) -> None:
    world.scenario(renews_itself=False)
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        answer = await post(supervisor.http, template="require")
        assert answer.status_code == 502
        assert "its guest is not renewed" in answer.json()["detail"]


async def test_computation_that_a_copy_may_have_goes_to_no_other_guest(world: World) -> None:
    """The guest ends before its answer: whether it was renewed and began, nobody can say."""
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, clones_agent="silent")
        vm_id = await supervisor.begin(b"once")
        guest = await guest_of(world, vm_id)
        await guest.until("Run")
        await guest.exit(1)
        await supervisor.wait_state(vm_id, "crashed", "stopped", "shutdown")
        assert events(world, vm_id, "fallback") == []
        assert (await show(supervisor.http, vm_id))["relay"]["state"] != "answered"


async def test_next_supervisor_gives_it_to_no_other_guest_either(world: World) -> None:
    world.scenario(renews_itself=True, clones_agent="silent")
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        vm_id = await supervisor.begin(b"once")
        guest = await guest_of(world, vm_id)
        await guest.until("Run")
        await supervisor.leave(guest)
    async with world.serve(**IMPATIENT) as supervisor:
        await supervisor.wait_record(vm_id, lambda record: record.relay is RelayState.INTERRUPTED)
        await guest.exit(1)
        await supervisor.vm(vm_id).wait_over()
        assert events(world, vm_id, "fallback") == []


async def test_nothing_is_sent_to_a_guest_that_is_not_known_to_run(world: World) -> None:
    """It would count as one that never ran, be killed, and the computation with it."""
    world.settings["MANAGER_HELD_CLONES"] = "1"
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, swallows=("cont",))
        for vm_id in await held(supervisor.http, 1):
            await supervisor.http.delete(f"/vms/{vm_id}")
        (waiting,) = await held(supervisor.http, 1)
        first = await guest_of(world, waiting)
        vm_id = await supervisor.begin(b"once")
        assert vm_id == waiting
        await first.until("cont")
        world.scenario(renews_itself=True)
        await first.order("swallow", commands=["cont", "qmp_capabilities"])
        await first.order("hang-up")
        await first.order("run")
        await supervisor.vm(vm_id).wait_answered()
        assert await heard(first, "Run") == 0
        second = await guest_of(world, vm_id)
        await second.until("Run")
        assert len(events(world, vm_id, "fallback")) == 1


async def test_full_disk_does_not_give_it_to_two_guests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full, plain = True, Store.write

    def write(store: Store, record: Record, news: list[Event]) -> None:
        if is_full and record.relay in (RelayState.SENT, RelayState.INTERRUPTED):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(store, record, news)

    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, clones_agent="silent")
        monkeypatch.setattr(Store, "write", write)
        vm_id = await supervisor.begin(b"once")
        guest = await guest_of(world, vm_id)
        await guest.until("Run")
        await supervisor.leave(guest)
    await guest.exit(1)
    await guest.until("end")
    await world.reap()
    is_full = False
    world.scenario(renews_itself=True)
    async with world.serve(**IMPATIENT) as supervisor:
        vm = supervisor.vm(vm_id)
        with pytest.raises(SupervisorError):
            await vm.wait_answered()
        assert not vm.record.answered


async def test_copy_whose_supervisor_went_before_its_first_call_is_let_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its computation is on record as sent and never came. Its agent would answer nobody."""

    async def goes_astray(*_: object, **__: object) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        with monkeypatch.context() as patched:
            patched.setattr(Line, "run", goes_astray)
            vm_id = await supervisor.begin()
            guest = await guest_of(world, vm_id)
            await supervisor.wait_record(vm_id, lambda record: record.relay is RelayState.SENT)
            await supervisor.leave(guest)
    async with world.serve(**IMPATIENT):
        await guest.until("Renew")
        assert guest.count("Run") == 0


async def test_what_a_copy_is_to_learn_does_not_outlive_it(world: World) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, greeting="exit")
        vm_id = await supervisor.begin()
        await guest_of(world, vm_id)
        world.scenario(renews_itself=True)
        await supervisor.vm(vm_id).wait_answered()
        assert not is_clone(await show(supervisor.http, vm_id))
        assert not VmDir(world.tmp / vm_id).renewal.exists()


async def test_computations_that_are_refused_are_not_the_templates_fault(world: World) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        status = ["INVALID_ARGUMENT", "no computation"]
        world.scenario(renews_itself=True, clones_agent="status", status=status)
        for _ in range(3):
            answer = await post(supervisor.http, b"no")
            assert "no computation" in answer.json()["detail"]
        world.scenario(renews_itself=True)
        guest = await guest_of(world, (await run(supervisor.http))["id"])
        await guest.until("Run")
        assert (guest.count("line"), guest.count("Renew")) == (1, 0)
        counted = await metrics(supervisor.http)
        assert counted['qmp_supervisor_clones_total{outcome="restored"}'] == 4


async def test_copy_whose_agent_dies_while_it_has_the_computation(world: World) -> None:
    """Its run does not wait for the answer of an agent that is not there any more."""
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, clones_agent="silent")
        vm_id = await supervisor.begin(b"once")
        guest = await guest_of(world, vm_id)
        await guest.until("Run")
        await guest.emit("VSERPORT_CHANGE", id=f"port-{NAME}", open=False)
        with pytest.raises(SupervisorError, match="has closed its line"):
            await supervisor.vm(vm_id).wait_answered()


async def test_copy_without_a_descriptor_for_its_line_is_called_over_tcp(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with world.serve() as supervisor:
        await ready(supervisor.http)
        monkeypatch.setattr(socket, "socketpair", fail)
        guest = await guest_of(world, (await run(supervisor.http))["id"])
        monkeypatch.undo()
        await guest.until("Run")
        assert (guest.count("line"), guest.count("Renew")) == (0, 1)


async def test_template_whose_copies_do_not_answer_is_asked_for_renewals_again(
    world: World,
) -> None:
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        world.scenario(renews_itself=True, clones_agent="silent")
        for _ in range(3):
            vm_id = await supervisor.begin(b"once")
            guest = await guest_of(world, vm_id)
            await guest.until("Run")
            await guest.exit(1)
            await supervisor.vm(vm_id).wait_ended()
        world.scenario(renews_itself=True)
        for called in (1, 0):
            guest = await guest_of(world, (await run(supervisor.http))["id"])
            await guest.until("Run")
            assert guest.count("Renew") == called


@pytest.mark.parametrize("renews_itself", [True, False])
async def test_run_whose_computation_is_gone_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, renews_itself: bool
) -> None:
    """Whether it is read before the copy is renewed, or after."""
    declare(world.image, renews_itself=renews_itself)
    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        plain = Store.create

        def create(store: Store, new: Record, *rest: Any) -> None:
            plain(store, new, *rest)
            VmDir(world.tmp / new.id).computation.unlink()

        monkeypatch.setattr(Store, "create", create)
        vm = supervisor.vm(await supervisor.begin())
        with pytest.raises(SupervisorError, match=f"the computation of VM {vm.id} is lost"):
            await vm.wait_answered()


async def test_answer_that_cannot_be_kept_is_none_and_what_was_put_off_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LaunchError("no space left; the agent's answer could not be saved")

    async with world.serve(**IMPATIENT) as supervisor:
        await ready(supervisor.http)
        monkeypatch.setattr(VmDir, "keep_reply", fail)
        answer = await post(supervisor.http)
        assert "could not be saved" in answer.json()["detail"]
        (listed,) = (await supervisor.http.get("/vms")).json()["vms"]
        states = [one["state"] for one in events(world, listed["id"], "relay")]
        assert states == ["sent", "failed"]
        assert len(events(world, listed["id"], "renewed")) == 1
        vm = supervisor.vm(listed["id"])
        await vm.wait_ended()
        assert (vm.record.answered, vm.fresh_reply) == (False, None)


async def test_answer_that_nobody_waits_for_is_on_disk_alone(world: World) -> None:
    async with world.serve() as supervisor:
        await ready(supervisor.http)
        vm = supervisor.vm(await supervisor.begin())
        await vm.wait_answered()
        assert vm.fresh_reply is None
        vm = supervisor.vm((await run(supervisor.http))["id"])
        assert vm.fresh_reply is None, "it was handed over"
