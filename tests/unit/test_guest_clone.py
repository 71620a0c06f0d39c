"""What a guest does before it is frozen, and what each copy does first of all."""

from __future__ import annotations

import gc
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.agent.reference import clone
from supervisor.agent.reference.access import Access
from supervisor.agent.reference.clone import Clones, decode
from supervisor.agent.reference.guest import Guest
from supervisor.agent.reference.refusal import Refusal, StatusCode
from supervisor.agent.reference.renewal import Renewer
from supervisor.agent.reference.service import Agent
from supervisor.pb import clone_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from supervisor.agent.reference.line import Line

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


class StandInRenewer(Renewer):
    """One that has renewed the guest, unless it is told otherwise."""

    def __init__(self) -> None:
        self.word = b"r"

    def _read(self, timeout_s: float, most: int = 2) -> bytes:
        assert 0 <= timeout_s < 60
        self._word = self.word
        return self.word


class StandIn(Guest):
    """Does nothing to this machine, and says what it was told to do."""

    def __init__(self, settled: bool = True, waits: bool = False) -> None:
        self.renewer = StandInRenewer()
        super().__init__()
        self.told: list[tuple[Any, ...]] = []
        self.settled = settled
        self.waiting = waits
        self.fails: OSError | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def wait_until_settled(self, deadline: float) -> bool:
        assert deadline > time.monotonic()
        return self.settled

    def open_line(self, answer: Callable[[bytes], tuple[bytes, bool]]) -> Line | None:
        self.meanwhile()
        return None

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

    def start_renewer(self, line: Line | None = None) -> Renewer:
        self.tell("start_renewer")
        return self.renewer

    def machine_id(self) -> str:
        return MACHINE_ID

    def hardware_clock_s(self) -> int:
        return NOW_NS // 10**9

    def has_clock(self, unix_time_ns: int) -> bool:
        """Whether the clock was set once, to this time and what went by since it was told."""
        set_to = [what[1] for what in self.told if what[0] == "set_clock"]
        return len(set_to) == 1 and 0 <= set_to[0] - unix_time_ns < 60 * 10**9

    def tell(self, *what: Any) -> None:
        if self.fails:
            raise self.fails
        self.told.append(what)


class World:
    def __init__(self, guest: StandIn, access: Access | None = None) -> None:
        self.guest = guest
        self.agent = Agent(algorithm_timeout_s=1)
        self.clones = Clones(self.agent, guest, access or Access())
        self.clones.agent_is_up.set()

    def run(self) -> bytes:
        return self.agent.call("Run", b"{}", lambda _: True)

    def first(
        self, ns: int = NOW_NS, computation: bytes = b"{}", *, open_to_all: bool = False
    ) -> clone_pb2.FirstAnswer:
        """The answer to a call that is the last."""
        call = clone_pb2.FirstCall(
            unix_time_ns=ns, open_to_all=open_to_all, computation=computation
        )
        answer, is_followed = self.clones.first_call(call.SerializeToString())
        assert not is_followed
        return clone_pb2.FirstAnswer.FromString(answer)

    def rehearse(self, ns: int = NOW_NS) -> tuple[bytes, bool]:
        call = clone_pb2.FirstCall(unix_time_ns=ns, rehearsal=True)
        return self.clones.first_call(call.SerializeToString())

    def code(self, method: str, message: bytes = b"") -> StatusCode:
        with pytest.raises(Refusal) as caught:
            {"prepare": self.clones.prepare, "renew": self.clones.renew}[method](message)
        return caught.value.code

    def why_refused(self) -> str:
        """Why a call is refused; empty if it is not."""
        try:
            self.run()
        except Refusal as refusal:
            return refusal.detail if refusal.code is REFUSED else refusal.code.name
        return ""

    def refuses(self) -> bool:
        """Whether a call is refused because the guest is a copy that was not let go."""
        return self.why_refused() in (clone.WAITS_FOR_TIME, self.not_renewed())

    def not_renewed(self) -> str:
        return f"{clone.WAITS}: its host gave it no identity in {clone.RENEWAL_TIMEOUT_S:g} s"


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
    assert world.guest.told == [("start_renewer",), ("drop_caches",)]
    assert world.guest.waits()
    assert world.refuses()
    del world.guest.told[:]
    random.seed(1)
    expected = random.random()
    random.seed(1)
    world.clones.renew(request())
    assert random.random() != expected
    assert world.guest.has_clock(NOW_NS)
    assert not world.guest.waits()
    assert world.run() == b"{}"


def test_the_first_call_of_a_copy_may_be_the_computation(world: World) -> None:
    world.clones.prepare(b"")
    world.guest.renewer.word = b""
    assert world.first().detail == world.not_renewed()
    world.guest.renewer.word = b"r"
    assert world.first() == clone_pb2.FirstAnswer(computation=b"{}")
    assert world.guest.has_clock(NOW_NS)
    assert world.first(ns=1).detail == clone.NO_COPY
    assert world.run() == b"{}"
    assert world.guest.has_clock(NOW_NS)
    world.clones.renew(request())  # by somebody who does not know that it is done
    assert world.code("renew", request(vm_id=VM_ID.replace("7F", "00"))) is REFUSED


def test_a_copy_that_rehearsed_is_let_go_and_gets_its_computation_later(world: World) -> None:
    world.clones.prepare(b"")
    assert world.rehearse() == (b"", True)
    assert world.guest.has_clock(NOW_NS)
    assert not bool(world.agent.computation)
    assert world.run() == b"{}"
    assert world.rehearse(ns=1) == (b"", True)
    assert world.first(ns=1, computation=b'{"id": "7"}').code == 0
    assert world.agent.computation == b'{"id":"7"}'
    assert world.guest.has_clock(NOW_NS)


def test_a_copy_that_is_not_renewed_does_not_rehearse(world: World) -> None:
    world.clones.prepare(b"")
    world.guest.renewer.word = b""
    answer, is_followed = world.rehearse()
    assert clone_pb2.FirstAnswer.FromString(answer).code == REFUSED.value
    assert not is_followed
    assert world.refuses()


OTHER_TIMES = [1, NOW_NS + 6 * 10**9, 4 * 10**18, 2**63 - 1]


@pytest.mark.parametrize("told", [0, -1, *OTHER_TIMES])
def test_a_copy_that_is_told_no_time_waits_on(world: World, told: int) -> None:
    world.clones.prepare(b"")
    assert world.first(ns=told).detail == clone.WAITS_FOR_TIME
    assert world.why_refused() == clone.WAITS_FOR_TIME


def test_a_bad_time_is_forgotten_for_the_next(world: World) -> None:
    world.clones.prepare(b"")
    world.first(ns=OTHER_TIMES[1])
    assert world.first().computation == b"{}"
    assert world.guest.has_clock(NOW_NS)


def test_the_first_answer_may_be_a_refusal(world: World) -> None:
    world.clones.prepare(b"")
    answer = world.first(computation=b"[]")
    assert answer.code == StatusCode.INVALID_ARGUMENT.value
    assert "not a JSON object" in answer.detail
    assert world.run() == b"{}"  # it has its time all the same


def test_the_first_call_may_open_the_agent_to_all(tmp_path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT
    access = Access(os.open(tmp_path / "hash", flags), os.open(tmp_path / "open", flags))
    world = World(StandIn(), access)
    world.clones.prepare(b"")
    assert not access.admits({})
    assert world.first(open_to_all=True).code == 0
    assert access.admits({})


def test_a_first_call_that_is_none_is_refused(world: World) -> None:
    assert world.first().detail == clone.NO_COPY
    world.clones.prepare(b"")
    answer = clone_pb2.FirstAnswer.FromString(world.clones.first_call(b"\xff")[0])
    assert answer.code == StatusCode.INVALID_ARGUMENT.value
    assert world.why_refused() == clone.WAITS_FOR_TIME


def test_a_fault_in_the_first_call_is_its_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.clones.prepare(b"")

    def fail(*_: object) -> bytes:
        raise Refusal(StatusCode.UNKNOWN, "\ud800" + 4000 * "\u00e9")

    monkeypatch.setattr(world.agent, "call", lambda *_: 1 / 0)
    answer = world.first()
    assert (answer.code, "ZeroDivisionError" in answer.detail) == (2, True)
    # What is no UTF-8 or too long is made to fit, as over gRPC.
    monkeypatch.setattr(world.agent, "call", fail)
    assert world.first().detail == "?" + 999 * "\u00e9"


def test_who_renews_the_wrong_vm_sets_no_clock(world: World) -> None:
    world.clones.prepare(b"")
    assert world.code("renew", request(vm_id=VM_ID.replace("7F", "00"))) is REFUSED
    assert world.why_refused() == clone.WAITS_FOR_TIME


def test_why_a_guest_is_not_renewed_is_told(world: World) -> None:
    world.clones.prepare(b"")
    world.guest.renewer.word = b"e\x01"
    assert world.why_refused() == f"{clone.WAITS}: the kernel takes no entropy: EPERM"
    assert world.code("renew", request()) is StatusCode.INTERNAL


def test_a_copy_is_renewed_as_the_vm_that_its_host_says(world: World) -> None:
    world.clones.prepare(b"")
    assert world.code("renew", request(vm_id=VM_ID.replace("7F", "00"))) is REFUSED
    assert world.guest.waits()
    world.clones.renew(request())


def test_prepare_may_be_repeated(world: World) -> None:
    world.clones.prepare(b"")
    world.clones.prepare(b"")
    assert world.guest.told == [("start_renewer",), ("drop_caches",)]
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
    assert "cannot be let go" in world.why_refused()
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
    assert decode(request()) == (MACHINE_ID, NOW_NS)


def test_a_guest_that_is_being_prepared_keeps_no_call_waiting(world: World) -> None:
    told: list[object] = []

    def meanwhile() -> None:
        told.append(world.why_refused())
        told.append(world.code("renew", request()))

    world.guest.meanwhile = meanwhile
    world.clones.prepare(b"")
    assert told == [clone.PREPARING, REFUSED]
