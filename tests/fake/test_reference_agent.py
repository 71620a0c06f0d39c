"""The real reference agent, a process of its own on loopback, over real gRPC and HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import zipfile
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from supervisor.agent.reference.algorithm import MAX_ARGUMENT_BYTES
from supervisor.agent.reference.wire import MAX_PAYLOAD_BYTES
from tests.support.agent_process import AGENT, WRITE, Running, running_agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUM = WRITE % b"str(sum(map(int, sys.argv[1].split()))).encode()"


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running_agent(tls=request.param) as running:
        yield running


def refusal(
    running: Running, method: str, payload: bytes = b""
) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as caught:
        running.call(method, payload)
    return caught.value.code(), caught.value.details()


def test_run_answers_with_the_computation(running: Running) -> None:
    assert json.loads(running.call("Run", b'{"id":"1"}'))["id"] == "1"
    code, detail = refusal(running, "Run", b"{")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no computation" in (detail or "")


def test_a_computation_of_16_mib_passes(running: Running) -> None:
    name = "x" * (MAX_PAYLOAD_BYTES - 100)
    assert json.loads(running.call("Run", json.dumps({"name": name}).encode()))["name"] == name


def test_malformed_messages_are_the_callers_fault(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        running.raw("Run", b"\x0a\x7f")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_algorithm_runs_over_a_dataset(running: Running) -> None:
    assert running.call("Algo", SUM).decode() == hashlib.sha256(SUM).hexdigest()
    assert running.call("Data", b"1 2 39").decode() == hashlib.sha256(b"1 2 39").hexdigest()
    assert running.call("Result") == b"42"
    running.call("Data", b"1 1")
    assert running.call("Result") == b"2"


def test_no_result_before_algorithm_and_data(running: Running) -> None:
    assert refusal(running, "Result") == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "there is no algorithm yet",
    )
    running.call("Algo", SUM)
    assert refusal(running, "Result") == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "there is no dataset yet",
    )


@pytest.mark.parametrize(
    ("algorithm", "code", "told"),
    [
        (b"raise SystemExit('no good')", grpc.StatusCode.ABORTED, "status 1: no good"),
        (b"1 / 0", grpc.StatusCode.ABORTED, "ZeroDivisionError"),
        (b"pass", grpc.StatusCode.ABORTED, "without connecting"),
        (b"import os; os.kill(os.getpid(), 9)", grpc.StatusCode.ABORTED, "by signal 9"),
        (b"print('words')\n1 / 0", grpc.StatusCode.ABORTED, "of its stdout: words"),
        (WRITE % b"b'x'" + b"\n1 / 0", grpc.StatusCode.ABORTED, "ZeroDivisionError"),
        (
            WRITE % b"bytes((16 << 20) + 1)",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the result exceeds",
        ),
    ],
)
def test_why_an_algorithm_gave_no_result(
    running: Running, algorithm: bytes, code: grpc.StatusCode, told: str
) -> None:
    running.call("Algo", algorithm)
    running.call("Data", b"x")
    actual, detail = refusal(running, "Result")
    assert actual is code
    assert told in (detail or "")


def test_a_result_of_16_mib_passes(running: Running) -> None:
    running.call("Algo", WRITE % b"bytes(16 << 20)")
    running.call("Data", b"x")
    assert running.call("Result") == bytes(16 << 20)


# What no argument holds: it is in a file, and its path is the argument.
UNFIT = {
    "long": b"x" * (MAX_ARGUMENT_BYTES + 1),
    "with a zero byte": b"a\0b",
    "16 MiB": bytes(16 << 20),
}


@pytest.mark.parametrize(
    "dataset", [*UNFIT.values(), b"", b"\xff\xfe"], ids=[*UNFIT, "empty", "no text"]
)
def test_every_data_set_is_in_a_file(running: Running, dataset: bytes) -> None:
    read = b"open(os.environ['DATASET_FILE'], 'rb').read()"
    running.call("Algo", b"import os, hashlib" + WRITE % (b"hashlib.sha256(%b).digest()" % read))
    assert running.call("Data", dataset).decode() == hashlib.sha256(dataset).hexdigest()
    assert running.call("Result") == hashlib.sha256(dataset).digest()


@pytest.mark.parametrize("dataset", UNFIT.values(), ids=UNFIT)
def test_data_set_that_fits_no_argument_is_told_by_its_path(
    running: Running, dataset: bytes
) -> None:
    running.call(
        "Algo", b"import os" + WRITE % b"str(sys.argv[1] == os.environ['DATASET_FILE']).encode()"
    )
    running.call("Data", dataset)
    assert running.call("Result") == b"True"


@pytest.mark.parametrize("dataset", [b"", b"\xff\xfe", b"text"])
def test_data_set_that_fits_is_the_argument(running: Running, dataset: bytes) -> None:
    running.call("Algo", b"import os" + WRITE % b"os.fsencode(sys.argv[1])")
    running.call("Data", dataset)
    assert running.call("Result") == dataset


def archive() -> bytes:
    """A program of two modules, as zipapp makes it: no text."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("words.py", "WORDS = b'of two modules'")
        packed.writestr("__main__.py", b"import words\n" + WRITE % b"words.WORDS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("algorithm", "result"),
    [
        ((WRITE % b"b'long'").ljust(MAX_ARGUMENT_BYTES + 1), b"long"),
        (b"# coding: latin-1" + WRITE % b"'\xe9'.encode()", "é".encode()),
        (archive(), b"of two modules"),
    ],
    ids=["long", "not UTF-8", "archive"],
)
def test_algorithm_that_fits_no_argument_runs(
    running: Running, algorithm: bytes, result: bytes
) -> None:
    running.call("Algo", algorithm)
    running.call("Data", b"x")
    assert running.call("Result") == result


def test_empty_algorithm_is_refused(running: Running) -> None:
    assert refusal(running, "Algo")[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_the_longest_arguments_do_run(running: Running) -> None:
    running.call("Algo", (WRITE % b"b'%d' % len(sys.argv[1])").ljust(MAX_ARGUMENT_BYTES))
    running.call("Data", b"x" * MAX_ARGUMENT_BYTES)
    assert running.call("Result") == b"%d" % MAX_ARGUMENT_BYTES


# It says on a pipe that it runs, so the test need not guess, and then waits for ever.
HANG = b"import signal, sys\nwith open(sys.argv[1], 'w') as pipe: pipe.write('on')\nsignal.pause()"


def hanging(running: Running, pipe: Path) -> grpc.Future[bytes]:
    """A call of Result whose algorithm runs and does not end."""
    os.mkfifo(pipe)
    running.call("Algo", HANG)
    running.call("Data", bytes(pipe))
    call = running.channel.unary_unary(
        "/agent.AgentService/Result", request_serializer=bytes, response_deserializer=bytes
    ).future(b"")
    assert pipe.read_text() == "on"
    return call


def test_a_caller_who_leaves_takes_the_algorithm_along(running: Running, tmp_path: Path) -> None:
    call = hanging(running, tmp_path / "pipe")
    (algorithm,) = psutil.Process(running.process.pid).children()
    call.cancel()
    algorithm.wait(30)


def test_sigterm_ends_a_running_algorithm_too(running: Running, tmp_path: Path) -> None:
    call = hanging(running, tmp_path / "pipe")
    (algorithm,) = psutil.Process(running.process.pid).children()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert not algorithm.is_running()
    assert call.exception() is not None


def test_no_report_without_the_device(running: Running) -> None:
    assert refusal(running, "Attestation")[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(running, "Attestation", bytes(65))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_http_takes_a_computation(running: Running) -> None:
    for computation in (b"[123,125]", b'"e30="'):
        body = b'{"computation":' + computation + b"}"
        status, kind, answer = running.http("POST", "/run", body, "application/json")
        assert (status, kind) == (200, "application/json")
        assert json.loads(answer) == {"computation": "{}"}


@pytest.mark.parametrize(
    ("path", "content_type", "body", "status"),
    [
        ("/run", None, b"{}", 415),
        ("/run", "text/plain", b"{}", 415),
        ("/run", "application/json", b"{", 400),
        ("/run", "application/json", b'{"computation":[]}', 400),
        ("/run", "application/json", b'{"computation":"e30=","x":1}', 400),
        ("/else", "application/json", b"{}", 404),
    ],
)
def test_http_says_what_was_wrong(
    running: Running, path: str, content_type: str | None, body: bytes, status: int
) -> None:
    actual, kind, answer = running.http("POST", path, body, content_type)
    assert (actual, kind) == (status, "application/problem+json")
    assert json.loads(answer)["status"] == status


def test_health_and_metrics(running: Running) -> None:
    status, kind, answer = running.http("GET", "/health")
    assert (status, json.loads(answer)["status"]) == (200, "pass")
    assert kind == "application/health+json"
    running.call("Run", b"{}")
    refusal(running, "Run", b"")
    _, _, metrics = running.http("GET", "/metrics")
    assert b'agent_calls_total{method="Run",code="OK"} 1\n' in metrics
    assert b'agent_calls_total{method="Run",code="INVALID_ARGUMENT"} 1\n' in metrics
    assert running.http("GET", "/else")[0] == 404


def test_a_port_in_use_is_said(running: Running) -> None:
    command = [*AGENT, "--host", "127.0.0.1", "--grpc-port", "0"]
    second = subprocess.run(
        [*command, "--http-port", str(running.http_port)], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert "cannot listen" in second.stderr


@pytest.mark.parametrize("method", ["Prepare", "Renew"])
def test_outside_a_guest_there_are_no_clones(running: Running, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        running.raw(method, b"", service="clone.CloneService")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
