"""Who starts now, who waits and who is turned away."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from supervisor import config
from supervisor.config import Forwards, LimitsConfig, NetConfig
from supervisor.config.settings import PortRange, Ratio
from supervisor.errors import AtCapacity
from supervisor.runs import admission
from supervisor.runs.admission import ANY_NUMBER, Limit, Refusal, Resources
from tests.support.crowd import BIG, GIB, SMALL, Crowd, crowd, make_admission

# --- pure -----------------------------------------------------------------------------------


def test_need_is_what_a_vm_is_started_with() -> None:
    settings = {"MANAGER_QEMU_MEMORY_SIZE": "1G", "MANAGER_QEMU_SMP_COUNT": "2"}
    assert Resources.of_new_vm(config.load(settings).qemu) == Resources(1, GIB, 2, ports=3)


@pytest.mark.parametrize(
    ("forwards", "asked", "ports"),
    [("host", None, 3), ("host", Forwards.NONE, 0), ("none", None, 0), ("none", Forwards.HOST, 3)],
)
def test_ports_are_those_that_the_run_asks_for(
    forwards: str, asked: Forwards | None, ports: int
) -> None:
    settings = config.load({"MANAGER_FORWARDS": forwards}).qemu
    assert Resources.of_new_vm(settings, forwards=asked).ports == ports


def test_host_has_room() -> None:
    room = admission.host_resources(NetConfig())
    assert room.memory_bytes > 0
    assert room.vcpus > 0
    assert room.ports == ANY_NUMBER
    in_range = NetConfig(host_fwd_range=PortRange(6100, 6105))
    assert admission.host_resources(in_range).ports == 6


@pytest.mark.parametrize(
    ("ratios", "memory", "vcpus"),
    [
        ((1.0, 1.0), 1000, 100),
        ((1.5, 16.0), 1500, 1600),
        ((0.29, 0.29), 290, 29),
        ((0.0001, 0.001), 0, 0),
    ],
)
def test_budget(ratios: tuple[float, float], memory: int, vcpus: int) -> None:
    of_memory, of_vcpus = map(Ratio, ratios)
    given = LimitsConfig(memory_overcommit=of_memory, vcpu_overcommit=of_vcpus)
    assert admission.budget(given, Resources(0, 1000, 100)) == Resources(10, memory, vcpus)


def test_how_many() -> None:
    found = admission.how_many(Resources(10, 9 * GIB, 32), BIG)
    assert found == {Limit.VMS: 10, Limit.MEMORY: 2, Limit.VCPUS: 8}


def test_how_many_by_a_range_of_ports() -> None:
    need = Resources(1, GIB, 1, ports=3)
    assert admission.how_many(Resources(10, GIB, 1, ports=11), need)[Limit.PORTS] == 3
    assert Limit.PORTS not in admission.how_many(Resources(10, GIB, 1, ports=ANY_NUMBER), need)
    assert Limit.PORTS not in admission.how_many(Resources(10, GIB, 1, ports=11), SMALL)


# --- in turn --------------------------------------------------------------------------------


async def test_room_is_taken_and_given_back() -> None:
    some = make_admission()
    await some.enter(BIG)
    await some.enter(SMALL)
    assert some.taken == Resources(2, 5 * GIB, 5)
    some.leave(BIG)
    assert some.taken == Resources(1, GIB, 1)
    some.leave(SMALL)
    assert some.taken == Resources()


async def test_who_waits_for_a_change_of_room_is_told(nursery: trio.Nursery) -> None:
    some = make_admission(max_vms=1)

    changed = some.changed.next()
    some.take(SMALL)
    assert changed.is_set()

    changed = some.changed.next()
    nursery.start_soon(some.enter, SMALL)
    await wait_all_tasks_blocked()
    assert some.waiting
    assert changed.is_set()

    changed = some.changed.next()
    some.leave(SMALL)
    assert changed.is_set()


async def test_what_was_not_taken_cannot_be_given_back() -> None:
    some = make_admission()
    some.take(SMALL)
    with pytest.raises(ValueError, match="never taken"):
        some.leave(BIG)
    assert some.taken == Resources(1, GIB, 1)


@pytest.mark.parametrize("limit", [{"max_vms": 1}, {"memory_gib": 1}, {"vcpus": 1}], ids=str)
async def test_first_come_first_served(nursery: trio.Nursery, limit: dict[str, int]) -> None:
    people = crowd(nursery, **limit)
    await people.all_arrive("abcd")
    assert people.order == "a"
    assert people.admission.waiting == 3
    for order in ("ab", "abc", "abcd"):
        await people.leaves()
        assert people.order == order
    assert people.admission.waiting == 0


async def test_a_small_one_does_not_overtake(nursery: trio.Nursery) -> None:
    people = crowd(nursery, memory_gib=5)
    await people.arrives("a", SMALL)
    await people.arrives("b", SMALL)
    await people.arrives("C", BIG)
    await people.arrives("d", SMALL)
    assert people.order == "ab"
    await people.leaves()
    assert people.order == "abC"
    await people.leaves()
    assert people.order == "abCd"


async def test_calls_in_one_go_are_in_order(nursery: trio.Nursery) -> None:
    """Trio runs tasks that are ready in no order; who called `enter` first is still the first."""
    people = crowd(nursery, max_vms=1)
    called: list[str] = []

    async def enter(name: str) -> None:
        called.append(name)
        await people.admission.enter(SMALL)
        people.inside.append(name)

    for name in "abcdefgh":
        nursery.start_soon(enter, name)
    await wait_all_tasks_blocked()
    for _ in range(7):
        await people.leaves()
    assert people.inside == called


async def test_one_that_leaves_can_make_room_for_several(nursery: trio.Nursery) -> None:
    people = crowd(nursery, memory_gib=4)
    await people.arrives("A", BIG)
    await people.all_arrive("bcdef")
    assert people.order == "A"
    await people.leaves(BIG)
    assert sorted(people.order) == list("Abcde")
    assert people.admission.taken.vms == 4
    assert people.admission.waiting == 1


# --- owners ---------------------------------------------------------------------------------


async def test_owners_take_turns(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1)
    await people.all_arrive("abcd", owner="alice")
    await people.all_arrive("xy", owner="bob")
    for _ in range(5):
        await people.leaves()
    assert people.order == "abxcyd"
    assert people.admission.waiting == 0


async def test_a_big_ones_turn_is_not_overtaken_by_another_owner(nursery: trio.Nursery) -> None:
    people = crowd(nursery, memory_gib=5)
    await people.all_arrive("ab", owner="alice")
    await people.arrives("C", BIG, owner="alice")
    await people.arrives("x", owner="bob")
    await people.leaves()
    assert people.order == "abC"
    await people.leaves()
    assert people.order == "abCx"


async def test_one_owner_alone_does_not_fill_the_queue(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1, queue=4)
    await people.all_arrive("abcde", owner="alice")
    await people.all_arrive("xyz", owner="bob")
    # Two places for each. The newest of hers made room, and his third is one too many.
    assert list(people.failed) == ["e", "d", "z"]
    assert all("(MANAGER_QUEUE)" in str(error) for error in people.failed.values())
    assert people.admission.refused == {Refusal.QUEUE_FULL: 3}
    # A third owner gets a place of an owner who has two; a fifth of four who have one gets none.
    await people.arrives("i", owner="ivo")
    await people.arrives("k", owner="kim")
    await people.arrives("l", owner="lee")
    assert list(people.failed) == ["e", "d", "z", "c", "y", "l"]
    for _ in range(4):
        await people.leaves()
    assert people.order == "abxik"
    assert people.admission.waiting == 0


# --- turned away ----------------------------------------------------------------------------


async def test_queue_is_bounded(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=1, queue=2)
    await people.all_arrive("abcd")
    assert set(people.failed) == {"d"}
    text = str(people.failed["d"])
    assert "1 of 1 VMs run (MANAGER_MAX_VMS)" in text
    assert "2 of 2 runs wait for room (MANAGER_QUEUE)" in text
    # Its having been there changes nothing for the others.
    assert people.admission.waiting == 2
    await people.leaves()
    await people.arrives("e")
    assert people.order == "ab"
    assert people.admission.waiting == 2


async def test_no_queue_at_all() -> None:
    some = make_admission(max_vms=1, queue=0)
    await some.enter(SMALL)
    with pytest.raises(AtCapacity, match=r"no run may wait for room \(MANAGER_QUEUE\)") as caught:
        await some.enter(SMALL)
    assert caught.value.retry_after_s == 60
    assert some.waiting == 0
    some.leave(SMALL)
    await some.enter(SMALL)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_vms": 2}, "2 of 2 VMs run (MANAGER_MAX_VMS)"),
        (
            {"memory_gib": 3},
            "the VMs have 2048 MiB of 3072 MiB of memory and the next one needs 2048 MiB"
            " (MANAGER_MEMORY_OVERCOMMIT)",
        ),
        (
            {"vcpus": 3},
            "the VMs have 2 of 3 virtual CPUs and the next one needs 2 (MANAGER_VCPU_OVERCOMMIT)",
        ),
    ],
    ids=["VMs", "memory", "CPUs"],
)
async def test_which_limit_it_is(limit: dict[str, int], said: str) -> None:
    some = make_admission(queue=0, **limit)
    some.take(SMALL)
    some.take(SMALL)
    with pytest.raises(AtCapacity) as caught:
        await some.enter(Resources(1, 2 * GIB, 2))
    assert said in str(caught.value)


async def test_the_limit_told_is_the_one_that_holds_up_the_queue(nursery: trio.Nursery) -> None:
    """The small one that is refused would fit; what stands before it does not."""
    people = crowd(nursery, memory_gib=5, queue=1)
    await people.all_arrive("ab")
    await people.arrives("C", BIG)
    await people.arrives("d", SMALL)
    assert "the next one needs 4096 MiB" in str(people.failed["d"])


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        ({"max_vms": 0}, ["MANAGER_MAX_VMS"]),
        (
            {"memory_gib": 3},
            ["MANAGER_MEMORY_OVERCOMMIT", "MANAGER_QEMU_MEMORY_SIZE", "4096 MiB", "3072 MiB"],
        ),
        ({"vcpus": 3}, ["MANAGER_VCPU_OVERCOMMIT", "MANAGER_QEMU_SMP_COUNT", "4", "3"]),
    ],
    ids=["VMs", "memory", "CPUs"],
)
async def test_what_can_never_fit_does_not_wait(limit: dict[str, int], names: list[str]) -> None:
    some = make_admission(**limit)
    with pytest.raises(AtCapacity) as caught:
        await some.enter(BIG)
    assert all(name in str(caught.value) for name in names)
    assert caught.value.retry_after_s is None
    assert (some.taken, some.waiting) == (Resources(), 0)


async def test_wait_is_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    people = crowd(nursery, max_vms=1, queue_timeout_s=90.0)
    await people.all_arrive("ab")
    await trio.sleep(30)
    await people.arrives("c")
    await trio.sleep(61)
    assert set(people.failed) == {"b"}
    text = str(people.failed["b"])
    assert "within 90s (MANAGER_QUEUE_TIMEOUT)" in text
    assert "1 of 1 VMs run (MANAGER_MAX_VMS), with 1 more waiting" in text
    assert isinstance(people.failed["b"], AtCapacity)
    assert people.admission.waiting == 1
    # The one behind it is served in its turn.
    await people.leaves()
    assert people.order == "ac"


async def test_who_waited_too_long_holds_nobody_up(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    people = crowd(nursery, memory_gib=5, queue_timeout_s=10.0)
    await people.all_arrive("ab")
    await people.arrives("C", BIG)
    await trio.sleep(5)
    await people.arrives("d", SMALL)
    assert people.order == "ab"
    await trio.sleep(6)
    assert set(people.failed) == {"C"}
    assert people.order == "abd"


async def test_whoever_is_turned_away_gets_the_same_estimate_and_is_counted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    people = crowd(nursery, max_vms=1, queue=1, queue_timeout_s=60.0)
    await people.all_arrive("ab")
    await trio.sleep(39.5)
    await people.arrives("c")
    await trio.sleep(60)
    for name in "bc":
        refused = people.failed[name]
        assert isinstance(refused, AtCapacity)
        assert refused.retry_after_s == 60
        assert "try again in 60 s" in str(refused)
    with pytest.raises(AtCapacity):
        people.admission.check(Resources(2, GIB, 1))
    assert people.admission.refused == {
        Refusal.QUEUE_FULL: 1,
        Refusal.TIMEOUT: 1,
        Refusal.NEVER: 1,
    }


async def test_room_at_the_last_moment_counts(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The wait is over and room comes free before the waiter knows: it is let in."""
    people = crowd(nursery, max_vms=1, queue_timeout_s=10.0)
    await people.all_arrive("a")

    async def leave_in_time() -> None:
        await trio.sleep(10)
        people.admission.leave(SMALL)

    nursery.start_soon(leave_in_time)
    await people.arrives("b")
    await trio.sleep(20)
    # Which of the two comes first at that moment is trio's choice; nothing is lost either way.
    assert people.admission.taken.vms == people.inside.count("b")
    assert ("b" in people.failed) is ("b" not in people.inside)


# --- adopted --------------------------------------------------------------------------------


async def test_adopted_vms_may_exceed_the_limits(nursery: trio.Nursery) -> None:
    people = crowd(nursery, max_vms=2)
    for _ in range(4):
        people.admission.take(BIG)
    assert people.admission.taken == Resources(4, 16 * GIB, 16)
    await people.arrives("a")
    await people.leaves(BIG)
    await people.leaves(BIG)
    assert people.order == ""
    await people.leaves(BIG)
    assert people.order == "a"


async def test_adopted_beyond_the_limits_is_said_so() -> None:
    some = make_admission(max_vms=1, queue=0)
    some.take(SMALL)
    some.take(SMALL)
    with pytest.raises(AtCapacity, match="2 of 1 VMs run"):
        await some.enter(SMALL)


# --- who would rather not start than wait ---------------------------------------------------


async def test_room_is_taken_where_there_is_some() -> None:
    rooms = make_admission(max_vms=2)
    assert rooms.try_enter(SMALL)
    assert rooms.try_enter(SMALL)
    assert not rooms.try_enter(SMALL)
    rooms.leave(SMALL)
    assert rooms.try_enter(SMALL)


async def test_nobody_who_waits_is_overtaken(autojump_clock: MockClock) -> None:
    rooms = make_admission(memory_gib=4)
    assert rooms.try_enter(SMALL)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(rooms, nursery)
        await crowd.arrives("big", BIG)
        assert not rooms.try_enter(SMALL)
        rooms.leave(SMALL)
        await wait_all_tasks_blocked()
        assert crowd.inside == ["big"]


async def test_nobody_starts_at_the_end() -> None:
    rooms = make_admission()
    rooms.close()
    assert not rooms.try_enter(SMALL)


async def test_what_no_run_can_have_is_none_of_their_number() -> None:
    rooms = make_admission(max_vms=1, memory_gib=2)
    extra = Resources(0, GIB, 1)
    assert rooms.try_enter(extra)
    assert rooms.try_enter(SMALL)
    assert not rooms.try_enter(extra)
    rooms.leave(extra)
    assert rooms.taken == Resources(1, GIB, 1)
