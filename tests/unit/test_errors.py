"""Every error class has its place in both transports' tables, and says what it should."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from quart_trio import QuartTrio

from supervisor import errors
from supervisor.api.grpc import errors as grpc_errors
from supervisor.api.http import problems
from supervisor.errors import (
    AgentError,
    AgentTimeout,
    AtCapacity,
    Busy,
    CloneFailed,
    ConfigError,
    CrossSite,
    FirmwareError,
    FleetError,
    FleetUnavailable,
    Forbidden,
    HandedBack,
    HostError,
    HostLost,
    ImageError,
    InvalidRequest,
    KeyReused,
    LaunchError,
    MemberBroke,
    Misdirected,
    MonitorError,
    MonitorFlooded,
    NoHost,
    NotOwner,
    NotTheirs,
    Overloaded,
    PortsTaken,
    RefusedElsewhere,
    RunFailed,
    RunLost,
    SocketGone,
    Stopping,
    SupervisorError,
    TeeUnavailable,
    TemplateError,
    TooLarge,
    TooOften,
    TooSlow,
    Unauthenticated,
    UnknownCertificate,
    UnsupportedMedia,
    VmEnded,
    VmNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quart import Response

Code = grpc.StatusCode

TABLE: list[tuple[SupervisorError, int, grpc.StatusCode]] = [
    (SupervisorError("x"), 500, Code.INTERNAL),
    (ConfigError(["x"]), 500, Code.INTERNAL),
    (HostError("x"), 500, Code.INTERNAL),
    (InvalidRequest("x", member="m"), 400, Code.INVALID_ARGUMENT),
    (UnsupportedMedia("x"), 415, Code.INVALID_ARGUMENT),
    (TooLarge("x"), 413, Code.RESOURCE_EXHAUSTED),
    (TooSlow("x"), 408, Code.DEADLINE_EXCEEDED),
    (Misdirected("x"), 421, Code.INTERNAL),
    (CrossSite("x"), 403, Code.INTERNAL),
    (Overloaded("x", retry_after_s=3), 503, Code.RESOURCE_EXHAUSTED),
    (TooOften("x", retry_after_s=3), 429, Code.RESOURCE_EXHAUSTED),
    (Unauthenticated("x"), 401, Code.UNAUTHENTICATED),
    (UnknownCertificate("CN=x"), 403, Code.PERMISSION_DENIED),
    (Forbidden("read", "run", ["run"]), 403, Code.PERMISSION_DENIED),
    (NotTheirs("v", "data/0", "bob"), 403, Code.PERMISSION_DENIED),
    (VmNotFound("v"), 404, Code.NOT_FOUND),
    (Busy("x"), 409, Code.FAILED_PRECONDITION),
    (KeyReused("x"), 409, Code.FAILED_PRECONDITION),
    (AtCapacity("x", retry_after_s=3), 429, Code.RESOURCE_EXHAUSTED),
    (Stopping(), 503, Code.UNAVAILABLE),
    (LaunchError("x"), 500, Code.FAILED_PRECONDITION),
    (ImageError("x"), 500, Code.FAILED_PRECONDITION),
    (FirmwareError("x"), 500, Code.FAILED_PRECONDITION),
    (PortsTaken("x"), 503, Code.UNAVAILABLE),
    (VmEnded("v", "crashed", "exit:1"), 502, Code.UNAVAILABLE),
    (RunFailed("v", "x"), 502, Code.UNAVAILABLE),
    (CloneFailed("v", "x"), 502, Code.UNAVAILABLE),
    (TeeUnavailable("x"), 409, Code.FAILED_PRECONDITION),
    (NoHost("x"), 409, Code.FAILED_PRECONDITION),
    (NotOwner("x"), 409, Code.UNAVAILABLE),
    (FleetUnavailable("x"), 503, Code.UNAVAILABLE),
    (HandedBack("x"), 503, Code.UNAVAILABLE),
    (MemberBroke("x"), 502, Code.UNAVAILABLE),
    (HostLost("v", ["b"]), 503, Code.UNAVAILABLE),
    (RunLost("x"), 502, Code.UNAVAILABLE),
    (RefusedElsewhere("x", word="vm-not-found"), 404, Code.NOT_FOUND),
    (RefusedElsewhere("x", word="key-reused"), 409, Code.FAILED_PRECONDITION),
    (RefusedElsewhere("x", word="of a later version"), 502, Code.UNAVAILABLE),
    (FleetError("x"), 502, Code.UNAVAILABLE),
    (TemplateError("x"), 409, Code.FAILED_PRECONDITION),
    (MonitorError("x"), 503, Code.UNAVAILABLE),
    (SocketGone("x"), 503, Code.UNAVAILABLE),
    (MonitorFlooded("x"), 503, Code.UNAVAILABLE),
    (AgentTimeout("id", "x"), 504, Code.DEADLINE_EXCEEDED),
    (AgentError("v", "INTERNAL", "t"), 502, Code.UNAVAILABLE),
    (AgentError("v", "no-such-code", "t"), 502, Code.UNAVAILABLE),
]


def below(kind: type[SupervisorError]) -> Iterator[type[SupervisorError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from below(child)


def ids(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, SupervisorError) else None


def test_every_class_is_in_the_table() -> None:
    ours = {kind for kind in below(SupervisorError) if kind.__module__ == errors.__name__}
    assert {type(row[0]) for row in TABLE} == ours


def test_the_tree_of_the_docstring_is_that_of_the_classes() -> None:
    """The same classes, in the same order, each below its parent."""
    drawn: list[tuple[str, str]] = []
    path = ["Exception"]
    lines = re.findall(r"^    ([│├└─ ]*)([A-Z][A-Za-z]+)", errors.__doc__ or "", re.MULTILINE)
    for indent, name in lines:
        depth = len(indent) // 4
        path = [*path[: depth + 1], name]
        drawn.append((name, path[depth]))
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in classes if issubclass(kind, SupervisorError)]
    assert drawn == [(kind.__name__, kind.__bases__[0].__name__) for kind in ours]


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=ids)
def test_grpc(error: SupervisorError, status: int, code: grpc.StatusCode) -> None:
    assert grpc_errors.code_of(error) is code


async def response_to(error: Exception) -> Response:
    """The answer to a request whose handler raised this."""
    app = QuartTrio(__name__)

    @app.get("/fail")
    async def fail() -> str:
        raise error

    problems.register(app)
    return await app.test_client().get("/fail")


async def answer_to(error: Exception) -> tuple[int, str, dict[str, Any]]:
    """Its status, content type and problem."""
    answer = await response_to(error)
    return answer.status_code, answer.content_type or "", await answer.get_json()


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=ids)
async def test_http(error: SupervisorError, status: int, code: grpc.StatusCode) -> None:
    got, kind, problem = await answer_to(error)
    assert (got, kind) == (status, "application/problem+json")
    assert problem["status"] == status
    assert problem["detail"] == str(error)
    assert problem["instance"] == "/fail"


@pytest.mark.parametrize(
    ("error", "members"),
    [
        (InvalidRequest("x", member="computation[3]"), {"member": "computation[3]"}),
        (InvalidRequest("x"), {}),
        (VmNotFound("v"), {"vm": "v", "advice": "list the VMs to see their ids"}),
        (VmEnded("v", "crashed", "exit:1"), {"vm": "v"}),
        (Busy("x", advice="end it first"), {"advice": "end it first"}),
        (
            AgentError("v", "INTERNAL", "t"),
            {"vm": "v", "agent_code": "INTERNAL", "agent_message": "t"},
        ),
    ],
    ids=ids,
)
async def test_members_for_programs(error: SupervisorError, members: dict[str, str]) -> None:
    _, _, problem = await answer_to(error)
    extra = problem.keys() - {"type", "title", "status", "detail", "instance"}
    assert {name: problem[name] for name in extra} == members


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (AtCapacity("x", retry_after_s=3), "3"),
        (AtCapacity("it never fits", retry_after_s=None), None),
        (Busy("x"), None),
    ],
    ids=str,
)
async def test_when_to_try_again(error: SupervisorError, after: str | None) -> None:
    assert (await response_to(error)).headers.get("Retry-After") == after
    assert dict(grpc_errors.metadata_of(error)).get("retry-after") == after


async def test_kind_in_words() -> None:
    _, _, problem = await answer_to(VmNotFound("v"))
    assert problem["type"] == "urn:qmp-supervisor:problem:vm-not-found"
    assert problem["title"] == "Vm not found"


async def test_a_bug_does_not_show_its_insides() -> None:
    status, kind, problem = await answer_to(RuntimeError("secret"))
    assert (status, kind) == (500, "application/problem+json")
    assert "secret" not in str(problem)


def test_advice_follows_the_detail() -> None:
    error = HostError("it failed; badly", advice="install it")
    assert str(error) == "it failed; badly; install it"
    assert (error.detail, error.advice) == ("it failed; badly", "install it")
    assert str(HostError("it failed")) == "it failed"


def test_launch_error_ends_with_the_log() -> None:
    error = LaunchError("it failed", advice="look", argv=["q"], exit_code=1, log_tail="last words")
    assert str(error) == "it failed; look\nlast words"
    assert (error.argv, error.exit_code) == (("q",), 1)


def test_taken_ports_are_a_field() -> None:
    assert PortsTaken("x", ports=[2222, 7020]).ports == {2222, 7020}
    assert PortsTaken("x").ports == frozenset()


def test_config_error_has_a_line_a_problem() -> None:
    assert str(ConfigError(["one", "two"])) == "one\ntwo"


@pytest.mark.parametrize(
    ("word", "words", "said"),
    [
        ("computatoin", ["computation"], "; did you mean 'computation'?"),
        ("zzz", ["computation"], ""),
        ("MANAGER_FOO", ["MANAGER_TTL", "MANAGER_MAX_VMS"], ""),
        ("MANAGER_QEMU_FOO", ["MANAGER_QEMU_CPU", "MANAGER_POOL_SIZE"], ""),
        ("MANAGER_TLL", ["MANAGER_TTL"], "; did you mean 'MANAGER_TTL'?"),
        ("b", [], ""),
    ],
)
def test_nearest(word: str, words: list[str], said: str) -> None:
    assert errors.nearest(word, words) == said


def test_an_agents_words_are_only_words() -> None:
    error = AgentError("v", "INTERNAL", "\x1b]0;root\x07no\r\nroom" + "é" * 5000)
    assert error.text.startswith("no room")
    assert len(error.text.encode()) <= 2000
    assert "\x1b" not in str(error)
