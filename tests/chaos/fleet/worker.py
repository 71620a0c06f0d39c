"""One fleet in namespaces of its own: injects what its parent names, a line each."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import structlog
import trio

from tests.chaos.fleet import claim
from tests.chaos.fleet.case import Case, inject
from tests.chaos.fleet.kinds import ALL, Injection
from tests.chaos.fleet.observer import Broken
from tests.chaos.fleet.place import Place, open_place


async def main(directory: Path, *, careless: bool) -> None:
    """Until standard input ends, or something did not hold: then this fleet is not used again."""
    names = {one.name: one for one in ALL}
    async with open_place(directory, careless=careless) as place:
        _say(ready=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            verdict = await _do(place, names[line.strip()])
            _say(**verdict)
            if verdict["problems"]:
                return
        for one in place:
            await one.stop(signal.SIGINT, signal.SIGINT)


async def _do(place: Place, wanted: Injection) -> dict[str, Any]:
    began = time.monotonic()
    case = Case(place, wanted.layout, wanted.step, wanted.form)
    problems: list[str] = []
    try:
        await inject(case, wanted.harm, claim.check)
    except Exception as error:
        problems = [_words(error)]
    observer = place.observer
    return {
        "name": wanted.name,
        "problems": problems,
        "record": [claim.words(observer.runs[one]) for one in case.runs()],
        "told": [_told(one) for one in case.callers],
        "took_s": round(time.monotonic() - began, 1),
    }


def _told(caller: Any) -> str:
    last = caller.last
    if last is None:
        return "left" if caller.has_left else "nothing"
    return f"{last.status} {last.kind}".strip() if last.status else "broken"


def _words(error: BaseException) -> str:
    leaves = [error]
    while any(isinstance(one, BaseExceptionGroup) for one in leaves):
        leaves = [
            leaf
            for one in leaves
            for leaf in (one.exceptions if isinstance(one, BaseExceptionGroup) else [one])
        ]
    return "; ".join(
        str(one) if isinstance(one, Broken) else "".join(traceback.format_exception(one))
        for one in leaves
    )


def _say(**members: object) -> None:
    print(json.dumps(members), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--careless", action="store_true")
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(lambda: main(given.directory, careless=given.careless))
