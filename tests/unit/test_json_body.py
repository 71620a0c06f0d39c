"""JSON bodies: every member known, each of its type, what is wrong told by member."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from quart_trio import QuartTrio

from supervisor.api.http import json_body, problems, streamed_json
from supervisor.api.http.connections import Exchange
from supervisor.api.requests import RunRequest, ShutdownRequest
from supervisor.caller import ANYBODY
from supervisor.config import CallersConfig

if TYPE_CHECKING:
    from quart import Response

    from supervisor.api.auth.door import Door


class Unasked(Exchange):
    """Of a request that came over no connection."""

    def __init__(self, app: QuartTrio, scope: Any) -> None:
        super().__init__(cast("Door", None), app, scope)
        self._caller = lambda: ANYBODY


def an_app() -> QuartTrio:
    """Two routes that answer with what they understood."""
    app = QuartTrio(__name__)
    app.asgi_http_class = Unasked  # type: ignore[assignment]
    app.config |= {"CALLERS": CallersConfig(), "MAX_CONTENT_LENGTH": 2**20}

    @app.post("/run")
    async def run() -> Any:
        return (await json_body.read(RunRequest)).computation.hex()

    @app.post("/shutdown")
    async def shutdown() -> Any:
        return (await json_body.read_optional(ShutdownRequest)).mode.value

    problems.register(app)
    return app


async def post(path: str, body: object, kind: str | None = "application/json") -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": kind} if kind else {}
    return await an_app().test_client().post(path, data=data, headers=headers)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ([0], b"\x00"),
        ([0, 127, 128, 255], b"\x00\x7f\x80\xff"),
        (list(range(256)), bytes(range(256))),
        ("AH//", b"\x00\x7f\xff"),
        (base64.b64encode(bytes(range(256))).decode(), bytes(range(256))),
        (base64.encodebytes(bytes(range(256))).decode(), bytes(range(256))),  # in lines
    ],
)
async def test_computation(written: object, read: bytes) -> None:
    answer = await post("/run", {"computation": written})
    assert answer.status_code == 200
    assert await answer.get_data() == read.hex().encode()


async def test_body_that_comes_a_byte_at_a_time_is_decoded_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = 0

    class Counted(streamed_json.Body):
        def feed(self, part: bytes) -> None:
            nonlocal pieces
            pieces += 1
            super().feed(part)

    monkeypatch.setattr(streamed_json, "Body", Counted)
    body = b'{"computation": "%b"}' % (b"A" * streamed_json.PIECE)
    async with (
        an_app()
        .test_client()
        .request("/run", method="POST", headers={"Content-Type": "application/json"}) as connection
    ):
        for byte in body:
            await connection.send(bytes([byte]))
        await connection.send_complete()
    answer = await connection.as_response()
    assert await answer.get_data() == bytes(streamed_json.PIECE * 3 // 4).hex().encode()
    assert pieces < 5


NOT_A_BYTE = "not a number from 0 to 255"


@pytest.mark.parametrize(
    ("body", "member", "words"),
    [
        ({"computation": [1, 256]}, "computation[1]", f"256, {NOT_A_BYTE}"),
        ({"computation": [-1]}, "computation[0]", f"-1, {NOT_A_BYTE}"),
        ({"computation": [0, 1, True]}, "computation[2]", f"true, {NOT_A_BYTE}"),
        ({"computation": [1.0]}, "computation[0]", f"1.0, {NOT_A_BYTE}"),
        ({"computation": ["1"]}, "computation[0]", f'"1", {NOT_A_BYTE}'),
        ({"computation": [None]}, "computation[0]", f"null, {NOT_A_BYTE}"),
        ({"computation": [[1]]}, "computation[0]", f"[1], {NOT_A_BYTE}"),
        ({"computation": [10**100]}, "computation[0]", NOT_A_BYTE),
        ({"computation": "A"}, "computation", "not base64"),
        ({"computation": "AH__"}, "computation", "not base64"),
        ({"computation": "\N{SNOWMAN}"}, "computation", "not base64"),
        ({"computation": 7}, "computation", "array of numbers"),
        ({"computation": True}, "computation", "array of numbers"),
        ({"computation": None}, "computation", "array of numbers"),
        ({"computation": {"0": 1}}, "computation", "array of numbers"),
        ({"computation": []}, "computation", "computation is empty"),
        ({"computation": ""}, "computation", "computation is empty"),
        ({}, "computation", "missing"),
        ({"computation": [1], "ttl": 1}, "ttl", "ttl "),
        ({"computation": [1], "ttl": ""}, "ttl", "ttl "),
        ({"computation": [1], "ttl": "soon"}, "ttl", "ttl "),
        ({"computation": [1], "ttl": "-1s"}, "ttl", "ttl "),
        ({"computation": [1], "ttl": None}, "ttl", "ttl "),
        ({"computation": [1], "restart": "always"}, "restart", "never, on-failure"),
        ({"computation": [1], "restart": None}, "restart", "never, on-failure"),
        ({"computation": [1], "keep_disk": 1}, "keep_disk", "true or false"),
        ({"computation": [1], "keep_disk": None}, "keep_disk", "true or false"),
        ({"computation": [1], "keepdisk": True}, "keepdisk", "did you mean 'keep_disk'?"),
        ({"computatoin": [1]}, "computatoin", "did you mean 'computation'?"),
        ({"Computation": [1]}, "Computation", "did you mean 'computation'?"),
    ],
)
async def test_bad_member_is_named(body: object, member: str, words: str) -> None:
    answer = await post("/run", body)
    assert answer.status_code == 400
    problem = await answer.get_json()
    assert problem["member"] == member
    assert words in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"computation": [1]', b"\xff\xfe", b"1" * 5000, b"{} {}"],
)
async def test_what_is_not_json(body: bytes) -> None:
    answer = await post("/run", body)
    assert answer.status_code == 400
    assert "not JSON" in (await answer.get_json())["detail"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"ttl": [' + b"1," * 50_000 + b"1]}"])
async def test_body_that_would_take_gigabytes(body: bytes) -> None:
    answer = await post("/run", body)
    assert answer.status_code == 413
    assert "65536 bytes beside" in (await answer.get_json())["detail"]


@pytest.mark.parametrize("body", [[1], "computation", 1, None, True])
async def test_what_is_no_object(body: object) -> None:
    answer = await post("/run", body)
    assert answer.status_code == 400
    assert "must be a JSON object" in (await answer.get_json())["detail"]


@pytest.mark.parametrize("kind", [None, "text/json", "application/x-www-form-urlencoded"])
async def test_other_content_type(kind: str | None) -> None:
    answer = await post("/run", {"computation": [1]}, kind)
    assert answer.status_code == 415
    assert (kind or "none") in (await answer.get_json())["detail"]


@pytest.mark.parametrize(
    ("body", "mode"),
    [(b"", "graceful"), ({}, "graceful"), ({"mode": "force"}, "force")],
)
async def test_mode(body: object, mode: str) -> None:
    answer = await post("/shutdown", body)
    assert await answer.get_data() == mode.encode()


async def test_no_body_needs_no_content_type() -> None:
    assert (await post("/shutdown", b"", None)).status_code == 200


@pytest.mark.parametrize("mode", ["", "FORCE", 1, None, ["force"], {}])
async def test_bad_mode(mode: object) -> None:
    answer = await post("/shutdown", {"mode": mode})
    assert answer.status_code == 400
    assert (await answer.get_json())["member"] == "mode"
