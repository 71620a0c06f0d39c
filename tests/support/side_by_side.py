"""What processes that test side by side on one machine must not have in common."""

from __future__ import annotations

import socket
from functools import cache

_EACH = 400
#: A name for each part that this process holds; the kernel frees it with the process.
_held: list[socket.socket] = []


@cache
def own_ports(first: int, end: int) -> tuple[int, int]:
    """A part of the ports from *first* to before *end* that no other test process has.

    Its first and last port. Test processes of other checkouts count, too.
    """
    for low in range(first, end - _EACH + 1, _EACH):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0qmp-supervisor-tests/{low}")
        except OSError:
            name.close()
            continue
        _held.append(name)
        return low, low + _EACH - 1
    raise RuntimeError(f"other test processes have all ports from {first} to {end}")
