"""The HTTP API of a running supervisor, for the commands. Errors are fit for a person."""

from __future__ import annotations

import functools
import json
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import attrs
import click
import httpx

from supervisor.cli.environment import CommandFailed
from supervisor.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

P = ParamSpec("P")
R = TypeVar("R")

_EVERY_INTERFACE = ("", "0.0.0.0", "::")

#: Every request here is answered at once, except the end of a VM, which waits for its guest.
_TIMEOUT = httpx.Timeout(30.0)
#: A stream of events has a line at least every fifteen seconds.
_SILENCE = httpx.Timeout(40.0)
_RETRY_S = 1.0
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
        ids = [vm["id"] for vm in self.get("/vms")["vms"]]
        found = [one for one in ids if one == prefix] or [
            one for one in ids if one.startswith(prefix.lower())
        ]
        if not found:
            raise CommandFailed(f"no VM has the id {prefix}{nearest(prefix, ids)}")
        if len(found) > 1:
            raise CommandFailed(f"{prefix} is ambiguous: it begins {', '.join(found)}")
        return str(found[0])

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


def _words(error: httpx.HTTPError) -> str:
    text = str(error) or type(error).__name__
    return text.removeprefix("[Errno 111] ").lower()


def _problem(response: httpx.Response) -> str:
    """The detail of a problem document; the status if the answer is not one."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code} {response.reason_phrase}"


def default_url(environ: Mapping[str, str]) -> str:
    """Where a supervisor with these environment variables would listen."""
    host = environ.get("MANAGER_HTTP_HOST", "")
    host = "localhost" if host in (*_EVERY_INTERFACE, "127.0.0.1", "::1") else host
    port = environ.get("MANAGER_HTTP_PORT", "")
    scheme = "https" if environ.get("MANAGER_HTTP_SERVER_CERT") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or 9021}"


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.cacert)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise CommandFailed(f"--cacert, --cert or --key cannot be used: {error}") from error
    return context


_PEM = click.Path(exists=True, dir_okay=False)


def uses_supervisor(fn: Callable[Concatenate[Client, P], R]) -> Callable[..., R]:
    """Give a command the options that name a supervisor, and a `Client` as its first argument.

    The client is closed when the command returns.
    """

    @click.option(
        "--url",
        envvar="QMP_SUPERVISOR_URL",
        show_envvar=True,
        help="URL of the supervisor. Default: from MANAGER_HTTP_HOST and MANAGER_HTTP_PORT if they"
        " are set, else http://localhost:9021.",
    )
    @click.option("--cacert", type=_PEM, help="PEM file of CAs to trust, for https.")
    @click.option("--cert", type=_PEM, help="PEM certificate to show to the supervisor.")
    @click.option("--key", type=_PEM, help="PEM key of that certificate.")
    @functools.wraps(fn)
    def with_client(
        url: str | None,
        cacert: str | None,
        cert: str | None,
        key: str | None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        base = (url or default_url(os.environ)).rstrip("/")
        if not base.startswith(("http://", "https://")):
            base = f"http://{base}"
        verify = _context(Tls(cacert, cert, key)) if base.startswith("https:") else True
        # A supervisor is reached directly, never through the proxy of the environment.
        http = httpx.Client(base_url=base, verify=verify, timeout=_TIMEOUT, trust_env=False)
        with http:
            return fn(Client(base, http), *args, **kwargs)

    return with_client
