"""Crash points: a supervisor's steps by name, and a SIGKILL, or a SIGSTOP, at one of them.

Python tells an audit hook of what is about to be done to files, processes and sockets; what has
no such event (a sync, a QMP command, a call of the agent, a signal by pidfd) is wrapped. A point
is passed before its step, and where a step takes its time, once more after it. Names count:
``rename vm.json.new to vm.json #3`` is the third time. No code of this is in the product.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TEMPLATE = re.compile("^templates/[0-9a-f]{16}")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def arm(tmp: str, trace: str, die_at: str, stop_at: str) -> None:
    """From now on note the points in ``trace``, and die or stop at one: each if given."""
    passing = _Passing(tmp, trace, die_at, stop_at)
    sys.addaudithook(passing.audit)
    passing.wrap()


class _Passing:
    def __init__(self, tmp: str, trace: str, die_at: str, stop_at: str) -> None:
        self._tmp = tmp
        self._die_at = die_at
        self._stop_at = stop_at
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._trace = os.open(trace, flags) if trace else -1

    def passed(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            name = f"{name} #{self._counts[name]}"
            if self._trace >= 0:
                os.write(self._trace, name.encode() + b"\n")
            if name == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            if name == self._stop_at:
                # This thread first: it does not take another step.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    # --- what Python tells of ---

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        name = self._of(event, args)
        if name:
            self.passed(name)

    def _of(self, event: str, args: tuple[Any, ...]) -> str:
        match event:
            case "open":
                return self._opened(*args)
            case "os.rename":
                source, target = self._short(args[0]), self._short(args[1])
                return f"rename {source} to {target}" if source else ""
            case "os.remove" | "os.mkdir" | "os.rmdir" | "os.truncate" | "shutil.rmtree":
                # Within rmtree names are relative to a descriptor.
                short = self._short(args[0]) or (isinstance(args[0], str) and args[0])
                inside = not str(args[0]).startswith("/") or self._short(args[0])
                return f"{event.rpartition('.')[2]} {short}" if inside else ""
            case "subprocess.Popen":
                return f"start {os.path.basename(os.fsdecode(args[0]))}, before"
            case "socket.bind" | "socket.connect":
                short = self._short(args[1])
                return f"{event.partition('.')[2]} {short}" if short else ""
        return ""

    def _opened(self, path: object, _: object, flags: int) -> str:
        if not flags & _WRITING:
            return ""
        short = self._short(path)
        return f"write {short}" if short else ""

    def _short(self, path: object) -> str:
        """A path below tmp/ without what differs from run to run; nothing for another."""
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        text = os.fsdecode(path)
        if not text.startswith(self._tmp + "/"):
            return ""
        text = _ID.sub("VM", text[len(self._tmp) + 1 :])
        text = _TEMPLATE.sub("templates/DIGEST", text)
        # The directory of a VM is understood; drafts and tmp/'s own files are not.
        text = re.sub(r"\.writable-[0-9]+", ".writable", text)
        return text.removeprefix("VM/")

    # --- what it does not tell of ---

    def wrap(self) -> None:
        from supervisor.agent.client import Agent
        from supervisor.agent.line import Line
        from supervisor.qemu.qmp import Monitor
        from supervisor.state.journal import Journal

        self._around(os, "fsync", lambda *_: "fsync", after=False)
        self._around(os, "fdatasync", lambda *_: "fdatasync", after=False)
        self._around(os, "pidfd_open", lambda *_: "pidfd_open")
        self._around(
            signal, "pidfd_send_signal", lambda _, number: f"signal {signal.Signals(number).name}"
        )
        self._around(Journal, "_publish", lambda *_: "publish", after=False)
        self._around_async(Monitor, "execute", lambda _, command, *__: f"QMP {command}")
        self._around_async(Monitor, "_migrate", lambda _, command, *__: f"{command} to its end")
        self._around_async(Agent, "prepare", lambda *_: "agent Prepare")
        self._around_async(Agent, "renew", lambda *_: "agent Renew")
        self._around_async(Agent, "run", lambda *_: "agent Run")
        self._around_async(Agent, "wait_ready", lambda *_: "agent ready")
        self._around_async(Line, "wait_renewed", lambda *_: "line renewed")
        self._around_async(Line, "rehearse", lambda *_: "line rehearsal")
        self._around_async(Line, "run", lambda *_: "line Run")

    def _around(
        self, where: Any, what: str, name: Callable[..., str], *, after: bool = True
    ) -> None:
        inner = getattr(where, what)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            step = name(*args)
            self.passed(f"{step}, before" if after else step)
            result = inner(*args, **kwargs)
            if after:
                self.passed(f"{step}, after")
            return result

        setattr(where, what, wrapped)

    def _around_async(self, where: Any, what: str, name: Callable[..., str]) -> None:
        inner = getattr(where, what)

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            step = name(*args)
            self.passed(f"{step}, before")
            result = await inner(*args, **kwargs)
            self.passed(f"{step}, after")
            return result

        setattr(where, what, wrapped)
