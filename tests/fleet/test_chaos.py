"""The short form of scripts/chaos --fleet: whatever happens to its hosts, the claim holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.namespaces import needs_namespaces

_CHECKOUT = Path(__file__).parents[2]


def _chaos(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos.fleet", *words]
    return subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)


@needs_namespaces
def test_nothing_is_computed_twice_or_lost() -> None:
    done = _chaos("--short", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_namespaces
def test_the_checker_sees_hosts_that_do_not_ask() -> None:
    done = _chaos("--careless", "--only", "SIGSTOP of the owner, long, there, before sent")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 agents got one computation" in done.stdout
