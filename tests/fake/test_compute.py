"""The reference agent's own services, asked by grpcio: uploads, outcomes, its status."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import grpc
import psutil
import pytest

from supervisor.agent.reference.refusal import Refusal, StatusCode
from supervisor.agent.reference.store import DATASET, Store
from supervisor.pb import (
    agent_pb2,
    agent_pb2_grpc,
    compute_pb2,
    compute_pb2_grpc,
    guest_pb2,
    guest_pb2_grpc,
)
from supervisor.pb.compute_pb2 import Outcome, PrintedResponse, UploadRequest
from supervisor.pb.guest_pb2 import StatusResponse
from tests.support.agent_process import WRITE, Running, running_agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE_S = 120
MIB = 1 << 20
ALGORITHM_, DATASET_ = UploadRequest.KIND_ALGORITHM, UploadRequest.KIND_DATASET
#: All data sets, in the order of their numbers.
READ_ALL = b"""b"|".join(
    open(f"{os.environ['DATASET_DIR']}/{name}", "rb").read()
    for name in sorted(os.listdir(os.environ["DATASET_DIR"]))
)"""
#: Tells by the pipe that is its data set that it runs, and then waits for ever.
HANG = b"import signal, sys\nopen(sys.argv[1], 'w').close()\nsignal.pause()"


class World(NamedTuple):
    """A running agent, and its services."""

    running: Running
    agent: agent_pb2_grpc.AgentServiceStub
    compute: compute_pb2_grpc.ComputeServiceStub
    guest: guest_pb2_grpc.GuestServiceStub

    def upload(
        self,
        kind: UploadRequest.Kind,
        *chunks: bytes,
        size: int = 0,
        sha256: str = "",
        number: int = 0,
    ) -> compute_pb2.UploadResponse:
        first = UploadRequest(kind=kind, size=size, sha256=sha256, number=number)
        requests = [first, *(UploadRequest(chunk=chunk) for chunk in chunks)]
        answer: compute_pb2.UploadResponse
        answer = self.compute.Upload(iter(requests), timeout=PATIENCE_S)
        return answer

    def have(self, algorithm: bytes, dataset: bytes = b"x") -> None:
        self.upload(ALGORITHM_, algorithm)
        self.upload(DATASET_, dataset)

    def run(self, time_limit_s: int = 0, memory_limit_mib: int = 0) -> tuple[Outcome, bytes]:
        request = compute_pb2.ComputeRequest(
            time_limit_s=time_limit_s, memory_limit_mib=memory_limit_mib
        )
        first, *rest = self.compute.Compute(request, timeout=PATIENCE_S)
        return first.outcome, b"".join(part.chunk for part in rest)

    def status(self) -> StatusResponse:
        answer: StatusResponse
        answer = self.guest.Status(guest_pb2.StatusRequest(), timeout=PATIENCE_S)
        return answer

    def until(self, condition: Callable[[StatusResponse], bool]) -> StatusResponse:
        """The first status of which this is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, status
        return status

    def printed(self, run: int = 0, position: int = 0) -> PrintedResponse:
        request = compute_pb2.PrintedRequest(run=run, position=position)
        answer: PrintedResponse = self.compute.Printed(request, timeout=PATIENCE_S)
        return answer

    def last(self) -> Outcome:
        answer: Outcome
        answer = self.compute.LastOutcome(compute_pb2.LastOutcomeRequest(), timeout=PATIENCE_S)
        return answer


@pytest.fixture
def world() -> Iterator[World]:
    with running_agent() as running:
        channel = running.channel
        yield World(
            running,
            agent_pb2_grpc.AgentServiceStub(channel),
            compute_pb2_grpc.ComputeServiceStub(channel),
            guest_pb2_grpc.GuestServiceStub(channel),
        )


def refused(act: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        act()
    return caught.value.code(), caught.value.details() or ""


def test_upload_is_told_by_its_hash_and_computed_with(world: World) -> None:
    content = os.urandom(3 * MIB + 1)
    chunks = [content[at : at + MIB] for at in range(0, len(content), MIB)]
    digest = hashlib.sha256(content).hexdigest()
    answer = world.upload(DATASET_, *chunks, size=len(content), sha256=digest.upper())
    assert (answer.id, answer.size) == (digest, len(content))
    read = b"open(os.environ['DATASET_FILE'], 'rb').read()"
    world.upload(ALGORITHM_, b"import os", WRITE % read)
    outcome, result = world.run()
    assert outcome.state == Outcome.STATE_SUCCEEDED
    assert (list(outcome.dataset_ids), outcome.result_sha256) == ([digest], digest)
    assert (outcome.result_size, outcome.error) == (len(content), "")
    assert result == content


def test_large_upload_and_result_are_not_held_in_memory(world: World) -> None:
    agent = psutil.Process(world.running.process.pid)
    chunk = bytes(MIB)
    before = agent.memory_info().rss
    world.upload(DATASET_, *[chunk] * 96)
    world.upload(ALGORITHM_, WRITE % b"bytes(96 << 20)")
    outcome, result = world.run()
    assert (outcome.result_size, len(result)) == (96 * MIB, 96 * MIB)
    assert agent.memory_info().rss - before < 48 * MIB


def test_empty_data_set_is_one(world: World) -> None:
    world.have(WRITE % b"repr(sys.argv[1]).encode()", b"")
    assert world.run()[1] == b"''"


@pytest.mark.parametrize(
    ("requests", "code", "told"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "at least one message"),
        ([UploadRequest(chunk=b"x")], grpc.StatusCode.INVALID_ARGUMENT, "tells the kind"),
        (
            [UploadRequest(kind=DATASET_, size=2, chunk=b"x")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "1 bytes of dataset came, 2 were announced",
        ),
        (
            [UploadRequest(kind=DATASET_, sha256="00", chunk=b"x")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "00 was announced",
        ),
        (
            [UploadRequest(kind=DATASET_), UploadRequest(kind=DATASET_, chunk=b"x")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "only the first message",
        ),
        (
            [UploadRequest(kind=DATASET_, chunk=bytes(MIB + 1))],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "a chunk has 1048576 bytes at most",
        ),
        (
            [UploadRequest(kind=DATASET_, chunk=bytes(2 * MIB))],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "a message has",
        ),
        (
            [UploadRequest(kind=DATASET_, size=1 << 60)],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "1152921504606846976 bytes were announced",
        ),
        (
            [UploadRequest(kind=DATASET_, number=64)],
            grpc.StatusCode.INVALID_ARGUMENT,
            "numbers below 64",
        ),
        (
            [UploadRequest(kind=ALGORITHM_, number=1)],
            grpc.StatusCode.INVALID_ARGUMENT,
            "tells the kind",
        ),
    ],
)
def test_upload_that_is_refused_changes_nothing(
    world: World, requests: list[UploadRequest], code: grpc.StatusCode, told: str
) -> None:
    world.have(WRITE % b"sys.argv[1].encode()", b"the one before")
    actual, detail = refused(lambda: world.compute.Upload(iter(requests), timeout=PATIENCE_S))
    assert actual is code
    assert told in detail
    assert list(world.status().uploads) == []
    assert world.run()[1] == b"the one before"


def test_many_data_sets(world: World) -> None:
    world.have(b"import os\n" + WRITE % READ_ALL, b"first")
    world.upload(DATASET_, b"third", number=2)
    code, told = refused(lambda: world.run())
    assert (code, told) == (grpc.StatusCode.FAILED_PRECONDITION, "there is no dataset 1 yet")
    world.upload(DATASET_, b"second", number=1)
    outcome, result = world.run()
    assert result == b"first|second|third"
    assert list(outcome.dataset_ids) == [
        hashlib.sha256(one).hexdigest() for one in (b"first", b"second", b"third")
    ]


def test_upload_that_does_not_fit_is_refused_at_once_with_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = Store()
    store.put(DATASET, b"0123456789")
    room = SimpleNamespace(f_bavail=2, f_frsize=4)
    monkeypatch.setattr("supervisor.agent.reference.store.os.statvfs", lambda _: room)
    store.put(DATASET, b"01234567")
    with pytest.raises(Refusal) as caught:
        store.begin(DATASET, 9)
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.detail == (
        "the dataset does not fit: the agent's machine has no more room for files:"
        " 9 bytes were announced, 8 bytes were free for it;"
        " 8 bytes are the dataset before, kept until the next is whole;"
        " raise MANAGER_QEMU_MEMORY_SIZE"
    )
    assert store.arriving == []
    store.close()


def test_caller_who_leaves_takes_the_upload_along(world: World) -> None:
    world.have(WRITE % b"sys.argv[1].encode()", b"the one before")
    begun = [UploadRequest(kind=DATASET_, size=5, chunk=b"the")]
    never = threading.Event()

    def requests() -> Iterator[UploadRequest]:
        yield from begun
        never.wait()

    call = world.compute.Upload.future(requests())
    status = world.until(lambda status: bool(status.uploads))
    upload = status.uploads[0]
    assert (upload.kind, upload.received_bytes, upload.size) == ("dataset", 3, 5)
    call.cancel()
    never.set()
    world.until(lambda status: not status.uploads)
    assert world.run()[1] == b"the one before"


def test_what_was_printed_is_told(world: World) -> None:
    world.have(b"import sys\nprint('out')\nprint('err', file=sys.stderr)" + WRITE % b"b'x'")
    outcome, result = world.run()
    assert (outcome.stdout.tail, outcome.stderr.tail, result) == (b"out\n", b"err\n", b"x")
    assert world.last() == outcome


def test_of_much_that_was_printed_the_last_is_told(world: World) -> None:
    world.have(b"print('x' * 1_000_000 + 'end', end='')\n1 / 0")
    outcome, _ = world.run()
    assert outcome.stdout.tail == b"x" * (64 * 1024 - 3) + b"end"
    assert outcome.stdout.dropped_bytes == 1_000_003 - 64 * 1024
    assert (outcome.state, outcome.exit_status) == (Outcome.STATE_FAILED, 1)
    assert outcome.error == "the algorithm ended with status 1"
    assert b"ZeroDivisionError" in outcome.stderr.tail


def test_what_is_printed_is_told_while_it_runs(world: World, tmp_path: Path) -> None:
    assert world.printed() == PrintedResponse()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    world.have(b"import os\nos.write(1, b'one ')\nos.write(2, b'two')\n" + HANG, bytes(pipe))
    running = world.compute.Compute(compute_pb2.ComputeRequest())
    pipe.read_bytes()
    deadline = time.monotonic() + PATIENCE_S
    while (told := world.printed()).position < 7:
        assert time.monotonic() < deadline, told
    assert told in [
        PrintedResponse(run=1, position=7, data=data) for data in (b"one two", b"twoone ")
    ]
    assert world.printed(1, 4) == PrintedResponse(run=1, position=7, data=told.data[4:])
    assert world.printed(1, 7) == world.printed(1, 99) == PrintedResponse(run=1, position=7)
    running.cancel()
    world.have(b"print('three' + 'x' * 1_000_000, end='')")
    world.run()
    told = world.printed(1, 7)
    assert (told.run, told.position, told.data) == (2, 1_000_005, b"x" * 64 * 1024)


def test_result_of_an_algorithm_that_failed_is_not_told(world: World) -> None:
    world.have(WRITE % b"b'x'" + b"\nimport os\nos.kill(os.getpid(), 11)")
    outcome, result = world.run()
    assert (outcome.state, outcome.exit_status, result) == (Outcome.STATE_FAILED, -11, b"")
    assert outcome.error == "the algorithm was ended by signal 11"
    assert (outcome.result_size, outcome.result_sha256) == (0, "")


@pytest.mark.parametrize("program", [b"import time\ntime.sleep(3600)", b"while True: print('x')"])
def test_algorithm_has_so_much_time(world: World, program: bytes) -> None:
    world.have(program)
    outcome, _ = world.run(time_limit_s=1)
    assert outcome.state == Outcome.STATE_TIMED_OUT
    assert outcome.error == "the algorithm did not finish within 1 s"


def test_algorithm_may_have_all_the_time_there_is(world: World) -> None:
    world.have(WRITE % b"b'x'")
    assert world.run(time_limit_s=2**32 - 1)[1] == b"x"


def test_memory_is_limited_without_a_guest_too(world: World) -> None:
    world.have(WRITE % b"bytes(200 << 20)")
    outcome, _ = world.run(memory_limit_mib=128)
    assert outcome.state == Outcome.STATE_FAILED
    assert b"MemoryError" in outcome.stderr.tail
    assert world.run()[0].state == Outcome.STATE_SUCCEEDED


def test_nothing_is_told_before_there_is_something(world: World) -> None:
    for act in (world.last, world.run):
        assert refused(act)[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_status_tells_what_runs_and_others_wait_for_it(world: World, tmp_path: Path) -> None:
    idle = world.status()
    assert (idle.state, idle.algorithm_id, idle.running_since_unix_ns) == (1, "", 0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    world.have(HANG, bytes(pipe))
    running = world.compute.Compute(compute_pb2.ComputeRequest())
    pipe.read_bytes()
    busy = world.status()
    assert busy.state == StatusResponse.STATE_RUNNING
    assert busy.algorithm_id == hashlib.sha256(HANG).hexdigest()
    assert busy.running_since_unix_ns > 0
    world.have(WRITE % b"sys.argv[1].encode()", b"the next")
    waiting = world.agent.Result.future(agent_pb2.ResultRequest())
    gone = world.agent.Result.future(agent_pb2.ResultRequest())
    world.until(lambda status: status.waiting == 2)
    gone.cancel()
    world.until(lambda status: status.waiting == 1)
    running.cancel()
    assert waiting.result(PATIENCE_S).file == b"the next"
    after = world.status()
    assert (after.state, after.waiting) == (StatusResponse.STATE_IDLE, 0)
    assert after.instance_id == idle.instance_id != ""


def test_outcome_of_a_caller_who_left_is_on_record(world: World, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    world.have(HANG, bytes(pipe))
    running = world.compute.Compute(compute_pb2.ComputeRequest())
    pipe.read_bytes()
    running.cancel()
    world.until(lambda status: status.state == StatusResponse.STATE_IDLE)
    assert world.last().state == Outcome.STATE_CANCELLED


def test_each_start_of_the_agent_is_another(world: World) -> None:
    with running_agent() as other:
        stub = guest_pb2_grpc.GuestServiceStub(other.channel)
        another = stub.Status(guest_pb2.StatusRequest(), timeout=PATIENCE_S).instance_id
    assert another != world.status().instance_id


def test_outside_a_guest_no_clock_is_set(world: World) -> None:
    request = guest_pb2.SetClockRequest(unix_time_ns=1)
    code, _ = refused(lambda: world.guest.SetClock(request, timeout=PATIENCE_S))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_agent_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running_agent() as running:
        running.call("Algo", WRITE % b"b'x'")
        running.call("Data", b"x")
        running.call("Result")
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
