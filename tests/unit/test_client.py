"""The client is made of the last state of its sources, has every operation, and tells errors."""

from __future__ import annotations

import ast
import hashlib
import re
from typing import Any

import httpx
import pytest
import yaml

from supervisor.client import Client, Refused, Unreachable
from tests.support import pages

ROOM = pages.ROOT / "supervisor/client"
SPEC = pages.ROOT / "supervisor/api/http/openapi.yaml"
#: What is for people and their browsers, WebSockets, and the file itself.
NO_METHOD = {"get", "getPageName", "getOpenapi.yaml", "getVmsVmIdConsole"}


@pytest.mark.parametrize(
    ("made", "of"), [(ROOM / "models.py", SPEC), (ROOM / "sync.py", ROOM / "aio.py")]
)
def test_made_anew(made: Any, of: Any) -> None:
    found = re.search(r"^# ([0-9a-f]{64})$", made.read_text(), re.MULTILINE)
    assert found
    digest = hashlib.sha256(of.read_bytes()).hexdigest()
    assert found[1] == digest, f"{of.name} has changed: run scripts/client"


def test_every_operation() -> None:
    """Each path of the contract is in the client, as f-strings have it."""
    source = (ROOM / "aio.py").read_text()
    words = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            words.add("".join(_text(part) for part in node.values))
        elif isinstance(node, ast.Constant):
            words.add(str(node.value))
    contract = yaml.safe_load(SPEC.read_text())
    for path, methods in contract["paths"].items():
        for operation in methods.values():
            if isinstance(operation, dict) and operation.get("operationId") not in NO_METHOD:
                assert re.sub(r"\{[a-z_]+\}", "{}", path) in words, operation["operationId"]


def test_every_method_is_shown() -> None:
    page = pages.ROOT / "docs/how-to/write-a-client.md"
    shown = set(re.findall(r"`([a-z_]+)\(", page.read_text()))
    methods = {name for name in vars(Client) if not name.startswith("_")}
    assert methods - shown == set()


def _text(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "{}"


def answering(answer: httpx.Response | httpx.HTTPError) -> Client:
    def give(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, httpx.Response):
            return answer
        raise answer

    client = Client("http://test")
    client.http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(give))
    return client


def test_problem() -> None:
    problem = {"type": "urn:qmp-supervisor:problem:no-capacity", "detail": "full"}
    answer = httpx.Response(503, json=problem, headers={"Retry-After": "7"})
    with pytest.raises(Refused, match=r"^full$") as caught:
        answering(answer).run({"computation": "e30="})
    assert caught.value.kind == "no-capacity"
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 7
    assert dict(caught.value.problem or {}) == problem


@pytest.mark.parametrize("body", ["<html>", "[]", '{"detail": 7}'])
def test_problem_of_something_else(body: str) -> None:
    with pytest.raises(Refused, match="answered 502 Bad Gateway") as caught:
        answering(httpx.Response(502, text=body)).health()
    assert (caught.value.kind, caught.value.problem) == ("", None)


def test_nobody() -> None:
    with pytest.raises(Unreachable, match=r"^http://test: refused$"):
        answering(httpx.ConnectError("refused")).vm("a")


def test_token_in_the_clear() -> None:
    with pytest.raises(ValueError, match="must not go to example without TLS"):
        Client("http://example:9021", token="secret")


@pytest.mark.parametrize(
    ("vm_id", "path"),
    [("../templates", "/vms/..%2Ftemplates"), ("a/shutdown?b#", "/vms/a%2Fshutdown%3Fb%23")],
)
def test_an_id_is_one_part_of_the_path(vm_id: str, path: str) -> None:
    """A program may have it from somebody whom it does not trust."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    client = Client("http://test")
    client.http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    client.vm(vm_id)
    assert asked == [path]


@pytest.mark.parametrize("vm_id", ["", ".", ".."])
def test_what_is_no_id(vm_id: str) -> None:
    with pytest.raises(ValueError, match="is not the id of a VM"):
        answering(httpx.Response(200)).delete(vm_id)


def test_a_redirection_is_no_success() -> None:
    with pytest.raises(Refused, match="answered 302"):
        answering(httpx.Response(302, headers={"Location": "/"})).delete("a")
