"""The agent over HTTP: /health, /metrics and /run."""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from .computation import parse_request
from .refusal import Refusal, StatusCode
from .wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import ssl

    from .access import Access
    from .service import Agent

VERSION = "1"
STRANGER = (
    "this agent is its run's alone: 'Authorization: Bearer CREDENTIAL' is missing or wrong; the"
    " run's answer has the credential"
)


def serve_http(
    agent: Agent, access: Access, host: str, port: int, tls: ssl.SSLContext | None = None
) -> Server:
    """A server that runs in a thread of its own, until stop() or the end of the process.

    *access* decides whose requests are answered; ``GET /health`` is everybody's.
    """
    server = Server(agent, access, host, port, tls)
    server.thread.start()
    return server


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self.path == "/health":
            health = {"status": "pass", "version": VERSION, "description": "agent service"}
            self._answer(200, "application/health+json", json.dumps(health))
        elif not self._is_admitted():
            self._problem(401, STRANGER)
        elif self.path == "/metrics":
            self._answer(
                200, "text/plain; version=0.0.4; charset=utf-8", self.server.agent.metrics()
            )
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
        if not self._is_admitted():
            return 401, STRANGER
        length = self.headers.get("Content-Length", "")
        if self.path != "/run":
            return 404, f"there is nothing at {self.path}"
        if self.headers.get_content_type() != "application/json":
            return 415, "the body must be application/json"
        # In an array of numbers, a byte takes up to four characters.
        if not length.isdecimal() or int(length) > 4 * MAX_MESSAGE_BYTES:
            return (413 if length else 411), "the body's length must be known and bounded"
        try:
            computation = parse_request(self.rfile.read(int(length)))
            return 200, self.server.agent.call("Run", computation, lambda _: True).decode()
        except Refusal as refusal:
            held = refusal.code is StatusCode.FAILED_PRECONDITION
            return (409 if held else 400), refusal.detail
        except ValueError as error:
            return 400, str(error)

    def _is_admitted(self) -> bool:
        headers = {name.lower().encode(): value.encode() for name, value in self.headers.items()}
        return self.server.access.admits(headers)

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
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing: the guest's console is slow."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, agent: Agent, access: Access, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        self.agent = agent
        self._tls = tls
        self.access = access
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._stopping = False

    def _serve(self) -> None:
        # serve_forever() wakes twice a second to look whether it should end.
        while not self._stopping:
            self.handle_request()

    def stop(self) -> None:
        """Takes no more connections, and returns when the thread has ended and the port is free."""
        self._stopping = True
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread; close() would not
        self.thread.join()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = super().get_request()
        if self._tls:
            # Hands are shaken when its own thread begins to read.
            client = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes, or speaks no TLS, is no bug, and the guest's console is slow.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        # HTTPServer's own looks up the host's name, which can wait for a name server.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
