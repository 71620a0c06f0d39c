"""The guest as a whole: what cloning does to it, its clock, and what /init tells of the agent.

Use it only in a guest of ours, whose PID 1 is /init: it sets the clock.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from .line import Line
from .renewal import Renewer

if TYPE_CHECKING:
    from collections.abc import Callable

# init makes these, once the network has an address and once no module is left to load.
SETTLED = ("/run/address", "/run/loaded")
# Empty while the guest waits for its renewal, so that a restarted agent knows.
WAITS = "/run/waits-for-renewal"
MACHINE_ID = "/etc/machine-id"
# init writes why the agent before this one ended.
LAST_END = "/run/last-end"
HARDWARE_CLOCK = "/sys/class/rtc/rtc0/since_epoch"
# The hardware clock tells whole seconds, and a call to a guest on a busy host takes its time.
TOLERANCE_NS = 5_000_000_000
# For want of memory, the kernel kills this process last: the guest had better lose an algorithm.
OOM_SCORE = "/proc/self/oom_score_adj"
OOM_LAST = b"-900"
POLL_S = 0.05
SETTLE_TIMEOUT_S = 30.0


class Guest:
    """The guest that this process runs in, as root. Its methods raise OSError.

    *root* is a directory in place of the guest's root, for tests.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._opened: dict[str, int] = {}
        self._clock: int | None = None

    def wait_until_settled(self, deadline: float) -> bool:
        """Whether init has brought everything up before *deadline*, a monotonic time."""
        while not all(os.path.exists(self._root + path) for path in SETTLED):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def settle(self) -> None:
        """Returns when init has brought everything up, or after SETTLE_TIMEOUT_S."""
        self.wait_until_settled(time.monotonic() + SETTLE_TIMEOUT_S)

    def drop_caches(self) -> None:
        """Frees the kernel's caches and compacts free memory."""
        for name, value in (("drop_caches", b"3"), ("compact_memory", b"1")):
            self._put(f"/proc/sys/vm/{name}", value)

    def waits(self) -> bool:
        """Whether the guest waits for its renewal, perhaps since an agent before this one."""
        path = self._root + WAITS
        return os.path.exists(path) and not os.path.getsize(path)

    def have_it_wait(self) -> None:
        """Puts it on record. What a copy needs stays open, so that it has to open nothing."""
        self._opened[WAITS] = self._open(WAITS)
        self._clock = os.open(self._root + HARDWARE_CLOCK, os.O_RDONLY)

    def open_line(self, answer: Callable[[bytes], tuple[bytes, bool]]) -> Line | None:
        """The line to the host; None if there is none, and the console says why."""
        try:
            return Line(answer)
        except OSError as error:
            print(f"agent: copies will be called over TCP: {error}", file=sys.stderr, flush=True)
            return None

    def start_renewer(self, line: Line | None = None) -> Renewer:
        return Renewer(line=line)

    def machine_id(self) -> str:
        """What the renewer has written: 32 hexadecimal digits, as machine-id(5) has them."""
        with open(self._root + MACHINE_ID, encoding="ascii") as file:
            return file.read().strip()

    def wait_no_more(self) -> None:
        self._put(WAITS, b"no\n")

    def last_end(self) -> str:
        """Why the agent's process before this one ended; empty if this is the first."""
        try:
            with open(self._root + LAST_END, encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def protect_agent(self) -> None:
        """Has the kernel kill this process last if it is short of memory."""
        self._put(OOM_SCORE, OOM_LAST)

    def hardware_clock_s(self) -> int:
        """The hardware clock's time: whole seconds since 1970."""
        if self._clock is None:
            self._clock = os.open(self._root + HARDWARE_CLOCK, os.O_RDONLY)
        return int(os.pread(self._clock, 32, 0))

    def set_clock(self, unix_time_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)

    def _put(self, path: str, content: bytes) -> None:
        file = self._take(path)
        try:
            os.write(file, content)
        finally:
            os.close(file)

    def _take(self, path: str) -> int:
        file = self._opened.pop(path, None)
        return self._open(path) if file is None else file

    def _open(self, path: str) -> int:
        return os.open(self._root + path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
