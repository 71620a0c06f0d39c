"""What a guest does before it is frozen, and what each copy does first of all."""

from __future__ import annotations

import fcntl
import gc
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest

from supervisor.agent.reference import clone
from supervisor.agent.reference import guest as real
from supervisor.agent.reference.clone import Clones, Renewal
from supervisor.agent.reference.guest import Guest
from supervisor.agent.reference.refusal import Refusal, StatusCode
from supervisor.agent.reference.service import Agent
from supervisor.pb import clone_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VM_ID = "7F0c5f3e-0000-4000-8000-0123456789ab"
MACHINE_ID = "7f0c5f3e000040008000" + "0123456789ab"
ENTROPY = bytes(range(32))
REFUSED = StatusCode.FAILED_PRECONDITION
NOW_NS = 1_700_000_000_123_456_789


def request(
    vm_id: str = VM_ID, hostname: str = "vm-7f0c", entropy: bytes = ENTROPY, ns: int = NOW_NS
) -> bytes:
    message = clone_pb2.RenewRequest(
        vm_id=vm_id, hostname=hostname, entropy=entropy, unix_time_ns=ns
    )
    return message.SerializeToString()


class StandIn(Guest):
    """Does nothing to this machine, and says what it was told to do."""

    def __init__(self, settled: bool = True, waits: bool = False) -> None:
        super().__init__()
        self.told: list[tuple[object, ...]] = []
        self.settled = settled
        self.waiting = waits
        self.fails: OSError | None = None

    def wait_until_settled(self, deadline: float) -> bool:
        assert deadline > time.monotonic()
        return self.settled

    def drop_caches(self) -> None:
        self.tell("drop_caches")

    def waits(self) -> bool:
        return self.waiting

    def have_it_wait(self) -> None:
        self.waiting = True

    def wait_no_more(self) -> None:
        self.waiting = False

    def set_clock(self, unix_time_ns: int) -> None:
        self.tell("set_clock", unix_time_ns)

    def add_entropy(self, entropy: bytes) -> None:
        self.tell("add_entropy", entropy)

    def rename(self, hostname: str, machine_id: str) -> None:
        self.tell("rename", hostname, machine_id)

    def tell(self, *what: object) -> None:
        if self.fails:
            raise self.fails
        self.told.append(what)


class World:
    def __init__(self, guest: StandIn) -> None:
        self.guest = guest
        self.agent = Agent(algorithm_timeout_s=1)
        self.clones = Clones(self.agent, guest)
        self.clones.agent_is_up.set()

    def run(self) -> bytes:
        return self.agent.call("Run", b"{}", lambda _: True)

    def code(self, method: str, message: bytes = b"") -> StatusCode:
        with pytest.raises(Refusal) as caught:
            {"prepare": self.clones.prepare, "renew": self.clones.renew}[method](message)
        return caught.value.code

    def refuses(self) -> bool:
        """Whether a call is refused because a renewal is waited for."""
        try:
            self.run()
        except Refusal as refusal:
            return (refusal.code, refusal.detail) == (REFUSED, clone.WAITS)
        return False


@pytest.fixture
def world() -> World:
    return World(StandIn())


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """What a Prepare keeps from the garbage collector would stay so for all tests after it."""
    yield
    gc.unfreeze()


def test_a_guest_waits_from_prepare_to_renew(world: World) -> None:
    world.clones.prepare(b"")
    assert world.guest.told == [("drop_caches",)]
    assert world.guest.waits()
    assert world.refuses()
    del world.guest.told[:]
    random.seed(1)
    expected = random.random()
    random.seed(1)
    world.clones.renew(request())
    assert random.random() != expected
    assert world.guest.told == [
        ("set_clock", NOW_NS),
        ("add_entropy", ENTROPY),
        ("rename", "vm-7f0c", MACHINE_ID),
    ]
    assert not world.guest.waits()
    assert world.run() == b"{}"


def test_prepare_may_be_repeated(world: World) -> None:
    world.clones.prepare(b"")
    world.clones.prepare(b"")
    assert world.guest.told == [("drop_caches",)]
    assert world.refuses()


def test_renew_is_for_once(world: World) -> None:
    assert world.code("renew", request()) is REFUSED
    world.clones.prepare(b"")
    world.clones.renew(request())
    done = len(world.guest.told)
    world.clones.renew(request(ns=NOW_NS + 1))  # by somebody who did not hear the answer
    assert len(world.guest.told) == done
    other = VM_ID.replace("7F", "00")
    assert world.code("renew", request(vm_id=other)) is REFUSED
    assert not world.refuses()


def test_a_copy_may_be_prepared_again(world: World) -> None:
    world.clones.prepare(b"")
    world.clones.renew(request())
    world.clones.prepare(b"")
    assert world.refuses()


def test_an_agent_in_use_is_not_copied(world: World) -> None:
    world.run()
    assert world.code("prepare") is REFUSED
    assert not world.refuses()


def test_a_call_under_way_is_not_copied(world: World) -> None:
    codes = []

    def meanwhile(*_: object) -> bytes:
        codes.append(world.code("prepare"))
        return b""

    world.agent._methods["Run"] = meanwhile
    world.run()
    assert codes == [REFUSED]


def test_a_refused_call_is_no_use(world: World) -> None:
    with pytest.raises(Refusal):
        world.agent.call("Run", b"{", lambda _: True)
    world.clones.prepare(b"")


def test_a_guest_that_does_not_settle_is_not_frozen() -> None:
    world = World(StandIn(settled=False))
    assert world.code("prepare") is StatusCode.DEADLINE_EXCEEDED
    assert not world.refuses()


def test_nor_is_one_whose_agent_is_not_all_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone, "SETTLE_TIMEOUT_S", 0)
    world.clones.agent_is_up.clear()
    assert world.code("prepare") is StatusCode.DEADLINE_EXCEEDED
    assert not world.refuses()


FAILURE = PermissionError(1, "Operation not permitted")


def test_a_guest_that_cannot_be_prepared_answers_on(world: World) -> None:
    world.guest.fails = FAILURE
    assert world.code("prepare") is StatusCode.INTERNAL
    assert not world.refuses()


def test_a_guest_that_cannot_be_renewed_waits_on(world: World) -> None:
    world.clones.prepare(b"")
    world.guest.fails = FAILURE
    assert world.code("renew", request()) is StatusCode.INTERNAL
    assert world.refuses()
    world.guest.fails = None
    world.clones.renew(request())
    assert not world.refuses()


def test_an_agent_that_was_started_again_still_waits() -> None:
    world = World(StandIn(waits=True))
    assert world.refuses()
    world.clones.renew(request())
    assert not world.refuses()


BAD = [
    request(vm_id=""),
    request(vm_id=MACHINE_ID),
    request(vm_id=VM_ID + "0"),
    request(hostname=""),
    request(hostname="two words"),
    request(hostname="line\n"),
    request(hostname="-"),
    request(hostname="a" * 65),
    request(entropy=b""),
    request(entropy=ENTROPY[1:]),
    request(ns=0),
    request(ns=-1),
    b"\x0a",
]


@pytest.mark.parametrize("message", BAD)
def test_after_a_bad_renewal_a_guest_waits_for_a_good_one(world: World, message: bytes) -> None:
    world.clones.prepare(b"")
    del world.guest.told[:]
    assert world.code("renew", message) is StatusCode.INVALID_ARGUMENT
    assert world.guest.told == []
    assert world.refuses()
    world.clones.renew(request())


def test_a_renewal_is_read_from_a_message() -> None:
    assert Renewal.decode(request()) == Renewal(MACHINE_ID, "vm-7f0c", ENTROPY, NOW_NS)
    assert Renewal.decode(request(hostname="a" * 64)).hostname == "a" * 64
    assert Renewal.decode(request(hostname="a.example")).hostname == "a.example"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("dev", "etc", "proc/sys/vm", "run"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_guest_has_settled_when_init_says_so(root: Path) -> None:
    guest = Guest(str(root))
    assert not guest.wait_until_settled(time.monotonic())
    (root / "run/address").touch()
    assert not guest.wait_until_settled(time.monotonic())
    (root / "run/loaded").touch()
    assert guest.wait_until_settled(time.monotonic())


def test_who_waits_is_on_record(root: Path) -> None:
    guest = Guest(str(root))
    assert not guest.waits()
    guest.have_it_wait()
    assert Guest(str(root)).waits()
    guest.wait_no_more()
    assert not Guest(str(root)).waits()


@pytest.mark.parametrize("ready", [False, True])
def test_names_are_written_down(root: Path, monkeypatch: pytest.MonkeyPatch, ready: bool) -> None:
    names: list[str] = []
    monkeypatch.setattr(socket, "sethostname", names.append)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 a-long-name\n")
    guest = Guest(str(root))
    if ready:
        guest.have_it_wait()
    guest.rename("vm", MACHINE_ID)
    assert names == ["vm"]
    assert (root / "etc/hostname").read_text() == "vm\n"
    assert (root / "etc/machine-id").read_text() == f"{MACHINE_ID}\n"
    assert (root / "etc/hosts").read_text().endswith("::1 localhost\n127.0.1.1 vm\n")
    guest.rename("v", MACHINE_ID)
    assert (root / "etc/hostname").read_text() == "v\n"


def test_entropy_is_given_and_credited(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _, *call: calls.append(call))
    Guest(str(root)).add_entropy(ENTROPY)
    pool = (256).to_bytes(4, "little") + (32).to_bytes(4, "little") + ENTROPY
    assert calls == [(0x40085203, pool), (0x5207,)]
    assert (real.RNDADDENTROPY, real.RNDRESEEDCRNG) == (0x40085203, 0x5207)


def test_caches_are_dropped_and_memory_compacted(root: Path) -> None:
    Guest(str(root)).drop_caches()
    assert (root / "proc/sys/vm/drop_caches").read_text() == "3"
    assert (root / "proc/sys/vm/compact_memory").read_text() == "1"


def test_a_guest_that_is_being_prepared_keeps_no_renewal_waiting(world: World) -> None:
    with world.clones._lock:
        assert world.code("renew", request()) is REFUSED
