"""The test's sides of other processes: a run of the stand-in, and a supervisor apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from supervisor.waiting import Signal

if TYPE_CHECKING:
    import httpx

#: What a supervisor says within, even on a machine that is busy with other things.
_PATIENCE_S = 60


class Guest:
    """The test's side of one run of the stand-in."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self.vm_id = ""
        self.pid = 0
        #: All that was seen, in order.
        self.seen: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        """What happened next there. Ends with the program: ``{"saw": "end"}``."""
        while b"\n" not in self._buffer:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return {"saw": "end"}
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        self.seen.append(json.loads(line))
        return self.seen[-1]

    async def until(self, what: str) -> dict[str, Any]:
        """Wait for ``what``: a QMP command by its name, ``Run``, ``SIGTERM`` or ``end``."""
        while (saw := await self.next())["saw"] != what:
            assert saw["saw"] != "end", f"the program ended before {what}: {self.seen}"
        return saw

    async def until_end(self) -> None:
        """Wait for the program's end."""
        while (await self.next())["saw"] != "end":
            pass

    async def order(self, do: str, **more: object) -> None:
        await self._stream.send_all(json.dumps({"do": do, **more}).encode() + b"\n")

    async def emit(self, event: str, **data: object) -> None:
        await self.order("emit", event=event, data=data)

    async def exit(self, code: int) -> None:
        """Have it exit, with a negative code by that signal."""
        await self.order("exit", code=code)

    def count(self, what: str) -> int:
        return [one["saw"] for one in self.seen].count(what)


class Apart:
    """A supervisor in a process of its own. ``log`` is what it has logged so far."""

    http: httpx.AsyncClient

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.http_port = 0
        self.log: list[dict[str, Any]] = []
        self._logged = Signal()

    async def read_log(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """``started`` once it answers."""
        assert self.process.stderr
        rest = b""
        async for data in self.process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.log.append(json.loads(line))
                self._logged.notify()
                if self.log[-1]["message"] == "ready":
                    self.http_port = self.log[-1]["http_port"]
                    task_status.started()

    def said(self, message: str) -> dict[str, Any]:
        """The first line of the log with this message."""
        return next(line for line in self.log if line["message"] == message)

    async def wait_said(self, message: str, times: int = 1, **fields: Any) -> dict[str, Any]:
        """The first line of the log with this message and these fields, once there are so many."""

        def found() -> list[dict[str, Any]]:
            wanted = {"message": message, **fields}
            return [line for line in self.log if wanted.items() <= line.items()]

        with trio.fail_after(_PATIENCE_S):
            await self._logged.until(lambda: len(found()) >= times)
        return found()[0]

    async def run(self, computation: bytes = b"{}") -> dict[str, Any]:
        answer = await self.http.post("/run", json={"computation": list(computation)})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def kill(self) -> None:
        """As by the kernel, with no time for anything."""
        self.process.kill()
        await self.process.wait()
