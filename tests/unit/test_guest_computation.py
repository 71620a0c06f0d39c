"""What the reference agent answers to a computation, and how a caller may write it down."""

from __future__ import annotations

import json

import pytest

from supervisor.agent.reference.computation import SPECIMEN, parse_request, reply_to


def of(**members: object) -> str:
    return reply_to(json.dumps(members).encode()).decode()


def test_known_fields_in_order_without_the_empty_ones() -> None:
    reply = of(
        metadata={"b": 1, "a": [2.5, {"d": None, "c": True}]},
        ttl=32,
        result_consumers=["r"],
        algorithm_providers=["ap"],
        dataset_providers=["dp"],
        algorithms=["a"],
        datasets=["d", "e"],
        end_time="2023-11-04T12:00:00+01:00",
        start_time="2023-11-03T12:03:21.7051713Z",
        owner="John",
        status="executable",
        description="",
        name="n",
        id="1",
        unknown=1,
    )
    assert reply == (
        '{"id":"1","name":"n","status":"executable","owner":"John",'
        '"start_time":"2023-11-03T12:03:21.7051713Z","end_time":"2023-11-04T12:00:00+01:00",'
        '"datasets":["d","e"],"algorithms":["a"],"dataset_providers":["dp"],'
        '"algorithm_providers":["ap"],"result_consumers":["r"],"ttl":32,'
        '"metadata":{"b":1,"a":[2.5,{"d":null,"c":true}]}}'
    )


@pytest.mark.parametrize("computation", [b"{}", b' {"id":null,"datasets":[],"ttl":0} '])
def test_a_computation_may_be_empty(computation: bytes) -> None:
    assert reply_to(computation) == b"{}"


def test_the_specimen_is_a_computation() -> None:
    assert json.loads(reply_to(SPECIMEN)) == json.loads(SPECIMEN)


def test_a_reply_is_utf8() -> None:
    assert reply_to(rb'{"id":"\u00e9<\ud83d\ude00"}') == '{"id":"é<\U0001f600"}'.encode()
    assert reply_to(rb'{"id":"\ud800x"}') == b'{"id":"?x"}'


@pytest.mark.parametrize(
    "time",
    [
        "2024-02-29T23:59:59Z",
        "2024-01-01T00:00:00.500Z",
        "2024-01-01T00:00:00.123456789Z",
        "2024-01-01T00:00:00-03:30",
    ],
)
def test_times_stay_as_they_are(time: str) -> None:
    assert of(start_time=time) == f'{{"start_time":"{time}"}}'


@pytest.mark.parametrize(
    ("computation", "named"),
    [
        (b"", "Expecting value"),
        (b"{", "property name"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{} x", "Extra data"),
        (b"\xff{}", "utf-8"),
        (b'{"ttl":NaN}', "ttl is not a 32-bit integer"),
        (b'{"metadata":{"a":NaN}}', "JSON compliant"),
        (b'{"metadata":{"a":1e400}}', "JSON compliant"),
        (b'{"id":1}', "id is not a string"),
        (b'{"datasets":"x"}', "datasets is not an array"),
        (b'{"datasets":["x",1]}', "datasets is not an array"),
        (b'{"datasets":""}', "datasets is not an array"),
        (b'{"ttl":2147483648}', "ttl"),
        (b'{"ttl":1.5}', "ttl"),
        (b'{"ttl":true}', "ttl"),
        (b'{"metadata":[]}', "metadata"),
        (b'{"start_time":"yesterday"}', "start_time"),
        (b'{"start_time":"2023-02-29T00:00:00Z"}', "start_time"),
        (b'{"end_time":"2023-01-01T24:00:00Z"}', "end_time"),
        (b'{"end_time":"2023-01-01T00:60:00Z"}', "end_time"),
        (b'{"end_time":"20230101T000000Z"}', "end_time"),
        (b'{"end_time":""}', "end_time"),
        (b'{"end_time":"2023-01-01 00:00:00Z"}', "end_time"),
        (b'{"metadata":' + b"[" * 100_000, "deeply"),
    ],
)
def test_what_is_no_computation_is_refused_by_name(computation: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        reply_to(computation)


def test_a_request_holds_bytes_as_numbers_or_base64() -> None:
    assert parse_request(b'{"computation":[123,125]}') == b"{}"
    assert parse_request(b'{"computation":"e30="}') == b"{}"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"computation":"e30=","more":1}',
        b'{"computation":null}',
        b'{"computation":[256]}',
        b'{"computation":[-1]}',
        b'{"computation":[true]}',
        b'{"computation":"not base64"}',
        b"[" * 100_000,
    ],
)
def test_malformed_requests_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_request(body)
