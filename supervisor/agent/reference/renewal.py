"""The renewer: the program that gives a copy of the guest its own identity.

It is no Python: an emulated copy would spend a while on that. supervisor/image/renewer.c says what
it does, and how it tells of it.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .line import Line

PROGRAM = "/usr/lib/guest/renewer"
START_TIMEOUT_S = 5.0
WAITS, RENEWED = b"w", b"r"
# The descriptor that the renewer has of the line.
LINE = 3
STEPS = {
    b"o": "files cannot be opened",
    b"i": "the identity cannot be read",
    b"e": "the kernel takes no entropy",
    b"n": "the host's name cannot be set",
    b"f": "files cannot be written",
}


class Renewer:
    """One that runs. OSError: it does not wait for a renewal as it should.

    :param line: where the renewer tells the host of the renewal; None for nowhere
    """

    def __init__(self, program: str = PROGRAM, line: Line | None = None) -> None:
        self._said, tells = os.pipe2(os.O_CLOEXEC)
        processors = os.sched_getaffinity(0)
        try:
            # Not where the agent waits: `Server.serve_line`.
            os.sched_setaffinity(0, {min(processors)})
            # In the background of a shell: when it ends, init reaps it and nobody has to here.
            shell = ["/bin/sh", "-c", f"{program} &"]
            actions = [(os.POSIX_SPAWN_DUP2, tells, 1)]
            if line:
                actions.append((os.POSIX_SPAWN_DUP2, line.fileno(), LINE))
            child = os.posix_spawn(shell[0], shell, {}, file_actions=actions)
            os.waitpid(child, 0)
        finally:
            os.sched_setaffinity(0, processors)
            os.close(tells)
        self._word = b""
        if self._read(START_TIMEOUT_S, 1) != WAITS:
            self._word += os.read(self._said, 1) if self._word else b""
            raise OSError(self.problem or "the renewer does not start")
        self._word = b""

    def has_renewed(self, timeout_s: float) -> bool:
        """Whether the guest is renewed, before so long."""
        return self._read(timeout_s) == RENEWED

    @property
    def problem(self) -> str:
        """Why the guest will not be renewed; empty if it may still be."""
        if self._word in (b"", RENEWED, WAITS):
            return ""
        step = STEPS.get(self._word[:1], "the renewer has ended")
        number = int.from_bytes(self._word[1:2], "big")
        return f"{step}: {errno.errorcode.get(number, number)}" if number else step

    def _read(self, timeout_s: float, most: int = 2) -> bytes:
        """Its last word, empty if there is none yet."""
        poll = select.poll()
        poll.register(self._said, select.POLLIN)
        if not self._word and poll.poll(timeout_s * 1000):
            self._word = os.read(self._said, most) or b"-"
        return self._word
