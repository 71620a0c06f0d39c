"""The defences, and for each how a supervisor without it is made, which its attacks get through.

docs/explanation/security.md has the same names.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]


class NotFound(Exception):
    """The code has changed: a text that makes a defence is not there, or more than once."""


@attrs.frozen
class Cut:
    """:param file: below ``supervisor/``
    :param text: is there exactly once
    :param instead: what stands there without the defence
    """

    file: str
    text: str
    instead: str


_ADMIN = 'Caller("anybody", Role.ADMIN, KnownBy.NOTHING)'

DEFENCES: dict[str, tuple[Cut, ...]] = {
    # --- who calls ---
    "asking who calls": (
        Cut(
            "api/auth/door.py",
            'raise Unauthenticated("the request does not say who calls")',
            f"return {_ADMIN}",
        ),
    ),
    "asking who calls at every method of gRPC": (
        Cut("api/grpc/callers.py", "self._limited(_known(behaviour))", "self._limited(behaviour)"),
    ),
    "asking who calls at every path": (
        Cut("api/http/app.py", "            current()  # a stranger", "            # a stranger"),
    ),
    "one length of a body": (
        Cut("api/http/connections.py", "            _check_length(request)\n", ""),
    ),
    "knowing the tokens": (
        Cut(
            "api/auth/tokens.py",
            'raise Unauthenticated("the token is not known here")',
            f"return {_ADMIN}",
        ),
    ),
    "the end of a token": (Cut("api/auth/tokens.py", "if token.ended_at(now):", "if False:"),),
    "readers who may read no more": (
        Cut("api/callers.py", "        if ask() != first:", "        if False:"),
    ),
    "reading the tokens again": (Cut("api/auth/files.py", "if now != self._seen:", "if False:"),),
    "one Authorization": (Cut("api/auth/door.py", "if len(authorization) > 1:", "if False:"),),
    "the scheme of an Authorization": (Cut("api/auth/door.py", r'r"bearer +(', r'r"[a-z]+ +('),),
    "where a token may be": (
        Cut("api/http/connections.py", 'if scope["type"] == "websocket":', "if True:"),
        Cut(
            "api/http/connections.py",
            'for one in scope["subprotocols"] if',
            'for one in dict(scope["headers"]).get(b"sec-websocket-protocol", b"").decode()'
            '.split(", ") if',
        ),
    ),
    "checking request ids": (Cut("api/trace.py", 'r"[A-Za-z0-9._-]{1,64}"', 'r".*"'),),
    "roles": (Cut("api/callers.py", "if not caller.may(right):", "if False:"),),
    "limiting the lines of refusals": (
        Cut("api/audit.py", "not self._refusals.take(callers.who())", "False"),
    ),
    "shares of callers": (
        Cut("api/rates.py", "if ip.is_loopback:", "if False:"),
        Cut(
            "api/rates.py",
            "self._known if who.known else self._addresses",
            "self._addresses",
        ),
    ),
    "certificates of clients": (
        Cut(
            "api/http/hypercorn.py",
            "files.verify_mode = ssl.CERT_REQUIRED",
            "files.verify_mode = ssl.CERT_NONE",
        ),
    ),
    "certificates of gRPC's clients": (
        Cut(
            "api/grpc/server.py",
            "require_client_authentication=asks",
            "require_client_authentication=False",
        ),
    ),
    "who has a certificate": (
        Cut("api/auth/certificates.py", "raise UnknownCertificate(str(names))", f"return {_ADMIN}"),
    ),
    # --- parties ---
    "the owner of a VM": (
        Cut("runs/vms.py", "if vm is None or not _sees(caller, vm):", "if vm is None:"),
        Cut("runs/vms.py", "if not caller.sees(vm.record.owner):\n", "if False:\n"),
    ),
    "the owner first": (
        Cut(
            "runs/vms.py",
            "if vm is None or not _sees(caller, vm):",
            "if vm:  # something that takes some milliseconds\n"
            "            str([str(vm.record) for _ in range(200)])\n"
            "        if vm is None or not _sees(caller, vm):",
        ),
    ),
    "the part of a party": (
        Cut("runs/vms.py", "if caller.name not in parties.of(part):", "if False:"),
    ),
    "lists of what is one's own": (
        Cut("runs/vms.py", "[vm for vm in self if _sees(caller, vm)]", "list(self)"),
    ),
    "events of what is one's own": (
        Cut("runs/vms.py", "[vm for vm in self if _sees(caller, vm)]", "list(self)"),
        Cut("runs/service.py", "caller.sees(event.owner) or self.vms.tells(event, caller)", "True"),
    ),
    "the owner of a key": (Cut("runs/idempotency.py", " and vm.record.owner == owner", ""),),
    "errors that do not tell of others": (
        Cut("runs/service.py", "raise _without_others(error) from error", "raise"),
    ),
    # --- limits ---
    "the size of a body": (
        Cut(
            "api/http/bodies.py",
            "if max(self._taken, self.announced or 0) > self._most:",
            "if False:",
        ),
    ),
    "the size of a computation": (
        Cut("api/http/streamed_json.py", "if len(decoded) > MAX_COMPUTATION:", "if False:"),
        Cut("api/requests.py", "if len(computation) > MAX_COMPUTATION:", "if False:"),
    ),
    "the size of a body's text": (
        Cut("api/http/streamed_json.py", "if len(self._text) > _LONGEST_TEXT:", "if False:"),
    ),
    "the time for headers": (
        Cut(
            "api/http/connections.py",
            "due = trio.current_time() + self.config.header_timeout_s",
            "due = math.inf",
        ),
    ),
    "the time for a handshake": (
        Cut(
            "api/http/hypercorn.py",
            "hypercorn.ssl_handshake_timeout = config.callers.header_timeout_s",
            "hypercorn.ssl_handshake_timeout = 3600",
        ),
    ),
    "the time for a body": (
        Cut(
            "api/http/bodies.py",
            "trio.move_on_after(allowed_s - self._waited_s)",
            "trio.move_on_after(3600)",
        ),
    ),
    "the time for a message": (
        Cut("api/grpc/callers.py", "trio.move_on_after(timeout_s)", "trio.move_on_after(3600)"),
    ),
    "the rate of requests": (Cut("api/gate.py", "if not self._rates.take(caller):", "if False:"),),
    "requests at once": (
        Cut("api/gate.py", "with self._running.one_more(caller):\n            yield", "yield"),
    ),
    "the budget of bodies": (
        Cut("api/budget.py", "return mine and self.held_bytes + size <= self._most", "return True"),
    ),
    "readers of events": (
        Cut(
            "api/gate.py",
            'AtOnce(limits.readers, "readers',
            'AtOnce(1000, "readers',
        ),
    ),
    "connections of an address": (
        Cut("api/gate.py", "AtOnce(self.limits.connections,", "AtOnce(1000,"),
    ),
    "few calls of strangers": (
        Cut(
            "api/grpc/callers.py",
            "_STRANGERS_CALLS, _ALL_STRANGERS_CALLS = 8, 64",
            "_STRANGERS_CALLS, _ALL_STRANGERS_CALLS = 800, 800",
        ),
    ),
    "connections of a user": (
        Cut("api/http/connections.py", 'f"uid:{uid_of(stream.socket)}"', '"unix"'),
    ),
    # --- web pages ---
    "the names of a host": (
        Cut(
            "api/http/web_pages.py",
            "if len(hosts) != 1 or not self._is_ours(hosts[0], sent.address):",
            "if False:",
        ),
    ),
    "the host in a target": (
        Cut("api/http/web_pages.py", 'if not sent.target.startswith((b"/", b"*")):', "if False:"),
    ),
    "the origin of a page": (
        Cut("api/http/web_pages.py", "if ours is None or not _is_same(origin, ours):", "if False:"),
    ),
    "Sec-Fetch-Site": (Cut("api/http/web_pages.py", "if site not in _SAME:", "if False:"),),
    "the origin of a WebSocket": (
        Cut(
            "api/http/app.py",
            "            hosts.check_host(sent)\n            check_origin(sent)\n            if",
            "            if",
        ),
    ),
    "the content type of a body": (
        Cut("api/http/json_body.py", 'if request.mimetype != "application/json":', "if False:"),
    ),
    "what a browser says of a page": (
        Cut("api/http/web_pages.py", "if ours is None or not _is_same(origin, ours):", "if False:"),
        Cut("api/http/web_pages.py", "if site not in _SAME:", "if False:"),
        Cut("api/http/json_body.py", 'if request.mimetype != "application/json":', "if False:"),
    ),
    # --- guests ---
    "the guest's network": (
        Cut("qemu/cmdline.py", '",restrict=on,ipv6=off" if is_restricted else ""', '""'),
    ),
    "cutting logs": (
        Cut(
            "vm/qmp_events.py",
            "await trio.to_thread.run_sync(vm.dir.look_at_logs, limit)",
            "size_in_bytes(vm.config.life.log_size)",
        ),
    ),
    "the number of events": (
        Cut("qemu/qmp.py", "if self._count > self._timing.qmp_flood_events:", "if False:"),
    ),
    "waking a guest to end it": (
        Cut("qemu/qmp.py", 'self.execute("system_wakeup")', 'self.execute("query-status")'),
    ),
    "the credential of an agent": (
        Cut("qemu/cmdline.py", "if machine.credential_hash is None:", "if True:"),
    ),
    "no forwards": (
        Cut("qemu/network.py", " or net.forwards is Forwards.NONE or net.dials\n", "\n"),
    ),
    "no balloon in copies": (
        Cut(
            "qemu/cmdline.py",
            '*("-device", "vmgenid,guid=auto"),',
            '*("-device", "vmgenid,guid=auto", "-device", "virtio-balloon-pci"),',
        ),
    ),
    "the size of a reply": (
        Cut(
            "agent/channel.py",
            '("grpc.max_receive_message_length", self._reply_bytes)',
            '("grpc.max_receive_message_length", -1)',
        ),
    ),
    "cleaning what a guest wrote": (
        Cut("errors.py", "text = clean(text, _AGENT_BYTES)", "text = text[:_AGENT_BYTES]"),
    ),
    "users of VMs": (
        Cut("qemu/users.py", "    if user is None:\n        return []", "    return []"),
    ),
    # --- local users ---
    "modes of the sockets": (
        Cut("api/sockets.py", "os.fchmod(listener.fileno(), 0o600)", "os.umask(0)"),
        Cut("api/sockets.py", "path.chmod(0o660)", "path.chmod(0o666)"),
    ),
    "the mode of tmp/": (
        Cut("state/tmp_dir.py", "            tmp.chmod(0o700)\n", "            tmp.chmod(0o777)\n"),
        Cut(
            "state/vm_dir.py",
            "directory.chmod(0o700 if gid is None else 0o710)",
            "directory.chmod(0o777)",
        ),
    ),
    "modes of files": (
        Cut("state/tmp_dir.py", "            tmp.chmod(0o700)\n", "            tmp.chmod(0o777)\n"),
        Cut(
            "state/vm_dir.py",
            "directory.chmod(0o700 if gid is None else 0o710)",
            "directory.chmod(0o777)",
        ),
        Cut("app.py", "os.umask(0o077)", "os.umask(0)"),
        Cut("api/audit.py", "os.open(self.file, flags, 0o600)", "os.open(self.file, flags, 0o666)"),
    ),
    "whose process a QEMU is": (
        Cut(
            "qemu/process.py",
            "def _is_trusted(pid: int, directory: Path) -> bool:\n",
            "def _is_trusted(pid: int, directory: Path) -> bool:\n    return True\n\n\n"
            "def _is_not_called(pid: int, directory: Path) -> bool:\n",
        ),
    ),
    "nobody's number": (Cut("api/auth/door.py", "if uid == _NOBODY_KNOWS:", "if False:"),),
    "the directory of a socket": (Cut("api/sockets.py", "if not safe:", "if False:"),),
    # --- a fleet ---
    "certificates between members": (
        Cut(
            "membership.py",
            "context.verify_mode = ssl.CERT_REQUIRED",
            "context.verify_mode = ssl.CERT_NONE",
        ),
    ),
    "what a member's token is for": (
        Cut(
            "fleet/identity.py",
            'if claims["request"] != _digest(method, target):',
            "if False:",
        ),
    ),
    "whom a member's token is for": (
        Cut("fleet/identity.py", "audience=self.name,", 'audience=["a", "b"],'),
    ),
    "certificates at NATS": (
        Cut("fleet/authority.py", "  verify_and_map: true\n", ""),
        Cut("fleet/authority.py", "authorization {{\n  users: [\n{users}\n  ]\n}}\n", ""),
    ),
    "what a member publishes": (
        Cut("fleet/authority.py", 'f"fleet.hosts.{name}",', '"fleet.hosts.>",'),
    ),
    "the streams that a member makes": (
        Cut(
            "fleet/authority.py",
            'f"$JS.API.STREAM.CREATE.fleet-{name}" for name',
            'f"$JS.API.STREAM.CREATE.{name[:0]}*" for name',
        ),
    ),
    "the owner of the tokens' file": (
        Cut(
            "api/auth/tokens.py",
            "if stat.st_uid not in (0, os.geteuid()) or stat.st_mode & 0o022:",
            "if False:",
        ),
    ),
}


def copy_without(defence: str, to: Path) -> None:
    """A copy of ``supervisor/`` in a directory, without this defence.

    :raises NotFound: if its text is not there once
    """
    shutil.copytree(
        ROOT / "supervisor", to / "supervisor", ignore=shutil.ignore_patterns("__pycache__")
    )
    for cut in DEFENCES[defence]:
        file = to / "supervisor" / cut.file
        text = file.read_text()
        if text.count(cut.text) != 1:
            raise NotFound(f"{cut.file} has {cut.text!r} {text.count(cut.text)} times, not once")
        file.write_text(text.replace(cut.text, cut.instead))
