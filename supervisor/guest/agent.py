"""The reference agent: takes a computation, runs an algorithm over a dataset, hands out the result.

It is one file that needs nothing but Python 3.11 and grpcio, because it also runs inside the
guest, alone. gRPC (``agent.AgentService``) listens on 7002, HTTP on 9031. Once both serve, one line
``{"grpc_port": N, "http_port": N}`` goes to stdout; port 0 lets the kernel choose. SIGTERM ends
the agent, and any algorithm it runs, with status 0.

Whatever cannot be answered is a :class:`Refusal`: a status code and a sentence for the caller.

The agent is safe to clone while it runs: it holds no keys, and nothing it draws at random (a
directory's name) has to differ between guests. Every algorithm is a process of its own, which
seeds itself anew.

Attestation asks /dev/sev-guest, after the kernel's public interface. It has never been run on a
machine with SEV-SNP.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.server import ThreadingHTTPServer

    # Registers a callback for the end of a call; False says that the call has ended already.
    OnEnd = Callable[[Callable[[], None]], bool]

VERSION = "1"
MAX_PAYLOAD_BYTES = 16 << 20
# Room for the field's tag and length, and for what JSON adds.
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + (1 << 16)
# execve takes no single argument of 32 pages or more, the final NUL included.
MAX_ARGUMENT_BYTES = 32 * 4096 - 1
STDERR_TAIL_BYTES = 2000  # gRPC carries it in a header, and headers end at 8 kB


class Refusal(Exception):
    """The caller gets this status code and this sentence instead of an answer."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


# --- The wire ---
#
# Every message of the protocol has at most one field: number 1, length-delimited. Twenty lines
# read and write that; the protobuf runtime would double what the guest must load before it answers.


def encode_message(payload: bytes) -> bytes:
    """The message whose field 1 is *payload*; an empty field is left out, as in proto3."""
    if not payload:
        return b""
    length, size = bytearray(), len(payload)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x0a" + bytes(length) + bytes((size,)) + payload


def decode_message(message: bytes) -> bytes:
    """Field 1 of *message*, the last if it is repeated, empty if it is absent.

    Unknown fields are skipped. ValueError: *message* is no protobuf message.
    """
    payload, groups, at = b"", [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, start = _varint(message, at)
            at = start + size
        elif kind == 3:
            groups.append(number)
        elif kind != 4 or not groups or groups.pop() != number:
            raise ValueError(f"wire type {kind} out of place at byte {start}")
        if not 0 < number < 1 << 29 or at > len(message):
            raise ValueError(f"field {number} does not fit at byte {start}")
        if (number, kind) == (1, 2) and not groups:
            payload = message[start:at]
    if groups:
        raise ValueError(f"group {groups[-1]} does not end")
    return payload


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at *at* and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError(f"a number is cut off at byte {at}")


# --- The computation ---
#
# Callers of the original agent, a Go program, get their computation back as Go's encoding/json
# writes it, so this follows Go where it differs from Python's json.

ZERO_TIME = "0001-01-01T00:00:00Z"
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d+))?"
    r"(Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
# Go escapes what HTML or JavaScript would trip over.
_GO_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def remarshal(computation: bytes) -> str:
    """*computation* as Go marshals it: known fields in order, empty ones left out, compact.

    Times are structs to Go, hence never empty: an absent one is the year 1. ValueError names the
    field at fault.
    """
    try:
        value = json.loads(computation.decode(), parse_constant=_no_constant)
        members = {} if value is None else value
        if not isinstance(members, dict):
            raise ValueError("the computation is not a JSON object")
        # Go matches member names regardless of case.
        folded = {name.lower(): member for name, member in members.items() if member is not None}
        fields = {name: convert(name, folded.get(name)) for name, convert in _FIELDS.items()}
    except RecursionError:
        raise ValueError("the computation is nested too deeply") from None
    text = json.dumps(
        {name: field for name, field in fields.items() if field},
        ensure_ascii=False,
        separators=(",", ":"),
    )
    # JSON can spell half a surrogate pair, UTF-8 cannot: Go puts U+FFFD there.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.translate(_GO_ESCAPES)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _string(name: str, value: object) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"{name} is not a string")
    return value or ""


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list | None):
        raise ValueError(f"{name} is not an array of strings")
    return [_string(f"{name}[{index}]", item) for index, item in enumerate(value or ())]


def _int32(name: str, value: object) -> int:
    if value is None:
        return 0
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError(f"{name} is not a 32-bit integer")
    return value


def _time(name: str, value: object) -> str:
    if value is None:
        return ZERO_TIME
    match = _RFC3339.fullmatch(_string(name, value))
    if not match:
        raise ValueError(f"{name} is not an RFC 3339 time")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    leap = int(year) % 4 == 0 and (int(year) % 100 != 0 or int(year) % 400 == 0)
    days = (31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= days[int(month) - 1]):
        raise ValueError(f"{name} is not a day of the calendar")
    nanoseconds = (fraction or "")[:9].rstrip("0")
    return (
        f"{year}-{month}-{day}T{hour}:{minute}:{second}"
        + (f".{nanoseconds}" if nanoseconds else "")
        + ("Z" if zone[1:] == "00:00" else zone)
    )


def _metadata(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is not an object")
    return {key: _sorted(member) for key, member in sorted((value or {}).items())}


def _sorted(value: Any) -> object:
    """*value* with the members of its objects sorted and whole floats written as integers."""
    if isinstance(value, dict):
        return {key: _sorted(member) for key, member in sorted(value.items())}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, float) and abs(value) < 1e21 and value.is_integer():
        return int(value)
    return value


_FIELDS: dict[str, Callable[[str, object], object]] = {
    "id": _string,
    "name": _string,
    "description": _string,
    "status": _string,
    "owner": _string,
    "start_time": _time,
    "end_time": _time,
    "datasets": _strings,
    "algorithms": _strings,
    "dataset_providers": _strings,
    "algorithm_providers": _strings,
    "result_consumers": _strings,
    "ttl": _int32,
    "metadata": _metadata,
}


# --- The algorithm ---


class AlgorithmProcess:
    """``python3 -c ALGORITHM DATASET SOCKET`` in a process group that ends with the block."""

    def __init__(self, algorithm: bytes, dataset: bytes, path: str, stderr: BinaryIO) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", algorithm, dataset, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        os.close(self.pidfd)

    def kill(self) -> None:
        """Kills the group. Until the leader is reaped, its number cannot mean another group."""
        with self._lock:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Ends what still runs of the group; the exit status of its leader, -N for signal N."""
        self.kill()
        with self._lock:
            return self._process.wait()


def run_algorithm(algorithm: bytes, dataset: bytes, timeout_s: float, on_end: OnEnd) -> bytes:
    """What the algorithm writes to its socket. *on_end* registers what kills it early."""
    deadline = time.monotonic() + timeout_s
    with (
        tempfile.TemporaryDirectory(prefix="agent-") as directory,
        open(f"{directory}/stderr", "w+b") as stderr,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        path = f"{directory}/result.sock"
        listener.bind(path)
        listener.listen(1)
        with AlgorithmProcess(algorithm, dataset, path, stderr) as process:
            if not on_end(process.kill):
                process.kill()
            try:
                result = _receive(listener, process.pidfd, deadline)
                _wait_readable([process.pidfd], deadline)
            except TimeoutError:
                why = f"the algorithm did not finish within {timeout_s:g} s"
                raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, why + _tail(stderr)) from None
            status = process.wait()
        if status != 0:
            why = f"the algorithm ended with status {status}"
            raise Refusal(grpc.StatusCode.ABORTED, why + _tail(stderr))
        if result is None:
            why = "the algorithm ended without connecting to its socket"
            raise Refusal(grpc.StatusCode.ABORTED, why + _tail(stderr))
    return result


def _receive(listener: socket.socket, pidfd: int, deadline: float) -> bytes | None:
    """All that the first to connect writes; None if the process ends before it connects."""
    _wait_readable([listener.fileno(), pidfd], deadline)
    listener.setblocking(False)
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return None
    result = bytearray()
    with connection:
        connection.setblocking(False)
        while True:
            _wait_readable([connection.fileno(), pidfd], deadline)
            try:
                chunk = connection.recv(1 << 16)
            except BlockingIOError:  # the process is gone, a child of it holds the socket open
                return bytes(result)
            if not chunk:
                return bytes(result)
            result += chunk
            if len(result) > MAX_PAYLOAD_BYTES:
                why = f"the result exceeds {MAX_PAYLOAD_BYTES} bytes"
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, why)


def _wait_readable(fds: list[int], deadline: float) -> None:
    """Returns when one of *fds* is readable. TimeoutError: none was before *deadline*."""
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError


def _tail(stderr: BinaryIO) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - STDERR_TAIL_BYTES))
    tail = stderr.read().decode(errors="replace").strip()
    return f": {tail}" if tail else ", and wrote nothing to stderr"


# --- Attestation ---

SEV_GUEST = "/dev/sev-guest"
SNP_GET_REPORT = 3 << 30 | 32 << 16 | ord("S") << 8 | 0  # _IOWR('S', 0, 32 bytes)
REPORT_DATA_BYTES = 64
RESPONSE_BYTES = 4000


def snp_report(report_data: bytes) -> bytes:
    """The processor's signed report over *report_data* (64 bytes), as the firmware wrote it."""
    request = array.array("B", report_data + bytes(32))  # then the VMPL, 0, and padding
    response = array.array("B", bytes(RESPONSE_BYTES))
    addresses = request.buffer_info()[0], response.buffer_info()[0]
    call = bytearray(struct.pack("=B7xQQQ", 1, *addresses, 0))
    try:
        with open(SEV_GUEST, "r+b", buffering=0) as device:
            fcntl.ioctl(device, SNP_GET_REPORT, call)
    except FileNotFoundError:
        why = f"no {SEV_GUEST} here: this guest does not run under SEV-SNP and has no report"
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why) from None
    except OSError as error:
        firmware = struct.unpack_from("=Q", call, 24)[0]
        why = f"{SEV_GUEST} gave no report: {error.strerror}, firmware error {firmware:#x}"
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why) from error
    return unpack_report(response.tobytes())


def unpack_report(response: bytes) -> bytes:
    """The report inside the firmware's *response*: status u32, size u32, 24 bytes, report."""
    status, size = struct.unpack_from("=II", response)
    if status or not 0 < size <= len(response) - 32:
        why = f"the firmware's answer holds no report: status {status:#x}, {size} bytes"
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why)
    return response[32 : 32 + size]


# --- The agent ---


class Agent:
    """What the guest holds: a computation, an algorithm, a dataset; the last one sent counts.

    Methods may be called from many threads at once. All raise :class:`Refusal`.
    """

    def __init__(self, algorithm_timeout_s: float) -> None:
        self._algorithm_timeout_s = algorithm_timeout_s
        self._lock = threading.Lock()
        self._algorithm = b""
        self._dataset = b""
        self._calls: dict[tuple[str, str], int] = {}
        self.computation = ""
        self._methods: dict[str, Callable[[bytes, OnEnd], bytes]] = {
            "Run": self._run,
            "Algo": self._algo,
            "Data": self._data,
            "Result": self._result,
            "Attestation": self._attestation,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self._methods)

    def call(self, method: str, payload: bytes, on_end: OnEnd) -> bytes:
        """Answers *method*, and counts how that went."""
        code = grpc.StatusCode.INTERNAL
        try:
            answer = self._methods[method](payload, on_end)
            code = grpc.StatusCode.OK
        except Refusal as refusal:
            code = refusal.code
            raise
        finally:
            with self._lock:
                key = (method, code.name)
                self._calls[key] = self._calls.get(key, 0) + 1
        return answer

    def metrics(self) -> str:
        """The counters as Prometheus text."""
        with self._lock:
            calls = sorted(self._calls.items())
        lines = [f'agent_calls_total{{method="{m}",code="{c}"}} {count}' for (m, c), count in calls]
        head = "# HELP agent_calls_total Calls answered.\n# TYPE agent_calls_total counter\n"
        return head + "".join(f"{line}\n" for line in lines)

    def _run(self, computation: bytes, _: OnEnd) -> bytes:
        try:
            self.computation = remarshal(computation)
        except ValueError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"no computation: {error}") from error
        return self.computation.encode()

    def _algo(self, algorithm: bytes, _: OnEnd) -> bytes:
        self._algorithm = _argument("algorithm", algorithm)
        return _identity(algorithm)

    def _data(self, dataset: bytes, _: OnEnd) -> bytes:
        self._dataset = _argument("dataset", dataset)
        return _identity(dataset)

    def _result(self, _: bytes, on_end: OnEnd) -> bytes:
        for name, value in (("algorithm", self._algorithm), ("dataset", self._dataset)):
            if not value:
                why = f"there is no {name} yet"
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, why)
        return run_algorithm(self._algorithm, self._dataset, self._algorithm_timeout_s, on_end)

    def _attestation(self, report_data: bytes, _: OnEnd) -> bytes:
        if len(report_data) > REPORT_DATA_BYTES:
            why = f"{len(report_data)} bytes of report data, at most {REPORT_DATA_BYTES} fit"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why)
        return snp_report(report_data.ljust(REPORT_DATA_BYTES, b"\0"))


def _argument(name: str, value: bytes) -> bytes:
    """*value* if it can be a process's argument."""
    if not value:
        why = f"the {name} is empty"
    elif len(value) > MAX_ARGUMENT_BYTES:
        why = f"{len(value)} bytes of {name}, a process's argument holds {MAX_ARGUMENT_BYTES}"
    elif b"\0" in value:
        why = f"the {name} is not text: it holds a zero byte"
    else:
        return value
    raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, why)


def _identity(value: bytes) -> bytes:
    """The id of an algorithm or a dataset: its SHA-256 in hex, the same in every guest."""
    return hashlib.sha256(value).hexdigest().encode()


# --- Serving ---


def serve_grpc(agent: Agent, host: str, port: int) -> tuple[grpc.Server, int]:
    """A started server and its port. The caller stops it. RuntimeError: the port is not free."""
    limits = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    limits += [("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=limits)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(_behaviour(agent, name)) for name in agent.methods
    }
    service = grpc.method_handlers_generic_handler("agent.AgentService", handlers)
    server.add_generic_rpc_handlers((service,))
    bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    server.start()
    return server, bound


def _behaviour(agent: Agent, method: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def answer(message: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            payload = decode_message(message)
            return encode_message(agent.call(method, payload, context.add_callback))
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no protobuf message: {error}")
        except Refusal as refusal:
            context.abort(refusal.code, refusal.detail)

    return answer


def serve_http(agent: Agent, host: str, port: int) -> ThreadingHTTPServer:
    """A server that runs in a thread of its own. The caller shuts it down."""
    # Imported here because it takes long, and gRPC should answer meanwhile.
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            if self.path == "/health":
                health = {"status": "pass", "version": VERSION, "description": "agent service"}
                self._answer(200, "application/health+json", json.dumps(health))
            elif self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", agent.metrics())
            else:
                self._problem(404, f"there is nothing at {self.path}")

        def do_POST(self) -> None:
            status, text = self._run()
            if status == 200:
                self._answer(200, "application/json", json.dumps({"computation": text}))
            else:
                self._problem(status, text)

        def _run(self) -> tuple[int, str]:
            """The status and the agent's reply, or what the caller did wrong."""
            length = self.headers.get("Content-Length", "")
            if self.path != "/run":
                return 404, f"there is nothing at {self.path}"
            if self.headers.get_content_type() != "application/json":
                return 415, "the body must be application/json"
            # Written as an array of numbers, a byte takes up to four.
            if not length.isdecimal() or int(length) > 4 * MAX_MESSAGE_BYTES:
                return (413 if length else 411), "the body's length must be known and bounded"
            try:
                computation = parse_request(self.rfile.read(int(length)))
                return 200, agent.call("Run", computation, lambda _: True).decode()
            except (ValueError, Refusal) as error:
                return 400, str(error)

        def _problem(self, status: int, detail: str) -> None:
            self.close_connection = True  # a body may be left unread
            title = self.responses[status][0]
            problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
            self._answer(status, "application/problem+json", json.dumps(problem))

        def _answer(self, status: int, content_type: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing: the guest's console is slow."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

        def server_bind(self) -> None:
            # HTTPServer's would look up its own name, which can wait for a name server.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()

    server = Server((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


def parse_request(body: bytes) -> bytes:
    """The computation in the JSON *body*: an array of 0..255 or a base64 string. ValueError."""
    import base64

    try:
        request = json.loads(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    if not isinstance(request, dict) or set(request) != {"computation"}:
        raise ValueError("the body must be an object whose one member is computation")
    computation = request["computation"]
    if isinstance(computation, str):
        return base64.b64decode(computation, validate=True)
    if not isinstance(computation, list) or any(type(byte) is not int for byte in computation):
        raise ValueError("computation must be an array of integers or a base64 string")
    return bytes(computation)


def main() -> int:
    import argparse

    env = os.environ.get
    parser = argparse.ArgumentParser(description="The reference agent.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--grpc-port", type=int, default=env("AGENT_GRPC_PORT", "7002"))
    parser.add_argument("--http-port", type=int, default=env("AGENT_HTTP_PORT", "9031"))
    parser.add_argument("--algorithm-timeout-s", type=float, default=3600.0)
    options = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(options.algorithm_timeout_s)
    try:
        server, grpc_port = serve_grpc(agent, options.host, options.grpc_port)
        http = serve_http(agent, options.host, options.http_port)
    except (OSError, RuntimeError) as error:
        print(f"agent: cannot listen: {error}", file=sys.stderr)
        return 1
    ports = {"grpc_port": grpc_port, "http_port": http.server_address[1]}
    print(json.dumps(ports), flush=True)
    stop.wait()
    http.shutdown()
    server.stop(grace=1.0).wait()  # what still runs is cancelled, which kills its algorithm
    return 0


if __name__ == "__main__":
    sys.exit(main())
