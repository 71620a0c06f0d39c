"""Algorithms, data and results, with agents that lie and callers who break off."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import pytest
import trio

from supervisor.pb import compute_pb2, compute_pb2_grpc
from supervisor.state import results
from supervisor.state.record import EndCause, EndMode, EventKind
from tests.fake.test_results import COUNT, compute, started
from tests.support.agent_process import WRITE
from tests.support.clones import events
from tests.support.world import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.world import Supervisor, World

#: As long as a busy machine may take for what answers.
STALL_S = "4s"
RESPONSE = compute_pb2.ComputeResponse


@pytest.fixture
def world(world: World) -> World:
    world.scenario(agent="reference")
    return world


class Hostile(compute_pb2_grpc.ComputeServiceServicer):
    """An agent that does what a test wants.

    :ivar over: set at the test's end
    """

    def __init__(self, upload: Callable[..., Any], compute: Callable[..., Any]) -> None:
        self.over = threading.Event()
        self.sent = 0
        self._upload, self._compute = upload, compute

    def Upload(self, requests: Any, _: Any) -> Any:  # noqa: N802
        return self._upload(self, requests)

    def Compute(self, _: Any, __: Any) -> Any:  # noqa: N802
        yield from self._compute(self)


@contextmanager
def hostile(
    supervisor: Supervisor, vm_id: str, *first: grpc.GenericRpcHandler, **behaviour: Any
) -> Iterator[Hostile]:
    """The VM's agent, from now on, for all that others ask.

    :param first: these answer what they can
    """
    nothing: dict[str, Any] = {"upload": lambda *_: None, "compute": lambda _: ()}
    servicer = Hostile(**nothing | behaviour)
    server = grpc.server(
        futures.ThreadPoolExecutor(10),
        handlers=list(first),
        options=[(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")],
    )
    compute_pb2_grpc.add_ComputeServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    vm = supervisor.vm(vm_id)
    vm.record = attrs.evolve(vm.record, agent_address=f"127.0.0.1:{port}")
    try:
        yield servicer
    finally:
        servicer.over.set()
        server.stop(None)


def outcome(size: int, content: bytes = b"", **more: Any) -> Any:
    digest = hashlib.sha256(content).hexdigest()
    found = compute_pb2.Outcome(
        state=compute_pb2.Outcome.STATE_SUCCEEDED,
        result_size=size,
        result_sha256=digest,
        algorithm_id=digest,
        **more,
    )
    return RESPONSE(outcome=found)


def too_long(_: Hostile) -> Iterator[Any]:
    yield outcome(3, b"abc")
    yield RESPONSE(chunk=b"abcd")


def another(_: Hostile) -> Iterator[Any]:
    yield outcome(3, b"abc")
    yield RESPONSE(chunk=b"abd")


def endless(agent: Hostile) -> Iterator[Any]:
    yield outcome(10)
    while not agent.over.is_set():
        agent.sent += 1
        yield RESPONSE()


def two_outcomes(_: Hostile) -> Iterator[Any]:
    yield outcome(3, b"abc")
    yield outcome(3, b"abc")
    yield RESPONSE(chunk=b"abc")


def stalling(agent: Hostile) -> Iterator[Any]:
    yield outcome(3, b"abc")
    agent.over.wait()


def huge(_: Hostile) -> Iterator[Any]:
    yield outcome(0, dataset_ids=[""] * 2_000_000)


def control(_: Hostile) -> Iterator[Any]:
    digest = "\x1b]0;evil\x07" * 8
    found = compute_pb2.Outcome(
        state=compute_pb2.Outcome.STATE_SUCCEEDED, result_sha256=digest, algorithm_id=digest
    )
    yield RESPONSE(outcome=found)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (too_long, "DATA_LOSS"),
        (another, "DATA_LOSS"),
        (endless, "DATA_LOSS"),
        (two_outcomes, "DATA_LOSS"),
        (stalling, "sends nothing of its result"),
        (huge, "RESOURCE_EXHAUSTED"),
        (control, "a SHA-256 that is none"),
        (lambda _: iter([RESPONSE(chunk=b"x")]), "tells no outcome"),
        (lambda _: iter([outcome(1 << 60)]), "see MANAGER_MAX_RESULT"),
    ],
)
async def test_results_that_are_lies(
    world: World, behaviour: Callable[[Hostile], Any], words: str
) -> None:
    """Nothing of them stays."""
    world.settings["MANAGER_AGENT_GRPC_TIMEOUT"] = STALL_S
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        with hostile(supervisor, vm_id, compute=behaviour):
            answer = await supervisor.http.post(f"/vms/{vm_id}/compute")
            assert answer.status_code in (502, 504)
            assert words in answer.json()["detail"]
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).status_code == 409
        assert supervisor.vm(vm_id).dir.results.files == []


def whole(_: Hostile) -> Iterator[Any]:
    yield outcome(3, b"abc")
    yield RESPONSE(chunk=b"abc")


def garbage(_: Any, __: Any) -> bytes:
    return b"\xff\xff\xff"


def printed_without_end(_: Any, __: Any) -> bytes:
    said = compute_pb2.PrintedResponse(run=2**64 - 1, position=2**64 - 1, data=bytes(1_000_000))
    return said.SerializeToString()


def refuses(_: Any, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.INTERNAL, "no" * 10_000)


@pytest.mark.parametrize("printed", [garbage, printed_without_end, refuses])
async def test_lies_about_what_is_printed_change_no_result(
    world: World, printed: Callable[[Any, Any], Any]
) -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(
        printed
    )  # what it answers are bytes as they are
    methods = {"Printed": handler}
    lies = grpc.method_handlers_generic_handler("compute.ComputeService", methods)
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        with hostile(supervisor, vm_id, lies, compute=whole):
            answer = await supervisor.http.post(f"/vms/{vm_id}/compute")
            assert answer.status_code == 200, answer.text
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == b"abc"
        log = (await supervisor.http.get(f"/vms/{vm_id}/logs?source=algorithm")).content
        assert len(log) <= 64 * 1024 + 100


def takes_nothing(agent: Hostile, _: Any) -> Any:
    agent.over.wait()
    return compute_pb2.UploadResponse()


def tells_another(_: Hostile, requests: Any) -> Any:
    for _ in requests:
        pass
    return compute_pb2.UploadResponse(id="\x1b]0;evil\x07" + "x" * 60, size=2**64 - 1)


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [(takes_nothing, 504, "takes nothing of data/0"), (tells_another, 502, "another data/0")],
)
async def test_uploads_that_are_lies(
    world: World, behaviour: Callable[..., Any], code: int, words: str
) -> None:
    world.settings["MANAGER_AGENT_GRPC_TIMEOUT"] = STALL_S
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        with hostile(supervisor, vm_id, upload=behaviour):
            answer = await supervisor.http.put(f"/vms/{vm_id}/data/0", content=b"x" * 3_000_000)
        assert (answer.status_code, words in answer.json()["detail"]) == (code, True), answer.text
        events = await supervisor.http.get(f"/vms/{vm_id}/events?limit=100&after=0")
        assert "upload" not in [one["event"] for one in events.json()["events"]]


def takes_anything(_: Hostile, requests: Any) -> Any:
    content = b"".join(one.chunk for one in requests)
    digest = hashlib.sha256(content).hexdigest()
    return compute_pb2.UploadResponse(id=digest, size=len(content))


async def test_agent_that_compares_nothing(world: World) -> None:
    """What was announced by its hash, as one that parties agreed on, counts only if it is that."""
    announced = base64.b64encode(hashlib.sha256(b"this").digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{announced}:"}
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        path = f"/vms/{vm_id}/algorithm"
        with hostile(supervisor, vm_id, upload=takes_anything):
            answer = await supervisor.http.put(path, content=b"that", headers=headers)
            assert answer.status_code == 502
            assert "another algorithm than was announced" in answer.json()["detail"]
            assert supervisor.vm(vm_id).record.sent == ()
            answer = await supervisor.http.put(path, content=b"this", headers=headers)
            assert answer.status_code == 200, answer.text


async def test_few_uploads_at_once(world: World) -> None:
    """Those of callers who are gone end, too: else they would keep others out."""
    world.settings["MANAGER_AGENT_GRPC_TIMEOUT"] = STALL_S
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        vm = supervisor.vm(vm_id)
        with hostile(supervisor, vm_id, upload=takes_nothing):
            streams = [await cut_off(supervisor, vm_id, 100_000_000) for _ in range(4)]
            await vm.until(lambda: vm.uploads == 4)
            answer = await supervisor.http.put(f"/vms/{vm_id}/data/0", content=b"x")
            assert (answer.status_code, "on their way" in answer.text) == (409, True)
            for stream in streams:
                await stream.aclose()
            await vm.until(lambda: vm.uploads == 0)


async def cut_off(supervisor: Supervisor, vm_id: str, length: int | None) -> trio.SocketStream:
    """A connection on which some of a data set was sent."""
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = f"PUT /vms/{vm_id}/data/0 HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n".encode()
    piece = b"y" * 0x200000
    piece = b"%x\r\n%b\r\n" % (len(piece), piece) if length is None else piece[:1000]
    stream = await trio.open_tcp_stream("127.0.0.1", supervisor.running.http_port)
    await stream.send_all(head + piece)
    return stream


async def test_what_was_cut_off_is_no_data_set(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT, b"seven77")
        vm = supervisor.vm(vm_id)
        for _ in range(10):
            stream = await cut_off(supervisor, vm_id, None)
            await vm.until(lambda: vm.uploads == 1)
            await stream.aclose()
            await vm.until(lambda: vm.uploads == 0)
        await compute(supervisor, vm_id)
        assert (await supervisor.http.get(f"/vms/{vm_id}/result")).content == b"7"


@pytest.mark.parametrize("way", ["reset", "shutdown"])
async def test_guest_that_is_gone_meanwhile(world: World, way: str) -> None:
    """QEMU keeps the connection of a guest that is reset, and nobody speaks there any more."""
    began = threading.Event()

    def hang(agent: Hostile) -> Iterator[Any]:
        began.set()
        agent.over.wait()
        yield from ()

    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await supervisor.http.post(f"/vms/{vm_id}/compute"))

        with hostile(supervisor, vm_id, compute=hang):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await in_thread(began.wait)
                mode = {"mode": "force"} if way == "shutdown" else {}
                await supervisor.http.post(f"/vms/{vm_id}/{way}", json=mode)
        assert answers[0].status_code == 502
        gone = "its guest was reset, or has ended"
        assert gone in answers[0].json()["detail"]
        assert supervisor.vm(vm_id).record.computed == "interrupted"
        if way == "reset":  # else its end tells of it
            last = events(world, vm_id, "compute")[-1]
            assert (last["state"], gone in last["error"]) == ("interrupted", True)


async def test_vm_that_ends_while_its_result_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, may_go_on = threading.Event(), threading.Event()

    class SlowDisk:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, file: int) -> None:
            reached.set()
            may_go_on.wait()
            os.fsync(file)

    async with world.serve() as supervisor:
        vm_id = await started(supervisor, COUNT, b"four")
        vm = supervisor.vm(vm_id)
        with monkeypatch.context() as patch:
            patch.setattr(results, "os", SlowDisk())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.http.post, f"/vms/{vm_id}/compute")
                await in_thread(reached.wait)
                vm.request_end(EndMode.FORCE, EndCause.API, "it was asked for")
                may_go_on.set()
        await vm.wait_ended()
        assert vm.record.computed in ("interrupted", "succeeded")
        assert not [file for file in vm.dir.results.files if file.suffix == ".new"]


@pytest.mark.parametrize(
    ("wanted", "code", "content"),
    [
        ("bytes=-3", 206, b"789"),
        ("bytes=-30", 206, b"0123456789"),
        ("bytes=4-100", 206, b"456789"),
        (f"bytes=0-{10**30}", 206, b"0123456789"),
        ("bytes=2-3", 206, b"23"),
        ("bytes=10-", 416, None),
        ("bytes=0-1,3-4", 416, None),
    ],
)
async def test_ranges(world: World, wanted: str, code: int, content: bytes | None) -> None:
    async with world.serve() as supervisor:
        vm_id = await started(supervisor, WRITE % b"b'0123456789'", b"x")
        await compute(supervisor, vm_id)
        path, headers = f"/vms/{vm_id}/result", {"Range": wanted}
        answer = await supervisor.http.get(path, headers=headers)
        assert answer.status_code == code
        if content is not None:
            assert (answer.content, answer.headers["Content-Length"]) == (
                content,
                str(len(content)),
            )
        head = await supervisor.http.head(path, headers=headers)
        assert (head.status_code, head.content) == (code, b"")
        etag = {"If-None-Match": (await supervisor.http.get(path)).headers["ETag"]}
        assert (await supervisor.http.get(path, headers=etag)).status_code == 304


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Digest": "sha-256=AAAA"}, 400),
        ({"Content-Digest": "sha-256=:A_A:"}, 400),
        ({"Content-Digest": "SHA-256=:AAAA:"}, 400),
        ({"Repr-Digest": "sha-512=:AAAA:"}, 400),
        ({"Content-Digest": f"sha-256=:{'A' * 43}=:, sha-256=:{'B' * 42}A=:"}, 400),
        ({"Content-Range": "bytes 5-8/100"}, 400),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_headers_of_parts(world: World, headers: dict[str, str], code: int) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        path = f"/vms/{vm_id}/data/0"
        answer = await supervisor.http.put(path, content=b"", headers=headers)
        assert answer.status_code == code, answer.text


async def test_length_of_no_body(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        stream = await cut_off(supervisor, vm_id, 2**64)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413 ")
        await stream.aclose()


async def test_part_that_arrives_after_its_vm(world: World) -> None:
    """A VM that is gone has no event any more."""
    async with world.serve() as supervisor:
        vm_id = (await supervisor.run())["id"]
        vm = supervisor.vm(vm_id)
        await supervisor.http.delete(f"/vms/{vm_id}")
        before = vm.record.sequence
        await vm.commit_unless_ended(EventKind.UPLOAD, {})
        assert vm.record.sequence == before
