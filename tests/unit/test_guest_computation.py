"""The computation as the original agent, a Go program, marshals it again."""

from __future__ import annotations

import json

import pytest

from supervisor.agent.reference.computation import ZERO_TIME, parse_request, remarshal

TIMES = f'"start_time":"{ZERO_TIME}","end_time":"{ZERO_TIME}"'


def of(**members: object) -> str:
    return remarshal(json.dumps(members).encode())


def test_known_fields_in_order_without_the_empty_ones() -> None:
    reply = of(
        metadata={"b": 1, "a": [2.0, {"d": None, "c": True}]},
        ttl=32,
        result_consumers=["r"],
        algorithm_providers=["ap"],
        dataset_providers=["dp"],
        algorithms=["a"],
        datasets=["d", "e"],
        end_time="2023-11-04T12:00:00+01:00",
        start_time="2023-11-03T12:03:21.705171300Z",
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
        '"metadata":{"a":[2,{"c":true,"d":null}],"b":1}}'
    )


@pytest.mark.parametrize("computation", [b"{}", b"null", b' {"id":null,"datasets":[],"ttl":0} '])
def test_absent_times_are_the_year_1(computation: bytes) -> None:
    assert remarshal(computation) == "{" + TIMES + "}"


def test_names_match_regardless_of_case() -> None:
    assert of(ID="7").startswith('{"id":"7",')


def test_strings_are_escaped_as_go_does() -> None:
    assert of(name="<é&>\u2028\n").startswith(r'{"name":"\u003cé\u0026\u003e\u2028\n",')
    assert remarshal(rb'{"id":"\ud800x\ud83d\ude00"}').startswith('{"id":"\ufffdx\U0001f600",')


@pytest.mark.parametrize(
    ("time", "written"),
    [
        ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z"),
        ("2024-01-01T00:00:00.500Z", "2024-01-01T00:00:00.5Z"),
        ("2024-01-01T00:00:00.000Z", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00.1234567891Z", "2024-01-01T00:00:00.123456789Z"),
        ("2024-01-01T00:00:00+00:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00-03:30", "2024-01-01T00:00:00-03:30"),
    ],
)
def test_times(time: str, written: str) -> None:
    assert f'"start_time":"{written}"' in of(start_time=time)


@pytest.mark.parametrize(
    ("computation", "named"),
    [
        (b"", "Expecting value"),
        (b"{", "property name"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{} x", "Extra data"),
        (b"\xff{}", "utf-8"),
        (b'{"ttl":NaN}', "NaN"),
        (b'{"id":1}', "id is not a string"),
        (b'{"datasets":"x"}', "datasets is not an array"),
        (b'{"datasets":["x",1]}', r"datasets\[1\]"),
        (b'{"ttl":2147483648}', "ttl"),
        (b'{"ttl":1.5}', "ttl"),
        (b'{"ttl":true}', "ttl"),
        (b'{"metadata":[]}', "metadata"),
        (b'{"start_time":"yesterday"}', "start_time"),
        (b'{"start_time":"2023-02-29T00:00:00Z"}', "start_time"),
        (b'{"end_time":"2023-01-01T24:00:00Z"}', "end_time"),
        (b'{"end_time":"2023-01-01 00:00:00Z"}', "end_time"),
        (b'{"metadata":' + b"[" * 100_000, "deeply"),
    ],
)
def test_what_is_no_computation_is_refused_by_name(computation: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        remarshal(computation)


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


@pytest.mark.parametrize(
    ("written", "by_go"),
    [
        ("1e-5", "0.00001"),
        ("1e-6", "0.000001"),
        ("1e-7", "1e-7"),
        ("-0.0", "-0"),
        ("100", "100"),
        ("1.50", "1.5"),
        ("9007199254740993", "9007199254740992"),
        ("1.2345678901234567e20", "123456789012345670000"),
        ("999999999999999999999", "1e+21"),
        ("-1.25e-300", "-1.25e-300"),
    ],
)
def test_numbers_of_metadata_are_gos_float64(written: str, by_go: str) -> None:
    reply = remarshal(b'{"metadata":{"rate":%s}}' % written.encode())
    assert reply.endswith(f'"metadata":{{"rate":{by_go}}}}}')


@pytest.mark.parametrize("number", ["1e400", "1" * 401])
def test_number_no_float64_holds_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="metadata holds a number that is too large"):
        remarshal(b'{"metadata":{"rate":%s}}' % number.encode())
