"""What may happen to QMP: the socket gone, taken by others, a peer that talks nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from tests.chaos.kinds import kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.chaos.case import Case

_QUICK = {"MANAGER_HEARTBEAT": "200ms", "MANAGER_QMP_TIMEOUT": "1s"}

_GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""},'
    b' "capabilities": []}}\r\n'
)
_LIES = {
    "garbage": b"\xff\xfe}}]]\r\nno JSON at all\r\n",
    "half a line": b'{"QMP": {"version": {"qemu"',
    "nothing, and hangs up": b"",
    "a greeting, then garbage": _GREETING + b"[[[[[\r\n\r\n{]\r\n",
    "answers to what nobody asked": _GREETING + b'{"return": {}, "id": "nobody"}\r\n' * 5,
    "JSON that is no QMP": b'[1, 2, 3]\r\n"QMP"\r\n{"QMP": 7}\r\n',
}


def _socket_of(case: Case, vm_id: str) -> Path:
    return case.tmp / vm_id / "qmp.sock"


@kind("QMP socket removed, supervisor up")
def removed(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    _socket_of(case, vm_id).unlink()
    case.control(vm_id, "pause")
    case.control(vm_id, "resume")


@kind("QMP socket removed, supervisor down")
def removed_unwatched(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    _socket_of(case, vm_id).unlink()
    case.serve()
    case.until_ended(vm_id)


@kind(
    "QMP socket removed, QEMU SIGSTOPped, supervisor down",
    short=0,
    settings={"MANAGER_QUIT_GRACE": "300ms", "MANAGER_TERM_GRACE": "300ms"},
)
def removed_stopped(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    _socket_of(case, vm_id).unlink()
    case.serve()
    case.until_ended(vm_id, "crashed")


@kind("QMP: a stranger holds the monitor, then goes", short=0, settings=_QUICK)
def held(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(_socket_of(case, vm_id)))
        stranger.recv(1)
        stranger.sendall(b'{"execute": "qmp_capabilities"} {"execute": "query-st')
        case.serve()
        case.until_monitor(vm_id, "lost")
    case.until_monitor(vm_id, "ok")


@kind("QMP: hundreds of abandoned connections", times=2)
def abandoned(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    _abandon(case, vm_id, 300)
    case.control(vm_id, "pause")
    case.crash()
    _abandon(case, vm_id, 300)
    case.serve()
    case.until_monitor(vm_id, "ok")


@kind("QMP: a full backlog before a QEMU that is SIGSTOPped", short=0, settings=_QUICK)
def backlog(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    case.signal_qemu(vm_id, signal.SIGSTOP)
    _abandon(case, vm_id, 20)
    case.serve()
    case.until_monitor(vm_id, "lost")
    case.signal_qemu(vm_id, signal.SIGCONT)
    case.until_monitor(vm_id, "ok")


def _abandon(case: Case, vm_id: str, count: int) -> None:
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.setblocking(False)
            with contextlib.suppress(OSError):
                stranger.connect(str(_socket_of(case, vm_id)))


# --- a liar in QEMU's place -------------------------------------------------------------------


def _lying(words: bytes) -> Callable[[Case], None]:
    def harm(case: Case) -> None:
        """QEMU itself is well; another listens at its path until it is put back."""
        case.serve()
        vm_id = case.run()
        case.crash()
        path = _socket_of(case, vm_id)
        aside = path.with_name("qmp.aside")
        path.rename(aside)
        with _answering(path, words):
            case.serve()
            case.until_monitor(vm_id, "lost")
        aside.rename(path)
        case.until_monitor(vm_id, "ok")

    return harm


for _number, (_what, _words) in enumerate(_LIES.items()):
    _short = int(_number == 0)
    kind(f"QMP: another answers at its path: {_what}", times=2, short=_short, settings=_QUICK)(
        _lying(_words)
    )


@contextlib.contextmanager
def _answering(path: Path, words: bytes) -> Iterator[None]:
    """Whoever connects is told this, and no more; those told nothing are hung up on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError):
                        connection.sendall(words)
                    if words:
                        kept.append(connection)
                    else:
                        connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


def _launched_with(words: bytes) -> Callable[[Case], None]:
    def harm(case: Case) -> None:
        """What is started as a VM's QEMU says this and nothing else."""
        liar = case.tmp.with_name(f"{case.tmp.name}-liar")
        liar.write_text(
            f"#!{sys.executable} -ISE\n"
            "import os, socket, sys\n"
            "if '-qmp' in sys.argv:\n"  # the supervisor asks its QEMU what that can do
            f"    os.execv({str(case.place.qemu)!r}, sys.argv)\n"
            "listener = socket.socket(fileno=0)\n"
            "kept = []\n"
            "while True:\n"
            "    connection, _ = listener.accept()\n"
            f"    connection.sendall({words!r})\n"
            f"    kept.append(connection if {bool(words)} else connection.close())\n"
        )
        liar.chmod(0o755)
        quick = {"MANAGER_QMP_TIMEOUT": "500ms", "MANAGER_START_TIMEOUT": "2s"}
        case.serve(settings={"MANAGER_QEMU_BIN_PATH": str(liar), **quick})
        case.until_ended(case.run(wait=False), "crashed")
        case.crash()

    return harm


for _number, (_what, _words) in enumerate(_LIES.items()):
    _short = int(_number == 1)
    kind(f"QEMU's place taken by what says: {_what}", times=2, short=_short)(_launched_with(_words))


# --- a man in the middle ----------------------------------------------------------------------


def _cut(case: Case, between: Between, words: bytes) -> None:
    """Say this and hang up; return once the supervisor has connected again."""
    before = between.connections
    between.say(words)
    case.wait(lambda: between.connections > before, "another connection")


@kind(
    "QMP: the link is cut, garbled, cut half-way through a line", short=0, times=3, settings=_QUICK
)
def garbled(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    path = _socket_of(case, vm_id)
    aside = path.with_name("qmp.aside")
    path.rename(aside)
    with Between(path, aside) as between:
        case.serve()
        case.until_monitor(vm_id, "ok")
        for words in (b"", b"}}}} garbage\r\n", b'{"event": "STO', b'{"event": 7, "data": []}\r\n'):
            _cut(case, between, words)
            case.until_monitor(vm_id, "ok")
        case.expect(case.show(vm_id)["state"] == "running", "it no longer runs")
        case.crash()
    aside.rename(path)


class Between:
    """Passes everything on between whoever connects to ``path`` and what listens at ``aside``."""

    def __init__(self, path: Path, aside: Path) -> None:
        self.connections = 0
        self._path = path
        self._aside = aside
        self._listener = socket.socket(socket.AF_UNIX)
        self._pair: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Between:
        self._listener.bind(str(self._path))
        self._listener.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def say(self, words: bytes) -> None:
        """Tell the supervisor this and hang up."""
        assert self._pair
        near, far = self._pair
        with contextlib.suppress(OSError):
            near.sendall(words)
        for one in (near, far):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._aside))
                self._pair = near, far
                self.connections += 1
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@kind("QMP: somebody else quits QEMU", short=0, times=2)
def quit_by_another(case: Case) -> None:
    case.serve()
    vm_id = case.run()
    case.crash()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(_socket_of(case, vm_id)))
        for command in ("qmp_capabilities", "quit"):
            stranger.sendall(json.dumps({"execute": command}).encode())
        while stranger.recv(65536):
            pass
    case.wait_no_qemu(vm_id)
    case.serve()
    case.until_ended(vm_id, "crashed", "exit:unknown")
    case.expect(not os.path.exists(_socket_of(case, vm_id)), "the socket is left")
