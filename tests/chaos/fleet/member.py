"""A supervisor that stops itself where it is told to: before or after a step of the fleet's record.

    python -m tests.chaos.fleet.member DIRECTORY [careless]

It notes each step that it passes in DIRECTORY/points. If DIRECTORY/stop-at names one, the whole
process stops there, once. No code of this is in the product. With ``careless`` it proves nothing
before it sends, and looks what became of a run while it was taken for lost only when that has its
answer: the checker has to see what comes of that.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from supervisor.cli import main
from supervisor.fleet.nats import NatsEngine
from supervisor.fleet.owner import Owner


class Points:
    """Where this process passes, or stops."""

    def __init__(self, directory: Path) -> None:
        self._passed = (directory / "points").open("a", buffering=1)
        self._stop_at = directory / "stop-at"

    def passed(self, name: str, run_id: str) -> None:
        self._passed.write(f"{time.monotonic():.3f} {name} {run_id}\n")
        try:
            wanted = self._stop_at.read_text()
        except FileNotFoundError:
            return
        if name == wanted:
            self._stop_at.unlink()
            # This thread first: it does not take another step.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def wrap(self) -> None:
        """Around what is written to the record, put into the queue, and offered to a host."""
        inner_set, inner_enqueue = NatsEngine._set, NatsEngine.enqueue
        inner_call = NatsEngine.call

        async def set_and_tell(
            engine: NatsEngine, table: str, key: str, value: bytes, *more: Any
        ) -> int:
            what = f"{table} {json.loads(value)['state']}" if table == "runs" else table
            if table in ("hosts", "kinds"):
                return await inner_set(engine, table, key, value, *more)
            self.passed(f"before {what}", key)
            made = await inner_set(engine, table, key, value, *more)
            self.passed(f"after {what}", key)
            return made

        async def enqueue(engine: NatsEngine, kind: str, body: bytes, once: str) -> None:
            await inner_enqueue(engine, kind, body, once)
            self.passed("after queue", body.decode().partition(" ")[0])

        async def call(engine: NatsEngine, host: str, subject: str, *more: Any) -> bytes | None:
            if subject != "takes":
                return await inner_call(engine, host, subject, *more)
            run_id = json.loads(more[0])["id"]
            self.passed("before takes", run_id)
            said = await inner_call(engine, host, subject, *more)
            self.passed("after takes", run_id)
            return said

        patched: Any = NatsEngine
        patched._set, patched.enqueue, patched.call = set_and_tell, enqueue, call

    def be_careless(self) -> None:
        look = Owner._check

        async def prove(owner: Owner, vm: Any, relay: Any) -> None:
            self.passed(f"before runs {relay}", vm.record.options.fleet_run)

        async def check(owner: Owner, vm: Any) -> None:
            await vm.until(lambda: vm.record.settled)
            await look(owner, vm)

        patched: Any = Owner
        patched.prove, patched._check = prove, check


if __name__ == "__main__":
    points = Points(Path(sys.argv[1]))
    points.wrap()
    if sys.argv[2:]:
        points.be_careless()
    sys.argv[1:] = ["serve"]
    main()
