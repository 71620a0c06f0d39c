"""The supervisor that a command asks. Errors are fit for a person."""

from __future__ import annotations

import functools
import re
import ssl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click
import httpx
from click.shell_completion import CompletionItem

from supervisor.cli.environment import CommandFailed
from supervisor.client import Client, ClientError, Refused, Unreachable
from supervisor.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

P = ParamSpec("P")
R = TypeVar("R")

#: The server's advice is for who writes headers.
_WHO = (
    "show a token with --token-file or QMP_SUPERVISOR_TOKEN, or name the supervisor's unix socket"
    " with --url unix:PATH"
)
#: What OpenSSL says of an answer that is not TLS, by its version and by how the answer comes.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def find(client: Client, prefix: str) -> str:
    """The one id that begins with ``prefix``."""
    return find_all(client, [prefix])[0]


def find_all(client: Client, prefixes: Iterable[str]) -> list[str]:
    """The same of each, before anything is done with one."""
    wanted = list(prefixes)
    page = client.vms()
    ids = [vm["id"] for vm in page["vms"]]
    if page.get("missing"):
        # A host that does not answer may have it: the supervisor says so.
        ids += [prefix for prefix in wanted if _UUID.fullmatch(prefix) and prefix not in ids]
    if not all(_matching(prefix, ids) for prefix in wanted):
        # Nobody looks for a held clone but by its id.
        ids += [vm["id"] for vm in client.vms({"purpose": "held"})["vms"]]
    return [_only(prefix, ids) for prefix in wanted]


def _matching(prefix: str, ids: list[str]) -> list[str]:
    return [one for one in ids if one == prefix] or [
        one for one in ids if one.startswith(prefix.lower())
    ]


def _only(prefix: str, ids: list[str]) -> str:
    found = _matching(prefix, ids)
    if not found:
        raise CommandFailed(f"no VM has the id {prefix}{nearest(prefix, ids)}")
    if len(found) > 1:
        raise CommandFailed(f"{prefix} is ambiguous: it begins {', '.join(found)}")
    return found[0]


@contextmanager
def told_to_a_person(url: str) -> Iterator[None]:
    """:raises CommandFailed: in place of what the client raises"""
    try:
        yield
    except Unreachable as error:
        raise CommandFailed(_unreachable(url, error.__cause__)) from error
    except Refused as error:
        text = str(error)
        if error.problem and error.status == httpx.codes.UNAUTHORIZED:
            text = f"{text.removesuffix('; ' + str(error.problem.get('advice')))}; {_WHO}"
        raise CommandFailed(text) from error
    except ClientError as error:
        raise CommandFailed(str(error)) from error


def _unreachable(url: str, error: BaseException | None) -> str:
    words = (str(error) or type(error).__name__).removeprefix("[Errno 111] ").lower()
    if not isinstance(error, httpx.ConnectError):
        # A server that wants a certificate hangs up after a handshake that the client finds good.
        hint = "; if the supervisor asks for a certificate, see --cert and --key"
        if url.startswith("http:"):
            hint = "; if the supervisor has TLS, its URL begins with https://"
        return f"{url}: {words}{hint}"
    if any(word in str(error) for word in _NOT_TLS):
        return f"{url} has no TLS: its URL begins with http://"
    if isinstance(error.__context__, ssl.SSLError) or "SSL" in str(error):
        return f"no TLS with {url}: {error}; see --cacert, --cert and --key"
    return (
        f"no supervisor answers at {url} ({words}); start one with"
        " 'qmp-supervisor serve', run this in the directory of one, or name another with --url or"
        " QMP_SUPERVISOR_URL"
    )


_FILE = click.Path(exists=True, dir_okay=False)


@contextmanager
def _opened(
    url: str | None, token_file: str | None, cacert: str | None, cert: str | None, key: str | None
) -> Iterator[Client]:
    token = Path(token_file).read_text().strip() if token_file else None
    try:
        client = Client(url, token=token, cacert=cacert, cert=cert, key=key)
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    with told_to_a_person(client.url), client:
        yield client


def complete_id(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """The ids that a shell offers, with what tells one VM from another."""
    named = [context.params.get(name) for name in ("url", "token_file", "cacert", "cert", "key")]
    try:
        with _opened(*named) as client:
            vms = client.vms({"order": "newest"})["vms"]
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
        " http://127.0.0.1:9021.",
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
        with _opened(url, token_file, cacert, cert, key) as client:
            return fn(client, *args, **kwargs)

    return with_client
