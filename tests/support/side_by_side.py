"""What the processes that test side by side must not have in common."""

from __future__ import annotations

import os


def own_ports(first: int, end: int) -> tuple[int, int]:
    """This process's part of the ports from *first* to before *end*: its first and last."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # One that is started in place of another that died has a number of its own.
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % processes
    each = (end - first) // processes
    return first + mine * each, first + (mine + 1) * each - 1
