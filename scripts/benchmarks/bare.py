"""Hypercorn on trio with nothing on it: what an answer costs before a supervisor has any part.

Run as a program it prints its port and answers every request with the same few bytes; with the
argument ``quart`` these come from an application of Quart-Trio.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

_BODY = b'{"state":"running"}'


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-length", b"%d" % len(_BODY)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _BODY})


def _quart() -> Any:
    from quart_trio import QuartTrio

    app = QuartTrio(__name__)

    @app.get("/vms/<vm_id>/status")
    async def status(vm_id: str) -> Any:
        return {"state": "running"}

    return app


async def _main() -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "WARNING"
    config.keep_alive_max_requests = 2**31
    async with trio.open_nursery() as nursery:
        app = _quart() if sys.argv[1:] == ["quart"] else _app
        urls = await nursery.start(serve, app, config)
        print(urls[0].rsplit(":", 1)[1], flush=True)


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[int]:
    """A process of its own; its port."""
    command = [sys.executable, str(Path(__file__)), *arguments]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout
        yield int(program.stdout.readline())
    finally:
        program.kill()
        program.wait()
        if program.stdout:
            program.stdout.close()


if __name__ == "__main__":
    trio.run(_main)
