"""Traces, as a receiver of OTLP gets them from the SDK's own exporter."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from supervisor import doctor, spans
from supervisor.pb import manager_pb2
from tests.support.agent_process import WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.world import World

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"


class Receiver(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP, in protobuf."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.about: dict[str, str] = {}

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Encoding"] is None
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.about = _attributes(resource.resource)
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def receiving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{receiver.server_address[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


def _attributes(of: Any) -> dict[str, Any]:
    values = ((one.key, one.value) for one in of.attributes)
    return {key: value.string_value or value.int_value for key, value in values}


async def test_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's trace goes on: request, QMP, agent, and the steps of the run."""
    with receiving(monkeypatch) as receiver:
        async with world.serve() as supervisor:
            answer = await supervisor.http.post(
                "/run", json={"computation": "e30="}, headers={"traceparent": PARENT}
            )
            vm_id = answer.json()["id"]
            assert answer.status_code == 200
        assert receiver.about["service.name"] == "qmp-supervisor"
        (request,) = receiver.named("POST /run")
        assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, CALLER)
        assert request.kind == Span.SPAN_KIND_SERVER
        assert _attributes(request) == {
            "http.request.method": "POST",
            "http.route": "/run",
            "url.path": "/run",
            "url.scheme": "http",
            "http.response.status_code": 200,
            "client.address": "127.0.0.1",
            "request.id": TRACE,
            "vm.id": vm_id,
        }
        for name, kind in (
            ("agent.AgentService/Run", Span.SPAN_KIND_CLIENT),
            ("QMP cont", Span.SPAN_KIND_CLIENT),
            ("relay", Span.SPAN_KIND_INTERNAL),
            ("greeting", Span.SPAN_KIND_INTERNAL),
        ):
            (span,) = receiver.named(name)
            assert (span.trace_id.hex(), span.kind) == (TRACE, kind), name
            assert span.parent_span_id == request.span_id, name
            assert request.start_time_unix_nano - 10**8 < span.start_time_unix_nano, name
            assert span.start_time_unix_nano <= span.end_time_unix_nano, name
            assert _attributes(span)["vm.id"] == vm_id, name
        # What nobody waits for, as a heartbeat, is in no trace.
        assert {span.trace_id.hex() for span in receiver.spans if "QMP" in span.name} == {TRACE}


async def test_an_algorithm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long in these requests is the agent's, and a span of its own."""
    world.scenario(agent="reference")
    with receiving(monkeypatch) as receiver:
        async with world.serve() as supervisor:
            vm = await supervisor.run()
            path, sent = f"/vms/{vm['id']}", {"Content-Type": "application/octet-stream"}
            answer = await supervisor.http.put(
                f"{path}/algorithm",
                content=WRITE % b"b'out'",
                headers=sent | {"traceparent": PARENT},
            )
            assert answer.status_code == 200, answer.text
            await supervisor.http.put(f"{path}/data/0", content=b"x", headers=sent)
            answer = await supervisor.http.post(f"{path}/compute", json={})
            assert answer.json()["state"] == "succeeded", answer.text
        algorithm, data = sorted(
            receiver.named("compute.ComputeService/Upload"),
            key=lambda one: one.start_time_unix_nano,
        )
        assert algorithm.trace_id.hex() == TRACE
        assert data.trace_id.hex() != TRACE
        (computed,) = receiver.named("compute.ComputeService/Compute")
        (request,) = receiver.named("POST /vms/<vm_id>/compute")
        assert computed.parent_span_id == request.span_id
        assert _attributes(computed)["vm.id"] == vm["id"]


async def test_over_grpc_and_a_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.scenario(says="no", exits=1)
    with receiving(monkeypatch) as receiver:
        async with world.serve() as supervisor:
            run = partial(supervisor.manager.Run, metadata=(("traceparent", PARENT),))
            with pytest.raises(grpc.RpcError, match="ended with exit code 1"):
                await supervisor.call(run, manager_pb2.RunRequest(computation=b"1"))
        (call,) = receiver.named("manager.ManagerService/Run")
        assert (call.trace_id.hex(), call.status.code) == (TRACE, Status.STATUS_CODE_ERROR)
        assert _attributes(call)["rpc.system.name"] == "grpc"


async def test_off_by_default(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(monkeypatch) as receiver:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        async with world.serve() as supervisor:
            await supervisor.run()
    assert receiver.spans == []


async def test_nobody_receives_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run fails of that, and the supervisor stops."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with world.serve() as supervisor:
        await supervisor.run()


def test_sdk_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its variables may be those of the whole machine: no VM must go without a supervisor."""

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(spans, "import_module", missing)
    with spans.sending("http://127.0.0.1:4318/v1/traces"), spans.serving("") as span:
        span.end("GET /", {}, failed=False)
    assert "qmp-supervisor[tracing]" in capsys.readouterr().out
    check = doctor.check_traces()
    assert check.verdict is doctor.Verdict.WARN
    assert check.advice == spans.ADVICE


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_BSP_SCHEDULE_DELAY", "-1"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc")],
)
def test_variables_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    with spans.sending("http://127.0.0.1:4318/v1/traces"):
        pass
    assert "no traces are sent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("jaeger_url", "otlp"),
    [
        ("http://jaeger:14268/api/traces", "http://jaeger:4318/v1/traces"),
        ("https://[::1]:14268/api/traces", "https://[::1]:4318/v1/traces"),
        ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
    ],
)
def test_url_of_the_originals_setting(jaeger_url: str, otlp: str) -> None:
    assert spans.otlp_of(jaeger_url) == otlp
