"""What is decided about a fleet: which host serves what, and which step a run may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor.config import Address
from supervisor.errors import InvalidRequest, NotOwner
from supervisor.fleet import authority
from supervisor.fleet.authority import Member
from supervisor.fleet.facts import HostFacts, Needs, lacks, narrowed, nobody_serves
from supervisor.fleet.ledger import Run, RunState
from supervisor.fleet.owner import goes_back
from supervisor.state.status import Reason, Status, VmState
from tests.support.small_store import AT, new

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 2**30
A = HostFacts(
    name="a",
    address="10.0.0.1:9022",
    seat="s",
    image="ab" * 32,
    tee={"sev-snp": 3},
    vms_free=4,
    memory_free_bytes=8 * GIB,
    vcpus_free=16,
    vm_memory_bytes=2 * GIB,
    vm_vcpus=4,
    labels={"zone": "north"},
)
QUEUED = Run(id="r", entry="a", needs=Needs(), epoch=0)
OWNED = QUEUED.claimed("b", 0)
REPEATS = attrs.evolve(OWNED, repeats=True)
SENT = OWNED.advanced("b", 1, RunState.SENT, "vm")


# --- facts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        (Needs(), ""),
        (Needs(tee="sev-snp", image="ab" * 32, memory_bytes=2 * GIB), ""),
        (Needs(labels={"zone": "north"}), ""),
        (Needs(tee="tdx"), "tee=tdx: it starts only sev-snp"),
        (Needs(image="cd" * 32), "image=cdcdcdcdcdcd: its image is abababababab"),
        (Needs(memory_bytes=4 * GIB), "memory=4096M: its VMs have 2048M"),
        (Needs(labels={"zone": "south"}), "label zone=south: it has zone=north"),
        (Needs(labels={"rack": "7"}), "label rack=7: it has no rack"),
        (Needs(template=True), "template: it makes none"),
    ],
)
def test_what_a_host_lacks(needs: Needs, missing: str) -> None:
    assert ", ".join(lacks(A, needs)) == missing


def test_there_are_no_more_kinds_of_runs_than_of_hosts() -> None:
    b = attrs.evolve(A, name="b", vm_memory_bytes=4 * GIB, labels={"zone": "north", "rack": "7"})
    hosts = [A, b]
    small = {narrowed(Needs(memory_bytes=size), hosts).kind for size in range(1, 2 * GIB, GIB // 3)}
    assert len(small) == 1
    assert narrowed(Needs(labels={"zone": "north"}), hosts).kind in small
    # What only one of them has comes with all else that it has.
    alike = [
        Needs(memory_bytes=3 * GIB),
        Needs(labels={"rack": "7"}),
        Needs(labels={"rack": "7", "zone": "north"}, memory_bytes=1),
    ]
    assert len({narrowed(needs, hosts).kind for needs in alike}) == 1
    for needs in alike:
        assert not lacks(b, narrowed(needs, hosts))
        assert lacks(A, narrowed(needs, hosts))
    assert narrowed(Needs(tee="tdx"), hosts) == Needs(tee="tdx")


def test_who_may_not_see_hosts_is_told_of_none() -> None:
    needs = Needs(tee="tdx", labels={"zone": "south"})
    assert nobody_serves([A], needs, tells_hosts=True).startswith("a: tee=tdx")
    assert nobody_serves([A], needs, tells_hosts=False) == "none has tee=tdx, label zone=south"
    assert nobody_serves([A], Needs(), tells_hosts=False) == ""


@pytest.mark.parametrize(
    ("changes", "room"),
    [
        ({}, 4),
        ({"vms_free": 3}, 3),
        ({"memory_free_bytes": 5 * GIB}, 2),
        ({"vcpus_free": 7}, 1),
        ({"vcpus_free": 0}, 0),
        ({"vm_memory_bytes": 0}, 0),
    ],
)
def test_room(changes: dict[str, int], room: int) -> None:
    assert attrs.evolve(A, **changes).room == room  # type: ignore[arg-type]


def test_others_are_told_of_steps_and_not_of_each_run() -> None:
    assert attrs.evolve(A, vms_free=0).step == A.step
    assert attrs.evolve(A, draining=True).step != A.step
    assert attrs.evolve(A, template=not A.template).step != A.step
    assert attrs.evolve(A, tee={"sev-snp": 3, "tdx": 1}).step != A.step
    assert attrs.evolve(A, tee={"tdx": 0}).step == attrs.evolve(A, tee={"tdx": 1}).step


def test_facts_and_needs_are_read_as_they_were_written() -> None:
    assert HostFacts.decode(A.encode()) == A
    needs = Needs(tee="tdx", labels={"a": "b"})
    assert Needs.decode(needs.encode()) == needs
    assert needs.kind == Needs.decode(needs.encode()).kind != Needs().kind
    # Of a later version: what is not known is left out.
    assert Needs.decode(b'{"tee": "tdx", "new": 1}') == Needs(tee="tdx")


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{}", b'{"name": {}}', b"\xff", b"null"])
def test_facts_that_are_none(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        HostFacts.decode(content)
    with pytest.raises(ValueError, match=r".*"):
        Run.decode(content)


# --- the ledger -----------------------------------------------------------------------------


def test_the_way_of_a_run() -> None:
    assert (OWNED.owner, OWNED.epoch, OWNED.state) == ("b", 1, RunState.OWNED)
    answered = SENT.advanced("b", 1, RunState.ANSWERED, "vm")
    assert answered.vm == "vm"
    assert Run.decode(answered.encode()) == answered
    # Told twice, because the first answer was lost.
    assert answered.advanced("b", 1, RunState.ANSWERED, "vm") == answered
    assert OWNED.claimed("b", 0) == OWNED


FORBIDDEN: list[Callable[[], Run]] = [
    lambda: OWNED.claimed("c", 0),
    lambda: QUEUED.claimed("c", 1),
    lambda: OWNED.claimed("b", 1),
    lambda: OWNED.given_up(),
    lambda: OWNED.advanced("c", 1, RunState.SENT, ""),
    lambda: OWNED.advanced("b", 2, RunState.SENT, ""),
    lambda: SENT.handed_back("b", 1),
    lambda: OWNED.handed_back("c", 1),
    lambda: SENT.without_owner("a").advanced("b", 1, RunState.ANSWERED, "vm"),
    lambda: OWNED.without_owner("a").advanced("b", 1, RunState.SENT, "vm"),
    lambda: SENT.advanced("b", 1, RunState.ANSWERED, "vm").advanced("b", 1, RunState.SENT, "vm"),
    lambda: SENT.advanced("b", 1, RunState.SENT, "another"),
    lambda: SENT.advanced("b", 1, RunState.FAILED, "another"),
    lambda: SENT.advanced("b", 1, RunState.GIVEN_UP, ""),
    lambda: OWNED.entered("c", "a"),
    lambda: QUEUED.entered("c", "d"),
    lambda: OWNED.revived("a"),
    lambda: QUEUED.given_up().revived("c"),
    lambda: SENT.taken_back("a", "b", 1),
    lambda: OWNED.taken_back("c", "b", 1),
    lambda: OWNED.taken_back("a", "c", 1),
    lambda: OWNED.taken_back("a", "b", 2),
    lambda: OWNED.taken().taken_back("a", "b", 1),
    lambda: attrs.evolve(OWNED, vm="vm").taken_back("a", "b", 1),
    lambda: QUEUED.taken_back("c", "b", 1),
    lambda: OWNED.taken_back("a", "b", 1).advanced("b", 1, RunState.SENT, "vm"),
    lambda: SENT.replaced(),
    lambda: REPEATS.advanced("b", 1, RunState.GIVEN_UP, "").advanced("b", 1, RunState.SENT, "vm"),
    lambda: REPEATS.removed("b", 1).advanced("b", 1, RunState.SENT, "vm"),
    lambda: (
        REPEATS.advanced("b", 1, RunState.GIVEN_UP, "")
        .replaced()
        .advanced("b", 1, RunState.SENT, "vm")
    ),
    lambda: QUEUED.given_up().replaced().revived("a"),
]


@pytest.mark.parametrize("step", FORBIDDEN, ids=range(len(FORBIDDEN)))
def test_steps_that_are_not_allowed(step: Callable[[], Run]) -> None:
    with pytest.raises(NotOwner):
        step()


def test_a_run_that_was_not_sent_to_its_owner_is_taken_back() -> None:
    back = OWNED.taken_back("a", "b", 1)
    assert (back.state, back.owner, back.epoch) == (RunState.QUEUED, "", 2)
    assert back.taken_back("a", "b", 1) == back  # the answer to the first was lost
    assert QUEUED.taken_back("a", "b", 1) == QUEUED  # that host did not take it
    assert back.given_up().state is RunState.GIVEN_UP


def test_what_becomes_of_a_run_whose_owner_is_lost() -> None:
    moved = OWNED.without_owner("c")
    assert (moved.state, moved.owner, moved.epoch, moved.entry) == (RunState.QUEUED, "", 2, "c")
    assert moved.claimed("d", 2).epoch == 3
    assert SENT.without_owner("a").state is RunState.INTERRUPTED
    assert attrs.evolve(SENT, repeats=True).without_owner("a").state is RunState.QUEUED
    stays = attrs.evolve(OWNED, moves=False)
    assert stays.without_owner("a") == stays
    assert attrs.evolve(SENT, repeats=True, moves=False).without_owner("a").state.is_final
    assert QUEUED.without_owner("a") == QUEUED


@pytest.mark.parametrize("repeats", [False, True])
def test_a_run_that_ends_each_host_ends_four_at_most(repeats: bool) -> None:
    run = attrs.evolve(QUEUED, repeats=repeats)
    for lost in range(3):
        owned = run.claimed("b", run.epoch)
        if repeats:
            owned = owned.advanced("b", owned.epoch, RunState.SENT, "vm")
        run = owned.without_owner("a")
        assert (run.state, run.lost) == (RunState.QUEUED, lost + 1)
        run = run.claimed("b", run.epoch).handed_back("b", run.epoch + 1)  # that is no loss
    last = run.claimed("b", run.epoch)
    assert last.without_owner("a").state is RunState.INTERRUPTED


@pytest.mark.parametrize("state", [RunState.INTERRUPTED, RunState.FAILED])
def test_an_answer_that_its_host_could_not_keep(state: RunState) -> None:
    """Its VM was ended before it was on the disk: what its caller is told, the record says."""
    answered = SENT.advanced("b", 1, RunState.ANSWERED, "vm")
    assert answered.advanced("b", 1, state, "vm").state is state


def test_a_run_that_was_given_up_though_its_caller_waits() -> None:
    given_up = OWNED.advanced("b", 1, RunState.GIVEN_UP, "")
    assert given_up.revived("a").epoch == 2
    with pytest.raises(NotOwner):
        given_up.revived("a").advanced("b", 1, RunState.SENT, "")


def test_an_accepted_run_is_given_up_by_nobody() -> None:
    accepted = OWNED.taken()
    assert (accepted.state, accepted.epoch, accepted.accepted) == (RunState.OWNED, 1, True)
    queued = accepted.advanced("b", 1, RunState.GIVEN_UP, "")
    assert queued == accepted.handed_back("b", 1)
    with pytest.raises(NotOwner):
        queued.given_up()
    with pytest.raises(NotOwner):
        queued.replaced()
    assert OWNED.advanced("b", 1, RunState.GIVEN_UP, "").taken() == queued
    # Nobody was told yet of what its caller has left.
    left = QUEUED.given_up()
    assert left.taken() == left


def test_a_run_that_was_posted_again_elsewhere() -> None:
    assert QUEUED.entered("c", "a").entry == "c"
    assert QUEUED.entered("a", "x") == QUEUED


# --- the files ------------------------------------------------------------------------------


def test_files_of_members_stay_when_another_one_joins(tmp_path: Path) -> None:
    a, b, c = (Member(name, Address(f"127.0.0.{at}", 9022)) for at, name in enumerate("abc", 1))
    made = authority.make(tmp_path, [a, b], installed=tmp_path, store=tmp_path)
    names = {name: {file.name for file in files} for name, files in made.items()}
    always = {"ca.pem", "cert.pem", "key.pem", "fleet.env"}
    assert names == {"a": always | {"nats.conf"}, "b": always}
    assert (tmp_path / "a" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "a" / "ca-key.pem").exists()
    again = authority.make(tmp_path, [a, b], installed=tmp_path, store=tmp_path)
    assert again == {"a": [], "b": []}
    more = authority.make(tmp_path, [a, b, c], installed=tmp_path, store=tmp_path)
    assert {file.name for file in more["a"]} == {"fleet.env", "nats.conf"}
    assert {file.name for file in more["c"]} == always | {"nats.conf"}
    moved = attrs.evolve(b, address=Address("127.0.0.9", 9022))
    other = authority.make(tmp_path, [a, moved, c], installed=tmp_path, store=tmp_path)
    assert {file.name for file in other["b"]} >= {"cert.pem", "key.pem"}


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a" * 64, "a b", "a>"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        authority.make(
            tmp_path,
            [Member(name, Address("127.0.0.1", 1))],
            installed=tmp_path,
            store=tmp_path,
        )


def test_members_that_are_alike(tmp_path: Path) -> None:
    a, at = Member("a", Address("127.0.0.1", 1)), tmp_path
    for other in (Member("a", Address("127.0.0.2", 1)), Member("b", a.address)):
        with pytest.raises(InvalidRequest, match="two members"):
            authority.make(tmp_path, [a, other], installed=at, store=at)


@pytest.mark.parametrize(
    ("reason", "goes"),
    [
        (Reason.LAUNCH_INTERRUPTED, True),
        (Reason.EXIT_UNKNOWN, True),
        (Reason.HOST_REBOOT, True),
        ("exit:1", False),
        (Reason.OUT_OF_MEMORY, False),
    ],
)
def test_whose_runs_go_on_elsewhere(reason: str, goes: bool) -> None:
    """Of VMs that ended while no supervisor ran; the record knows whether an agent has had it."""
    ended = attrs.evolve(new(), status=Status(VmState.CRASHED, reason), ended_at=AT)
    assert goes_back(ended) is goes
