"""The commands without a supervisor: what is refused, what is suggested, what is printed."""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from click.testing import CliRunner
from rich.table import Table

from supervisor import config
from supervisor.api.sockets import bind_unix
from supervisor.cli import main, output
from supervisor.cli.client import find, told_to_a_person
from supervisor.cli.computations import request_body
from supervisor.cli.environment import CommandFailed, load_config
from supervisor.cli.output import duration
from supervisor.cli.vms import event_line
from supervisor.client import Client
from supervisor.client.place import default_url
from supervisor.image.image import DISK
from supervisor.image.manifest import File, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

FIRST = "6f1d9e0a-0000-4000-8000-000000000001"
SECOND = "6f1d9e0a-0000-4000-8000-000000000002"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("MANAGER_", "AGENT_GRPC_", "QMP_SUPERVISOR_")):
            monkeypatch.delenv(name)


def invoke(*args: str, **options: Any) -> Result:
    return CliRunner().invoke(main, args, **options)


def client(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    asked = Client("http://test")
    asked.http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    return asked


CHECKOUT = Path(__file__).parents[2]


def test_serve_help_shows_every_setting() -> None:
    shown = invoke("serve", "--help", terminal_width=200).output
    for names, _ in config.help_rows():
        assert names in shown


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["doctr"], "doctor"), (["ls", "--jsn"], "--json"), (["image", "biuld"], "build")],
)
def test_unknown_words_get_a_suggestion(words: list[str], meant: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr


def test_manual_pages_and_completions_are_those_of_this_command(tmp_path: Path) -> None:
    """If they are not, call scripts/manpages."""
    environ = os.environ | {"PYTHON": sys.executable}
    subprocess.run([CHECKOUT / "scripts/manpages", tmp_path], check=True, env=environ)
    kept = CHECKOUT / "supervisor/share"

    def contents(directory: Path) -> dict[Path, str]:
        files = (file for file in directory.rglob("*") if file.is_file())
        return {file.relative_to(directory): file.read_text() for file in files}

    for made in tmp_path.iterdir():
        assert contents(kept / made.name) == contents(made)


def test_unknown_settings_get_a_suggestion() -> None:
    result = invoke("doctor", env={"MANAGER_QEMU_SMP_CONT": "2"})
    assert result.exit_code == 2
    assert "did you mean 'MANAGER_QEMU_SMP_COUNT'?" in result.stderr


def test_settings_get_no_suggestion_that_is_far_from_them() -> None:
    result = invoke("doctor", env={"MANAGER_FOO": "2"})
    assert result.exit_code == 2
    assert "MANAGER_FOO is not a setting" in result.stderr
    assert "did you mean" not in result.stderr


def test_an_empty_variable_hides_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "supervisor.env"
    file.write_text("MANAGER_MAX_VMS=7\nMANAGER_QUEUE=3\n")
    monkeypatch.setenv("MANAGER_MAX_VMS", "")
    monkeypatch.setenv("MANAGER_QUEUE", "4")
    limits = load_config(str(file)).limits
    assert (limits.max_vms, limits.queue) == (7, 4)


@pytest.mark.parametrize("command", [["ls"], ["show", "x"], ["shutdown", "x"], ["rm", "x"]])
def test_nobody_answers(command: list[str], free_port: int) -> None:
    url = f"http://localhost:{free_port}"
    result = invoke(*command, "--url", url)
    assert result.exit_code == 1
    assert f"no supervisor answers at {url}" in result.stderr
    assert "qmp-supervisor serve" in result.stderr
    assert result.stdout == ""


def test_run_finds_nobody_either(free_port: int) -> None:
    env = {"QMP_SUPERVISOR_URL": f"localhost:{free_port}"}
    before = signal.getsignal(signal.SIGINT)
    result = invoke("run", "-", input=b"{}", env=env)
    assert result.exit_code == 1
    assert f"no supervisor answers at http://localhost:{free_port}" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is bound and on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:9021"),
        ({"MANAGER_HTTP_PORT": "8080"}, "http://127.0.0.1:8080"),
        ({"MANAGER_HTTP_HOST": "0.0.0.0"}, "http://127.0.0.1:9021"),
        ({"MANAGER_HTTP_HOST": "10.0.0.7"}, "http://10.0.0.7:9021"),
        ({"MANAGER_HTTP_HOST": "fd00::7"}, "http://[fd00::7]:9021"),
        ({"MANAGER_HTTP_SERVER_CERT": "c.pem"}, "https://localhost:9021"),
    ],
)
def test_default_url(environ: dict[str, str], url: str) -> None:
    assert default_url(environ) == url


def test_unix_socket_by_default_if_it_is_there(short_tmp: Path) -> None:
    path = short_tmp / "api.sock"
    environ = {"MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp), "MANAGER_HTTP_PORT": "9000"}
    assert default_url(environ) == "http://127.0.0.1:9000"
    with bind_unix(path, None, "MANAGER_SOCKET"):
        assert default_url(environ) == f"unix:{path}"
        assert default_url({"MANAGER_SOCKET": str(path)}) == f"unix:{path}"
        assert default_url(environ | {"MANAGER_SOCKET": "/none"}) == "http://127.0.0.1:9000"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_socket_that_another_user_put_there(short_tmp: Path) -> None:
    path = short_tmp / "api.sock"
    environ = {"MANAGER_QEMU_TMP_FILE_LOC": str(short_tmp)}
    with bind_unix(path, None, "MANAGER_SOCKET"):
        os.chown(path, 12345, 12345)
        assert default_url(environ) == "http://127.0.0.1:9021"


def test_socket_that_another_user_can_exchange(short_tmp: Path) -> None:
    """Also one by a link, which could be changed after it was looked at."""
    place, elsewhere = short_tmp / "tmp", short_tmp / "api.sock"
    place.mkdir(mode=0o700)
    environ = {"MANAGER_QEMU_TMP_FILE_LOC": str(place)}
    with bind_unix(place / "api.sock", None, "MANAGER_SOCKET"):
        assert default_url(environ) == f"unix:{place}/api.sock"
        for directory in (place, short_tmp):
            directory.chmod(0o777)
            assert default_url(environ) == "http://127.0.0.1:9021"
            directory.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(place, 12345, 12345)
            assert default_url(environ) == "http://127.0.0.1:9021"
            os.chown(place, 0, 0)
    with bind_unix(elsewhere, None, "MANAGER_SOCKET"):
        (place / "api.sock").symlink_to(elsewhere)
        if os.geteuid() == 0:
            os.chown(place / "api.sock", 12345, 12345, follow_symlinks=False)
            assert default_url(environ) == "http://127.0.0.1:9021"


def test_token_does_not_go_over_the_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMP_SUPERVISOR_TOKEN", "qms_x")
    done = CliRunner().invoke(main, ["ls", "--url", "http://192.0.2.1"])
    assert done.exit_code == 1
    assert "without TLS" in done.output


def test_ids_by_prefix() -> None:
    vms = {"vms": [{"id": FIRST}, {"id": SECOND}]}
    asked = client(lambda _: httpx.Response(200, json=vms))
    assert find(asked, FIRST) == FIRST
    assert find(asked, SECOND.upper()) == SECOND
    with pytest.raises(CommandFailed, match=f"ambiguous: it begins {FIRST}, {SECOND}"):
        find(asked, "6f1")
    with pytest.raises(CommandFailed, match="no VM has the id 7"):
        find(asked, "7")


def test_the_problems_detail_is_shown() -> None:
    problem = {"title": "Busy", "detail": "not now"}
    asked = client(lambda _: httpx.Response(409, json=problem))
    with pytest.raises(CommandFailed, match=r"^not now$"), told_to_a_person("http://test"):
        asked.vms()


def test_who_shows_no_token_is_told_the_commands_options() -> None:
    problem = {"detail": "nobody calls; send a header", "advice": "send a header"}
    asked = client(lambda _: httpx.Response(401, json=problem))
    with (
        pytest.raises(CommandFailed, match=r"^nobody calls; show a token with --token-file"),
        told_to_a_person("http://test"),
    ):
        asked.vms()


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, text="<html>"), httpx.Response(502, text="<html>")]
)
def test_other_servers_are_told_apart(answer: httpx.Response) -> None:
    asked = client(lambda _: answer)
    with pytest.raises(CommandFailed, match=r"http://test"), told_to_a_person("http://test"):
        asked.vms()


@pytest.mark.parametrize(
    "request_", [{"computation": [1, 2]}, {"computation": "AQI="}, {"computation": 1, "x": 2}]
)
def test_requests_are_sent_as_they_are(request_: dict[str, Any]) -> None:
    assert request_body(json.dumps(request_).encode(), raw=False) == request_


@pytest.mark.parametrize("content", [b'{"id": "1"}', b"[1, 2]", b"\xff\x00", b"", b"7"])
def test_all_else_is_the_computation(content: bytes) -> None:
    body = request_body(content, raw=False)
    assert base64.b64decode(str(body["computation"])) == content


def test_raw_is_the_computation_whatever_it_looks_like() -> None:
    content = b'{"computation": "AQI="}'
    assert base64.b64decode(str(request_body(content, raw=True)["computation"])) == content


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (5.24, "5.2s"),
        (200.9, "3m 20s"),
        (7500, "2h 5m"),
        (349200, "4d 1h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "taken",
            {"ttl_s": None, "restart": "never", "keep_disk": False},
            "taken      ttl: none, restart: never, keep disk: no",
        ),
        ("taken", {"ttl_s": 300, "keep_disk": True}, "taken      ttl: 5m 0s, keep disk: yes"),
        ("adopted", {"running": [FIRST, SECOND]}, f"adopted    running: {FIRST} {SECOND}"),
        ("adopted", {"running": []}, "adopted    running: none"),
        ("ending", {"why": "it was asked for"}, "ending     why: it was asked for"),
        ("deleted", {}, "deleted"),
    ],
    ids=str,
)
def test_events_are_told_in_words(kind: str, data: dict[str, Any], words: str) -> None:
    event = {"sequence": 7, "at": "2026-01-01T00:00:00.000Z", "vm": FIRST, "event": kind, **data}
    assert event_line(event) == f"     7 2026-01-01T00:00:00.000Z 6f1d9e0a {words}"
    of_fleet = event | {"host": "a", "position": "@1.5,a:5f0c21d9:7"}
    assert event_line(of_fleet) == f"     7 2026-01-01T00:00:00.000Z a        6f1d9e0a {words}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["[red]x", ":warning: [/]", "[link=http://a]b"])
def test_a_text_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    table = Table(box=None)
    table.add_row(f"{text}\x1b[2J", "second")
    output.stdout().print(table)
    output.stdout().print(f"line {text}\x1b]0;title\x07")
    shown = terminal.getvalue()
    assert shown.count(text) == 2
    assert "title" not in shown
    assert "\x1b[2J" not in shown


def test_a_status_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with output.stderr().status("", refresh_per_second=1) as status:
        output.update(status, "[red]x\x1b[2J")
    assert "[red]x" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


def test_image_build_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(
        output: Path,
        *,
        agent: Path | None,
        agent_arguments: list[str],
        progress: Callable[[str], None],
    ) -> Manifest:
        assert (agent, agent_arguments) == (None, ["--algorithm-timeout-s", "60"])
        progress("packing")
        output.mkdir()
        (output / DISK).write_bytes(bytes(2**20))
        files = {DISK: File.of(output / DISK)}
        return Manifest("reference", True, "6.1.0", "quiet", "2026-01-01T00:00:00Z", {}, files)

    monkeypatch.setattr("supervisor.cli.image.build", build)
    output = tmp_path / "an image"
    arguments = "--algorithm-timeout-s '60'"
    result = invoke("image", "build", "--output", str(output), "--agent-arguments", arguments)
    assert result.exit_code == 0, result.output
    assert "packing" in result.stderr
    assert "1 MiB, kernel 6.1.0, reference agent" in result.stderr
    assert shlex.split(result.stdout)[0] == f"MANAGER_QEMU_DISK_IMG_FILE={output / DISK}"
    assert result.stdout.endswith("qmp-supervisor serve\n")


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_answer_that_is_not_tls(reason: str) -> None:
    """OpenSSL 3.0 says the one of it, 3.5 also the other."""

    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"[SSL: {reason}] {reason.lower()} (_ssl.c:1081)")

    asked = client(answer)
    with pytest.raises(CommandFailed) as caught, told_to_a_person("https://host"):
        asked.vms()
    assert "its URL begins with http://" in str(caught.value)
