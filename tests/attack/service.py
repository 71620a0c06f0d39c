"""A running ``qmp-supervisor serve``, and the ways in which it can be asked."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from click.testing import CliRunner

from supervisor.cli import main as command
from supervisor.pb import manager_pb2_grpc, vm_pb2_grpc
from tests.attack.kinds import Came, Request

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

#: Longer than a guest needs to boot under emulation on a loaded machine.
PATIENCE_S = 900.0
#: How long an answer may take that waits for no guest.
ANSWER_S = 60.0
#: What a connection that is cut off sees within this time, one that may stay does not.
LONG_S = 20.0
_POLL_S = 0.01

_HEAD = re.compile(rb"HTTP/1\.1 \d{3} .*?\r\n\r\n", re.DOTALL)

#: Each role's, by the name of who has a token of that role.
PARTIES = {
    "alice": "run",
    "bob": "run",
    "carol": "run",
    "reader": "read",
    "scraper": "metrics",
    "olivia": "operate",
    "gone": "operate",  # whose token will be revoked
    "root": "admin",
}

#: In the place of a name in the audit log: whoever the token is of that is shown.
AS_SHOWN = "as shown"

#: Each service with its stub and its full name.
_STUBS: dict[str, tuple[Any, str]] = {
    "manager": (manager_pb2_grpc.ManagerServiceStub, "/manager.ManagerService/"),
    "vms": (vm_pb2_grpc.VmServiceStub, "/supervisor.v1.VmService/"),
}


class Answer:
    """An HTTP answer.

    :ivar body: empty if it is a stream
    """

    def __init__(self, answer: http.client.HTTPResponse, request: Request) -> None:
        self.status = answer.status
        self.headers = answer.headers
        is_stream = answer.headers.get_content_type() == "text/event-stream"
        self.body = b"" if is_stream else answer.read()
        self.request = request

    @property
    def came(self) -> Came:
        return Came(str(self.status), self.request, self.body[:60].decode(errors="replace"))

    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """One supervisor.

    :ivar tokens: by the name of their owner
    :ivar tls: of clients; None without TLS
    """

    def __init__(self, tmp: Path, process: subprocess.Popen[str], tokens: dict[str, str]) -> None:
        self.tmp = tmp
        self.process = process
        self.tokens = tokens
        self.http_port = self.grpc_port = 0
        self.tls: ssl.SSLContext | None = None

    # --- tokens -----------------------------------------------------------------------------

    def create_token(self, name: str, role: str, *options: str) -> str:
        self.tokens[name] = create_token(self.tmp, name, role, *options)
        return self.tokens[name]

    def revoke_token(self, name: str) -> None:
        _token(self.tmp, "revoke", name)

    # --- HTTP -------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        host: str = "",
        who: str | None = AS_SHOWN,
    ) -> Answer:
        """:param by: whose token is shown
        :param body: bytes as they are; all else as JSON, with its content type
        :param who: whose name the audit log should have, if that is not *by*
        """
        connection = self.connection()
        try:
            return self.send(
                connection, method, path, body, by=by, headers=headers, host=host, who=who
            )
        finally:
            connection.close()

    def send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        host: str = "",
        who: str | None = AS_SHOWN,
    ) -> Answer:
        """The same over a connection that stays open."""
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or f"localhost:{self.http_port}")
        if by is not None:
            connection.putheader("Authorization", f"Bearer {self.tokens[by]}")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            if not isinstance(body, bytes):
                connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(content)))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(content if body is not None else None)
        answer = connection.getresponse()
        id_ = answer.headers.get("X-Request-Id", "")
        request = Request(self, id_, f"{method} ", by if who is AS_SHOWN else who)
        return Answer(answer, request)

    def connection(self) -> http.client.HTTPConnection:
        if self.tls:
            return http.client.HTTPSConnection(
                "localhost", self.http_port, timeout=PATIENCE_S, context=self.tls
            )
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE_S)

    @contextmanager
    def raw(self, timeout_s: float = ANSWER_S) -> Iterator[socket.socket]:
        """A connection on which anything can be sent."""
        with socket.create_connection(("127.0.0.1", self.http_port), timeout_s) as connection:
            yield connection

    def exchange(self, sent: bytes, timeout_s: float = ANSWER_S) -> bytes:
        """All that is answered to these bytes, until the end of the connection."""
        with self.raw(timeout_s) as connection:
            connection.sendall(sent)
            return read_all(connection)

    def came_of(self, answered: bytes, what: str, who: str | None = None) -> Came:
        """What came of a request that was sent as bytes, from the last answer to it."""
        heads = _HEAD.findall(answered)
        if not heads:
            return Came("closed", detail=repr(answered[:60]))
        fields = [line.partition(b":") for line in heads[-1].split(b"\r\n")[1:]]
        headers = {name.lower(): value.strip().decode() for name, _, value in fields}
        request = Request(self, headers.get(b"x-request-id", ""), what, who)
        return Came(heads[-1].split()[1].decode(), request, repr(answered[-60:]))

    # --- gRPC -------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        message: Any,
        *,
        by: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        credentials: grpc.ChannelCredentials | None = None,
        who: str | None = AS_SHOWN,
    ) -> tuple[Came, Any]:
        """What came of a call, and its answer; of a stream its first message.

        :param name: such as ``vms.List``
        """
        room, _, method = name.partition(".")
        stub, prefix = _STUBS[room]
        shown = [("authorization", f"Bearer {self.tokens[by]}")] if by else []
        with self.channel(credentials) as channel:
            return self.came_of_call(
                getattr(stub(channel), method),
                message,
                f"{prefix}{method}",
                metadata=[*shown, *metadata],
                who=by if who is AS_SHOWN else who,
            )

    def came_of_call(
        self,
        method: Any,
        message: Any,
        what: str,
        *,
        metadata: Sequence[tuple[str, str]] = (),
        who: str | None = None,
    ) -> tuple[Came, Any]:
        """:param what: the full name of the method"""
        answer = None
        try:
            call: Any = None
            if hasattr(method, "with_call"):
                answer, call = method.with_call(message, timeout=PATIENCE_S, metadata=metadata)
            else:
                call = method(message, timeout=LONG_S, metadata=metadata)
                answer = next(call)
                call.cancel()
            code, initial = "OK", call.initial_metadata()
        except grpc.RpcError as error:
            failed: Any = error
            code, initial = failed.code().name, failed.initial_metadata()
            if failed is call and code == "DEADLINE_EXCEEDED":
                code = "OK"  # a stream that has nothing to tell yet
        ids = [str(value) for key, value in initial or () if key == "x-request-id"]
        return Came(code, Request(self, ids[0] if ids else "", what, who)), answer

    @contextmanager
    def channel(self, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Any]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        target = f"localhost:{self.grpc_port}"
        if credentials:
            channel = grpc.secure_channel(target, credentials, options)
        else:
            channel = grpc.insecure_channel(target, options)
        with channel:
            yield channel

    def until(self, vm_id: str, state: str, by: str | None = None) -> None:
        """Wait until a VM is in this state."""
        self._until(f"/vms/{vm_id}/status", lambda answer: answer["state"] == state, by)

    def until_listed(
        self, wanted: Callable[[dict[str, Any]], bool], by: str, purpose: str
    ) -> dict[str, Any]:
        """The first VM of this purpose of which this is so, once there is one."""
        path = f"/vms?purpose={purpose}"
        answer = self._until(path, lambda answer: any(map(wanted, answer["vms"])), by)
        return next(vm for vm in answer["vms"] if wanted(vm))

    def _until(self, path: str, condition: Callable[[Any], bool], by: str | None) -> Any:
        """What is answered there once this is so of it; it is asked again at each event."""
        connection = self.connection()
        try:
            shown = {"Authorization": f"Bearer {self.tokens[by]}"} if by else {}
            connection.request("GET", "/events?after=0", headers=shown)
            events = connection.getresponse()
            deadline = time.monotonic() + PATIENCE_S
            while not condition(answer := self.ask("GET", path, by=by).json()):
                assert events.readline(), answer
                assert time.monotonic() < deadline, answer
            return answer
        finally:
            connection.close()

    # --- what is on file --------------------------------------------------------------------

    def audit(self) -> list[dict[str, Any]]:
        try:
            lines = (self.tmp / "audit.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # Half of a line may be there for a moment: the kernel writes it page by page.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def until_told(self, message: str) -> None:
        """Wait until the log has this."""
        deadline = time.monotonic() + PATIENCE_S
        while f'"message": "{message}"' not in self.tmp.with_suffix(".log").read_text():
            assert time.monotonic() < deadline, message
            time.sleep(_POLL_S)

    def audit_line(self, request_id: str) -> dict[str, Any] | None:
        """The line of a request; None if there is none.

        A line is written when its request is over, which its caller may know a moment before.
        """
        deadline = time.monotonic() + ANSWER_S / 10
        while time.monotonic() < deadline:
            for line in self.audit():
                if request_id and line["request_id"] == request_id:
                    return line
            time.sleep(_POLL_S)
        return None


def create_token(tmp: Path, name: str, role: str, *options: str) -> str:
    """A token of the supervisor that has this tmp/."""
    out = _token(tmp, "create", name, "--role", role, *options)
    return out.strip().splitlines()[-1]


def _token(tmp: Path, *words: str) -> str:
    environ = {"MANAGER_QEMU_TMP_FILE_LOC": str(tmp), "MANAGER_TOKENS": None}
    done = CliRunner().invoke(command, ["token", *words], env=environ)
    assert done.exit_code == 0, done.output
    return done.stdout


def read_all(connection: socket.socket) -> bytes:
    """What comes until the end of the connection; what came so far if it is reset.

    :raises TimeoutError: if the connection stays open
    """
    answered = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            return answered
        if not part:
            return answered
        answered += part


@contextmanager
def serving(source: Path, tmp: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """A supervisor that runs until the end of the block, and whose VMs end with it.

    :param source: the directory in which ``supervisor/`` is
    :param tmp: its MANAGER_QEMU_TMP_FILE_LOC
    """
    # Before it starts: a supervisor that does not read its tokens again has these.
    tokens = {name: create_token(tmp, name, role) for name, role in PARTIES.items()}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "supervisor", "serve"],
        env=environ_of(source) | {"MANAGER_QEMU_TMP_FILE_LOC": str(tmp), **settings},
        cwd=source,
        stderr=subprocess.PIPE,
        text=True,
    )
    service = Service(tmp, process, tokens)
    ready: queue.Queue[dict[str, Any] | str] = queue.Queue()
    reader = threading.Thread(target=_read_log, args=(process, ready, tmp.with_suffix(".log")))
    reader.start()
    try:
        ports = ready.get(timeout=PATIENCE_S)
        if isinstance(ports, str):
            raise NotServed(ports)
        service.http_port, service.grpc_port = ports["http_port"], ports["grpc_port"]
        yield service
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
        reader.join()
        assert process.stderr
        process.stderr.close()


class NotServed(Exception):
    """The supervisor ended before it was ready; says why."""


def environ_of(source: Path) -> dict[str, str]:
    """For a command of the code that is attacked."""
    ours = ("MANAGER_", "AGENT_GRPC_", "RUNTIME_DIRECTORY")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}


def _read_log(
    process: subprocess.Popen[str], ready: queue.Queue[dict[str, Any] | str], log: Path
) -> None:
    assert process.stderr
    last = ""
    with log.open("a") as file:
        for line in process.stderr:
            file.write(line)
            file.flush()
            last = line
            if line.startswith("{") and json.loads(line)["message"] == "ready":
                ready.put(json.loads(line))
    ready.put(last)
