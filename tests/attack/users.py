"""From a local user: sockets and files, and a QEMU that a guest has taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from grp import getgrnam
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.attack.kinds import Came, From, Need, Request, attack
from tests.attack.service import ANSWER_S, NotServed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.attack.place import Place

_FILES = "the kernel refuses"
ROOT = frozenset({Need.ROOT})
#: A user and a group that nothing here belongs to, and the group of MANAGER_SOCKET_GROUP.
MALLORY, GROUP = 7_720_000, "users"

# --- sockets and files ----------------------------------------------------------------------------

#: Each line of its input is an expression; each line of its output is what came of it.
_AS_USER = """
import os, socket, sys
uid, gid, *groups = map(int, sys.argv[1:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
for line in sys.stdin:
    try:
        eval(line)
        print("through")
    except OSError as error:
        print(type(error).__name__)
"""


def as_user(uid: int, gid: int, groups: Sequence[int], expression: str) -> str:
    words = map(str, (uid, gid, *groups))
    done = subprocess.run(
        [sys.executable, "-I", "-c", _AS_USER, *words],
        input=expression,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _connect(path: Path) -> str:
    return f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"


SOCKETS, TMP, FILES = "modes of the sockets", "the mode of tmp/", "modes of files"

USERS: list[tuple[str, str, Callable[[Place], str]]] = [
    (
        "connects to the HTTP API's socket",
        SOCKETS,
        lambda place: _connect(place.main_socket("api")),
    ),
    (
        "connects to the gRPC API's socket",
        SOCKETS,
        lambda place: _connect(place.main_socket("grpc")),
    ),
    ("lists tmp/", TMP, lambda place: f"os.listdir({str(place.main.tmp)!r})"),
    (
        "plants a link in tmp/",
        TMP,
        lambda place: f"os.symlink('/etc/passwd', {str(place.main.tmp / 'planted')!r})",
    ),
    (
        "reads the audit log",
        FILES,
        lambda place: f"open({str(place.main.tmp / 'audit.jsonl')!r}, 'rb')",
    ),
    (
        "reads a VM's reply",
        FILES,
        lambda place: f"open({str(place.main.tmp / place.victim() / 'reply')!r}, 'rb')",
    ),
]


def _of_mallory(expression: Callable[[Place], str], place: Place) -> Came:
    place.victim()
    return Came(as_user(MALLORY, MALLORY, (), expression(place)))


for _what, _defence, _expression in USERS:
    attack(
        From.LOCAL_USER,
        f"a user {_what}",
        held_by=_defence,
        refusal="PermissionError",
        below=_FILES,
        needs=ROOT,
    )(partial(_of_mallory, _expression))

_ASK = """
import http.client, json, os, socket, sys
path, uid, gid, group, method, where = sys.argv[1:]
os.setgroups([int(group)])
os.setgid(int(gid))
os.setuid(int(uid))
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(path)
connection.request(method, where)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.headers["X-Request-Id"]]))
"""


def _as_member(uid: int, method: str, path: str, place: Place) -> Came:
    """Of the group that may connect to the socket."""
    where = path.replace("{bobs}", place.victim())
    words = (place.main_socket("api"), uid, uid, getgrnam(GROUP).gr_gid, method, where)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ASK, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    status, id_ = json.loads(done.stdout)
    who = None if uid == _NOBODY else f"uid:{uid}"
    return Came(str(status), Request(place.main, id_, f"{method} ", who))


_NOBODY = 65534
for _what, _uid, _method, _path, _defence, _status in (
    (
        "of the socket's group reads another's reply",
        MALLORY,
        "GET",
        "/vms/{bobs}/reply",
        "the owner of a VM",
        "404",
    ),
    (
        "of the socket's group deletes another's VM",
        MALLORY,
        "DELETE",
        "/vms/{bobs}",
        "the owner of a VM",
        "404",
    ),
    ("of the socket's group lists the templates", MALLORY, "GET", "/templates", "roles", "403"),
    (
        "whom many share, nobody, calls over the socket",
        _NOBODY,
        "GET",
        "/vms",
        "nobody's number",
        "401",
    ),
):
    attack(From.LOCAL_USER, f"a user {_what}", held_by=_defence, refusal=_status, needs=ROOT)(
        partial(_as_member, _uid, _method, _path)
    )


_HOLD = """
import os, socket, sys
path, uid, group, count = sys.argv[1:]
os.setgroups([int(group)])
os.setgid(int(uid))
os.setuid(int(uid))
held = []
for _ in range(int(count)):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(path)
    held[-1].sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    held[-1].recv(1)
print("held", flush=True)
sys.stdin.read()
"""
_CONNECTIONS = 8


@attack(
    From.LOCAL_USER,
    "a user of the socket's group holds all its connections, and root is locked out",
    held_by="connections of a user",
    refusal="root is answered",
    below="its connections are below the limit",
    needs=ROOT,
)
def holds_connections(place: Place) -> Came:
    path = place.directory / "shared.sock"
    settings = {
        "MANAGER_SOCKET": str(path),
        "MANAGER_SOCKET_GROUP": GROUP,
        "MANAGER_HTTP_CONNECTIONS": str(_CONNECTIONS),
    }
    place.serve("shared", settings)
    words = (path, MALLORY, getgrnam(GROUP).gr_gid, _CONNECTIONS)
    with (
        subprocess.Popen(
            [sys.executable, "-I", "-c", _HOLD, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as mallory,
        socket.socket(socket.AF_UNIX) as root,
    ):
        assert mallory.stdout
        assert mallory.stdout.readline() == b"held\n"
        root.settimeout(ANSWER_S)
        root.connect(str(path))
        try:
            root.sendall(b"GET /vms HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = root.recv(65536)
        except ConnectionError:
            answered = b""
    return Came("root is answered" if b" 200 " in answered else "through")


def _starts(place: Place, name: str, settings: dict[str, str]) -> Came:
    try:
        place.serve(name, settings)
    except NotServed as error:
        return Came("not started", detail=str(error))
    return Came("through")


_START = "the supervisor does not start"


@attack(
    From.LOCAL_USER,
    "a user has the directory of the API's socket, and could put another there",
    held_by="the directory of a socket",
    refusal="not started",
    below=_START,
    needs=ROOT,
)
def directory_of_socket(place: Place) -> Came:
    directory = place.directory / "mallorys"
    directory.mkdir()
    os.chown(directory, MALLORY, MALLORY)
    return _starts(place, "socket", {"MANAGER_SOCKET": str(directory / "api.sock")})


@attack(
    From.LOCAL_USER,
    "a user has the file of the tokens, and adds one",
    held_by="the owner of the tokens' file",
    refusal="not started",
    below=_START,
    needs=ROOT,
)
def file_of_tokens(place: Place) -> Came:
    file = place.directory / "mallorys-tokens.json"
    file.write_text('{"tokens": []}')
    os.chown(file, MALLORY, MALLORY)
    return _starts(place, "tokens", {"MANAGER_TOKENS": str(file)})


# --- a QEMU that a guest has taken over ---------------------------------------------------------

_TAKEN_OVER: list[tuple[str, Callable[[Place], str]]] = [
    (
        "reads its VM's record",
        lambda p: f"open({str(p.main.tmp / p.victim() / 'vm.json')!r}, 'rb')",
    ),
    (
        "plants a link where the supervisor writes",
        lambda p: f"os.symlink('/etc/passwd', {str(p.main.tmp / p.victim() / 'planted')!r})",
    ),
    ("reads the tokens' file", lambda p: f"open({str(p.main.tmp / 'tokens.json')!r}, 'rb')"),
    ("calls the API over its socket", lambda p: _connect(p.main_socket("api"))),
    ("signals the supervisor", lambda p: f"os.kill({p.main.process.pid}, 0)"),
]


def _of_qemu(expression: Callable[[Place], str], place: Place) -> Came:
    """What comes of it for a process that has the user and the groups of Bob's QEMU."""
    shown = place.main.ask("GET", f"/vms/{place.victim()}", by="bob").json()
    process = psutil.Process(shown["pid"])
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (groups,) = [line.split()[1:] for line in status if line.startswith("Groups:")]
    ids = process.uids().real, process.gids().real
    return Came(as_user(*ids, [int(group) for group in groups], expression(place)))


for _what, _expression in _TAKEN_OVER:
    attack(
        From.GUEST,
        f"a guest that has taken over its QEMU {_what}",
        held_by="users of VMs",
        refusal="PermissionError",
        below=_FILES,
        needs=ROOT,
    )(partial(_of_qemu, _expression))
