"""The HTTP API of a running supervisor, for the commands. Errors are fit for a person."""

from __future__ import annotations

import base64
import functools
import json
import os
import ssl
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import attrs
import click
import httpx
from click.shell_completion import CompletionItem

from supervisor.cli.environment import CommandFailed
from supervisor.errors import nearest
from supervisor.tls import as_tolerant_as_others, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import httpx_ws

P = ParamSpec("P")
R = TypeVar("R")

#: Where a supervisor of systemd's has it: docs/how-to/run-under-systemd.md.
_SYSTEM_SOCKET = "/run/qmp-supervisor/api.sock"

_EVERY_INTERFACE = ("", "0.0.0.0", "::")

#: Every request here is answered at once, except the end of a VM, which waits for its guest.
_TIMEOUT = httpx.Timeout(30.0)
#: A stream of events has a line at least every fifteen seconds.
_SILENCE = httpx.Timeout(40.0)
_RETRY_S = 1.0
#: The server's advice is for who writes headers.
_WHO = (
    "show a token with --token-file or QMP_SUPERVISOR_TOKEN, or name the supervisor's unix socket"
    " with --url unix:PATH"
)
#: What OpenSSL says of an answer that is not TLS, by its version and by how the answer comes.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


@attrs.frozen
class Tls:
    """PEM files: the CAs to trust, and the certificate to show to a server that asks for one."""

    cacert: str | None
    cert: str | None
    key: str | None


class Client:
    """The HTTP API of one supervisor. Every method raises `CommandFailed` with what to show."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def get(self, path: str) -> Any:
        return self._json(self._ask("GET", path))

    def text(self, path: str) -> str:
        return self._ask("GET", path).text

    def post(self, path: str, body: object) -> Any:
        return self._json(self._ask("POST", path, json=body))

    def post_slowly(self, path: str, body: object) -> Any:
        """The same, of what takes as long as a guest takes."""
        return self._json(self._ask("POST", path, json=body, timeout=None))

    def put(self, path: str, pieces: Iterator[bytes], size: int, sha256: bytes) -> Any:
        """Send bytes, as fast as the other side takes them."""
        digest = base64.b64encode(sha256).decode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Digest": f"sha-256=:{digest}:",
        }
        asked = self._ask("PUT", path, content=pieces, headers=headers, timeout=None)
        return self._json(asked)

    def pieces(self, path: str) -> Iterator[bytes]:
        """A long answer. If the connection breaks, it goes on where it was, as long as it can."""
        came, etag = 0, ""
        while True:
            headers = {"Range": f"bytes={came}-", "If-Range": etag} if came else {}
            before = came
            try:
                with self._http.stream("GET", path, headers=headers) as response:
                    if response.is_error:
                        response.read()
                        raise CommandFailed(_problem(response))
                    if came and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise CommandFailed(f"{self.url}{path} has changed meanwhile")
                    etag = response.headers.get("ETag", "")
                    for piece in response.iter_bytes():
                        came += len(piece)
                        yield piece
                    return
            except httpx.HTTPError as error:
                if came == before or not etag:
                    raise CommandFailed(f"{self.url}: {_words(error)}") from error

    def stream(self, path: str) -> Iterator[bytes]:
        """An answer that may take as long as its VM lives, as it comes."""
        try:
            with self._http.stream("GET", path, timeout=None) as response:
                if response.is_error:
                    response.read()
                    raise CommandFailed(_problem(response))
                yield from response.iter_bytes()
        except httpx.ConnectError as error:
            raise CommandFailed(self._nobody(error)) from error
        except httpx.HTTPError as error:
            raise CommandFailed(f"{self.url}: {_words(error)}") from error

    @contextmanager
    def websocket(self, path: str) -> Iterator[httpx_ws.WebSocketSession]:
        import httpx_ws  # of one command

        # While it can be read: httpx-ws closes what is no WebSocket.
        self._http.event_hooks["response"] = [_read_refusal]
        try:
            socket: httpx_ws.WebSocketSession
            with httpx_ws.connect_ws(path, self._http) as socket:
                yield socket
        except httpx_ws.WebSocketUpgradeError as error:
            raise CommandFailed(_problem(error.response)) from error
        except httpx.ConnectError as error:
            raise CommandFailed(self._nobody(error)) from error
        except httpx.HTTPError as error:
            raise CommandFailed(f"{self.url}: {_words(error)}") from error

    def run(self, body: object) -> Any:
        """A VM, on record. Waits for room, and for a template if the run requires one."""
        wish = {"Prefer": "respond-async"}
        return self._json(self._ask("POST", "/run", json=body, headers=wish, timeout=None))

    def delete(self, path: str) -> None:
        self._ask("DELETE", path, timeout=None)  # waits for a forced end

    def shutdown(self, vm_id: str, mode: str) -> Any:
        """The VM, ended. Waits for its guest.

        :param mode: ``graceful`` or ``force``
        """
        body = {"mode": mode}
        return self._json(self._ask("POST", f"/vms/{vm_id}/shutdown", json=body, timeout=None))

    def events(self, path: str, after: int | None) -> Iterator[dict[str, Any]]:
        """Server-sent events. Goes on with the same supervisor after a restart of it."""
        while True:
            headers = {} if after is None else {"Last-Event-ID": str(after)}
            try:
                with self._http.stream("GET", path, headers=headers, timeout=_SILENCE) as response:
                    if response.is_error:
                        response.read()
                        raise CommandFailed(_problem(response))
                    for line in response.iter_lines():
                        if line.startswith("data:"):
                            event = json.loads(line.removeprefix("data:"))
                            after = event["sequence"]
                            yield event
            except httpx.ConnectError as error:
                if after is None:
                    raise CommandFailed(self._nobody(error)) from error
            except httpx.HTTPError:
                pass
            time.sleep(_RETRY_S)

    def find(self, prefix: str) -> str:
        """The one id that begins with ``prefix``."""
        return self.find_all([prefix])[0]

    def find_all(self, prefixes: Iterable[str]) -> list[str]:
        """The same of each, before anything is done with one."""
        ids = [vm["id"] for vm in self.get("/vms")["vms"]]
        return [_only(prefix, ids) for prefix in prefixes]

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.ConnectError as error:
            raise CommandFailed(self._nobody(error)) from error
        except httpx.HTTPError as error:
            # A server that wants a certificate hangs up after a handshake that the client finds
            # good.
            hint = "; if the supervisor asks for a certificate, see --cert and --key"
            if self.url.startswith("http:"):
                hint = "; if the supervisor has TLS, its URL begins with https://"
            raise CommandFailed(f"{self.url}: {_words(error)}{hint}") from error
        if response.is_error:
            raise CommandFailed(_problem(response))
        return response

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise CommandFailed(
                f"{self.url} is not a supervisor: its answer is not JSON"
            ) from error

    def _nobody(self, error: httpx.ConnectError) -> str:
        if any(word in str(error) for word in _NOT_TLS):
            return f"{self.url} has no TLS: its URL begins with http://"
        if isinstance(error.__context__, ssl.SSLError) or "SSL" in str(error):
            return f"no TLS with {self.url}: {error}; see --cacert, --cert and --key"
        return (
            f"no supervisor answers at {self.url} ({_words(error)}); start one with"
            " 'qmp-supervisor serve', or name another with --url or QMP_SUPERVISOR_URL"
        )


def _only(prefix: str, ids: list[str]) -> str:
    found = [one for one in ids if one == prefix] or [
        one for one in ids if one.startswith(prefix.lower())
    ]
    if not found:
        raise CommandFailed(f"no VM has the id {prefix}{nearest(prefix, ids)}")
    if len(found) > 1:
        raise CommandFailed(f"{prefix} is ambiguous: it begins {', '.join(found)}")
    return found[0]


def _words(error: httpx.HTTPError) -> str:
    text = str(error) or type(error).__name__
    return text.removeprefix("[Errno 111] ").lower()


def _read_refusal(response: httpx.Response) -> None:
    if response.is_error:
        response.read()


def _problem(response: httpx.Response) -> str:
    """The detail of a problem document; the status if the answer is not one."""
    try:
        problem = response.json()
        detail = str(problem["detail"])
        if response.status_code == httpx.codes.UNAUTHORIZED:
            detail = f"{detail.removesuffix('; ' + str(problem.get('advice')))}; {_WHO}"
        return detail
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code} {response.reason_phrase}"


def default_url(environ: Mapping[str, str]) -> str:
    """Where a supervisor with these environment variables listens: its unix socket, if it is there.

    A socket below the working directory counts if it is the user's own or root's, because anybody
    could have put another one there.
    """
    tmp = environ.get("MANAGER_QEMU_TMP_FILE_LOC") or "tmp"
    named = environ.get("MANAGER_SOCKET")
    for path in (named,) if named else (f"{tmp}/api.sock", _SYSTEM_SOCKET):
        trusted = path in (named, _SYSTEM_SOCKET) or _is_ours(path)
        if trusted and os.access(path, os.W_OK):
            return f"unix:{path}"
    host = environ.get("MANAGER_HTTP_HOST", "")
    host = "localhost" if host in (*_EVERY_INTERFACE, "127.0.0.1", "::1") else host
    port = environ.get("MANAGER_HTTP_PORT", "")
    scheme = "https" if environ.get("MANAGER_HTTP_SERVER_CERT") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or 9021}"


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid in (0, os.geteuid())
    except OSError:
        return False


def _token(file: str | None, url: httpx.URL) -> dict[str, str]:
    """The header with the token, if there is one.

    :raises CommandFailed: if the token would go over the network in the clear
    """
    token = Path(file).read_text().strip() if file else os.environ.get("QMP_SUPERVISOR_TOKEN")
    if not token:
        return {}
    if url.scheme == "http" and not is_loopback(url.host):
        raise CommandFailed(f"a token must not go to {url.host} without TLS: use an https:// URL")
    return {"Authorization": f"Bearer {token}"}


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.cacert)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise CommandFailed(f"--cacert, --cert or --key cannot be used: {error}") from error
    return as_tolerant_as_others(context)


_FILE = click.Path(exists=True, dir_okay=False)


@contextmanager
def _opened(url: str | None, token_file: str | None, tls: Tls) -> Iterator[Client]:
    shown = (url or default_url(os.environ)).rstrip("/")
    if not shown.startswith(("http://", "https://", "unix:")):
        shown = f"http://{shown}"
    _, is_unix, socket = shown.rpartition("unix:")
    base = httpx.URL("http://localhost" if is_unix else shown)
    verify = _context(tls) if base.scheme == "https" else True
    transport = httpx.HTTPTransport(verify=verify, uds=socket if is_unix else None)
    headers = _token(token_file, base)
    # A supervisor is reached directly, never through the proxy of the environment.
    with httpx.Client(
        base_url=base, transport=transport, headers=headers, timeout=_TIMEOUT, trust_env=False
    ) as http:
        yield Client(shown, http)


def complete_id(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """The ids that a shell offers, with what tells one VM from another."""
    words = context.params
    tls = Tls(words.get("cacert"), words.get("cert"), words.get("key"))
    try:
        with _opened(words.get("url"), words.get("token_file"), tls) as client:
            vms = client.get("/vms?order=newest")["vms"]
    except (CommandFailed, OSError):
        return []  # a shell has no place for errors
    return [
        CompletionItem(vm["id"], help=f"{vm['state']}, {vm['created_at']}")
        for vm in vms
        if vm["id"].startswith(begun)
    ]


#: Of commands that are about one VM, and about any number.
one_vm = click.argument("vm_id", metavar="ID", shell_complete=complete_id)
some_vms = click.argument(
    "vm_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_id
)


def uses_supervisor(fn: Callable[Concatenate[Client, P], R]) -> Callable[..., R]:
    """Give a command the options that name a supervisor, and a `Client` as its first argument.

    The client is closed when the command returns.
    """

    @click.option(
        "--url",
        envvar="QMP_SUPERVISOR_URL",
        show_envvar=True,
        help="URL of the supervisor, or unix: and the path of its socket. Default: the socket, if"
        " it is there; else from MANAGER_HTTP_HOST and MANAGER_HTTP_PORT, else"
        " http://localhost:9021.",
    )
    @click.option(
        "--token-file", type=_FILE, help="File of the token to show. Also QMP_SUPERVISOR_TOKEN."
    )
    @click.option("--cacert", type=_FILE, help="PEM file of CAs to trust, for https.")
    @click.option("--cert", type=_FILE, help="PEM certificate to show to the supervisor.")
    @click.option("--key", type=_FILE, help="PEM key of that certificate.")
    @functools.wraps(fn)
    def with_client(
        url: str | None,
        token_file: str | None,
        cacert: str | None,
        cert: str | None,
        key: str | None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        with _opened(url, token_file, Tls(cacert, cert, key)) as client:
            return fn(client, *args, **kwargs)

    return with_client
