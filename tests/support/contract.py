"""Each answer is held against openapi.yaml: its status, its type, and what is in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator

from supervisor.api.http import ops

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

DOCUMENT: dict[str, Any] = yaml.safe_load(Path(ops.__file__).with_name("openapi.yaml").read_text())


async def check(answer: httpx.Response) -> None:
    """For `httpx.AsyncClient`: a hook that raises an AssertionError."""
    operation = operation_of(answer.request.method, answer.request.url.path)
    if operation is None:
        return  # a path or a method that is not there: its answer is a problem all the same
    status = str(answer.status_code)
    said = operation["responses"]
    assert status in said or f"{status[0]}XX" in said, (answer.request, status)
    meant = _resolved(said.get(status) or said[f"{status[0]}XX"])
    kind = answer.headers.get("Content-Type", "").partition(";")[0]
    if "content" not in meant:
        assert status == "101" or not await answer.aread(), (answer.request, status, kind)
        return
    assert kind in meant["content"] or "*/*" in meant["content"], (answer.request, status, kind)
    if kind.endswith("json"):
        await answer.aread()
        errors = list(_validator(_key(meant["content"][kind]["schema"])).iter_errors(answer.json()))
        assert not errors, (answer.request, status, [one.message for one in errors], answer.text)


def check_event(event: Mapping[str, Any]) -> None:
    """:raises AssertionError: if it is not as the document has its kind"""
    name = "Event" + "".join(word.title() for word in event["event"].split("-"))
    schema = yaml.safe_dump({"$ref": f"#/components/schemas/{name}"})
    errors = [one.message for one in _validator(schema).iter_errors(event)]
    assert not errors, (event, errors)


@cache
def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """What the document says of a request; None if it does not know it."""
    found = [one for one in _paths() if one[0].fullmatch(path)]
    # One without a parameter first: /vms/<id>/launch is no other's part.
    for _, operations in sorted(found, key=lambda one: one[0].groups):
        if operation := operations.get(method.lower()):
            return dict(operation)
    return None


@cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    return [(_pattern(path), operations) for path, operations in DOCUMENT["paths"].items()]


def _pattern(path: str) -> re.Pattern[str]:
    words = re.escape(path).replace(r"\{name\}", "(.+)")  # has slashes
    return re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", words))


def _resolved(meant: dict[str, Any]) -> dict[str, Any]:
    name = meant.get("$ref", "").rpartition("/")[2]
    return dict(DOCUMENT["components"]["responses"][name]) if name else meant


def _key(schema: dict[str, Any]) -> str:
    return yaml.safe_dump(schema)


@cache
def _validator(schema: str) -> Draft202012Validator:
    whole = {**yaml.safe_load(schema), "components": DOCUMENT["components"]}
    return Draft202012Validator(whole)
