"""openapi.yaml: a document that others can read, of the routes that there are."""

from __future__ import annotations

import re

import attrs
from openapi_spec_validator import validate

from supervisor.api.requests import ComputeRequest, RunRequest
from supervisor.caller import Right
from tests.support.contract import DOCUMENT
from tests.support.routes import application

_PARAMETER = re.compile(r"<(?:path:)?(\w+)>")


def test_document() -> None:
    validate(DOCUMENT)


def test_routes() -> None:
    known = {
        (_PARAMETER.sub(r"{\1}", rule.rule), method.lower())
        for rule in application().url_map.iter_rules()
        for method in set(rule.methods or ()) - {"HEAD", "OPTIONS"}
    }
    said = {(path, method) for path, one in DOCUMENT["paths"].items() for method in one}
    assert said == known


def test_names() -> None:
    """Clients that are made of it call their functions so."""
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    ids = [one["operationId"] for one in operations]
    assert len(set(ids)) == len(ids)
    assert {one["x-right"] for one in operations} <= {"none", *Right}


def test_members_of_requests() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for kind in (RunRequest, ComputeRequest):
        said = schemas[kind.__name__]
        fields = attrs.fields(kind)
        assert set(said["properties"]) == {one.name for one in fields}
        required = {one.name for one in fields if one.default is attrs.NOTHING}
        assert set(said["required"]) == required
