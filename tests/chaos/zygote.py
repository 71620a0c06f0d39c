"""Supervisors by the hundred: a process that has imported everything, and forks.

What runs in the fork is ``supervisor.cli``'s own ``serve``, in a process of its own with its own
environment; only the seconds of importing are saved. Must be made before any thread is.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import resource
import select
import signal
import socket
import sys
import threading
from typing import Any

import attrs

from tests.chaos import clock, haste, points

_PR_SET_CHILD_SUBREAPER = 36
_MESSAGE = 65536


@attrs.frozen(kw_only=True)
class Launch:
    """How one supervisor is started.

    :param log: takes its standard error, appended
    :param trace: takes the names of the crash points as they are passed; empty: none are noted
    :param die_at: the crash point it is killed at
    :param stop_at: the one it is stopped at, until it is told to go on
    :param haste: whether waits that are for nobody here are shortened
    :param descriptors: its limit of open files
    :param user: whose name it runs under; empty: the same
    :param clock_s: how far its wall clock is off
    """

    environ: dict[str, str]
    log: str
    tmp: str
    trace: str = ""
    die_at: str = ""
    stop_at: str = ""
    haste: bool = False
    descriptors: int = 0
    user: str = ""
    clock_s: float = 0.0


class Zygote:
    """The forking process. It also takes in, and reaps, what killed supervisors leave."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def start(self, launch: Launch) -> int:
        """The pid of a new supervisor."""
        return int(self._ask(attrs.asdict(launch)))

    def exit_code(self, pid: int) -> int:
        """Of a supervisor that has ended; negative for a signal."""
        return int(self._ask({"ended": pid}))

    def close(self) -> None:
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.send(json.dumps(request).encode())
            return json.loads(self._socket.recv(_MESSAGE))


def wait_gone(pidfd: int, timeout_s: float) -> bool:
    """Whether the process has ended within this time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _serve(requests: socket.socket) -> None:
    """The zygote's life: until its maker closes the socket."""
    from supervisor.cli import main

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    codes: dict[int, int] = {}

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while message := requests.recv(_MESSAGE):
        request = json.loads(message)
        if "ended" in request:
            while request["ended"] not in codes:
                signal.sigtimedwait([], 0.01)
                reap()
            answer = codes.pop(request["ended"])
        else:
            answer = os.fork()
            if answer == 0:
                requests.close()
                _become(Launch(**request), main)
        requests.send(json.dumps(answer).encode())


def _change_user(name: str) -> None:
    entry = pwd.getpwnam(name)
    os.initgroups(name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ |= {"HOME": entry.pw_dir, "USER": name, "LOGNAME": name}


def _become(launch: Launch, main: Any) -> None:
    """A supervisor, to its end."""
    code: object = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(launch.environ)
        log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        os.dup2(log, 1)
        os.close(log)
        if launch.user:
            _change_user(launch.user)
        sys.argv = ["qmp-supervisor", "serve"]
        if launch.descriptors:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (launch.descriptors, hard))
        if launch.clock_s:
            clock.shift(launch.clock_s)
        if launch.haste:
            haste.make()
        if launch.trace or launch.die_at or launch.stop_at:
            points.arm(launch.tmp, launch.trace, launch.die_at, launch.stop_at)
        main(["serve"])
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
